"""Writes datasets in TFDS's layout, with ArrayRecord files and without TensorFlow."""

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from train.process.errors import RunStopped, UserError
from w2jax.text import one_line

Example = dict[str, Any]
"""The features of one example. The image is encoded bytes, a path or a Pillow image."""


@dataclass(frozen=True)
class DatasetMetadata:
    """The metadata that TFDS stores with a dataset."""

    name: str
    """Name in lower case with underscores; also the name of the dataset's folder."""
    version: str
    """Version such as 3.0.1; also the name of the folder inside the dataset's folder."""
    features: Mapping[str, tfds.features.FeatureConnector]
    description: str
    homepage: str = ""


Dataset = tuple[DatasetMetadata, dict[str, Iterator[Example]]]
"""Input of `write`: the metadata, and the examples of each split."""


class _Serializer(example_serializer.ExampleSerializer):
    """Writes the same bytes for the same example in each process. Else protobuf orders the features at random."""

    def serialize_example(self, example: Example) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    def __init__(self, metadata: DatasetMetadata, splits: Mapping[str, Iterable[Example]], data_dir: Path) -> None:
        self.name = metadata.name  # pyright: ignore[reportAttributeAccessIssue]  TFDS's ReadOnlyBuilder does this too.
        self.VERSION = tfds.core.Version(metadata.version)
        self._metadata, self._examples = metadata, splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._metadata.description,
            features=tfds.features.FeaturesDict(self._metadata.features),
            supervised_keys=("image", "label"),
            homepage=self._metadata.homepage,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Example]]]:
        return {split: self._generate_examples(examples) for split, examples in self._examples.items()}

    def _generate_examples(self, examples: Iterable[Example]) -> Iterator[tuple[int, Example]]:
        yield from enumerate(examples)


def write(metadata: DatasetMetadata, splits: Mapping[str, Iterable[Example]], data_dir: Path) -> Path:
    """Writes a dataset and returns its folder. The same examples give the same files each time.

    The dataset appears only when it is complete. It replaces an existing dataset with the same name and version.

    Args:
        metadata: metadata of the dataset.
        splits: the examples of each split.
        data_dir: folder of prepared datasets. It is created if it does not exist.

    Raises:
        UserError: the dataset's folder is a link. This function does not write or remove anything through links.
        RunStopped: another process wrote the same dataset at the same time.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    target = data_dir / metadata.name / metadata.version
    for place in (target.parent, target):
        if place.is_symlink():
            raise UserError(f"{place} is a link. Remove it, or set --data-dir to another folder.")
    with tempfile.TemporaryDirectory(prefix=f".{metadata.name}-", dir=data_dir) as scratch:
        builder = _Builder(metadata, splits, Path(scratch))
        with contextlib.ExitStack() as stack:
            # TFDS has no option for the serializer.
            stack.enter_context(patch.object(example_serializer, "ExampleSerializer", _Serializer))
            # TFDS would announce a download, but nothing is downloaded.
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        try:
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                target.rename(Path(scratch) / "old")  # One rename, so no process sees a partly removed dataset.
            Path(builder.data_dir).rename(target)
        except OSError as error:
            raise RunStopped(
                f"{target} could not be replaced ({error.strerror}). Perhaps another process also prepares the dataset."
            ) from error
    return target


def download(urls: Sequence[str], data_dir: Path) -> dict[str, Path]:
    """Downloads files with TFDS's download manager, which verifies their registered sizes and SHA-256 checksums.

    Args:
        urls: URLs whose checksums are registered in TFDS.
        data_dir: folder of prepared datasets. The files are stored in its subfolder `downloads`, which TFDS uses too.

    Returns:
        The path of each file, by the last part of its URL.

    Raises:
        RunStopped: a file cannot be downloaded, or its checksum is wrong.
    """
    manager = tfds.download.DownloadManager(download_dir=data_dir / "downloads", force_checksums_validation=True)
    try:
        requests.head(urls[0], timeout=10)  # Fail early: TFDS retries an unreachable host for minutes.
        files: Any = manager.download({url.rsplit("/", 1)[-1]: url for url in urls})
    except (requests.RequestException, DownloadError, NonMatchingChecksumError) as error:
        why = one_line(" ".join(str(error).split()))
        raise RunStopped(
            f"{urls[0]} cannot be downloaded ({why}). Download the raw files yourself and pass --from DIR."
        ) from error
    return {name: Path(path) for name, path in files.items()}


def encode_png(image: np.ndarray, optimize: bool = False) -> bytes:
    """Encodes a uint8 [h, w, C] image with C = 1 or 3. `optimize` is slower and makes the file slightly smaller."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG", optimize=optimize)
    return file.getvalue()
