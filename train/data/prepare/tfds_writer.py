"""Writes prepared datasets as TFDS's own builders would, in ArrayRecord files and without TensorFlow."""

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from train.process.errors import RunStopped, UserError

Example = dict[str, Any]
"""One example by feature; its image as encoded bytes, a path or a Pillow image."""


@dataclass(frozen=True)
class Card:
    """What a dataset is, apart from its examples."""

    name: str
    """In lower case with underscores: the dataset's folder."""
    version: str
    """Such as 3.0.1: the folder in that one."""
    features: Mapping[str, tfds.features.FeatureConnector]
    description: str
    homepage: str = ""
    citation: str = ""


Dataset = tuple[Card, dict[str, Iterator[Example]]]
"""What `write` takes: the card, and the examples by split."""


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    def __init__(self, card: Card, splits: Mapping[str, Iterable[Example]], data_dir: Path) -> None:
        self.name = card.name  # pyright: ignore[reportAttributeAccessIssue]  TFDS's own builder without a class does so.
        self.VERSION = tfds.core.Version(card.version)
        self._card, self._examples = card, splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._card.description,
            features=tfds.features.FeaturesDict(self._card.features),
            supervised_keys=("image", "label"),
            homepage=self._card.homepage,
            citation=self._card.citation,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Example]]]:
        return {split: self._generate_examples(examples) for split, examples in self._examples.items()}

    def _generate_examples(self, examples: Iterable[Example]) -> Iterator[tuple[int, Example]]:
        yield from enumerate(examples)


def write(card: Card, splits: Mapping[str, Iterable[Example]], data_dir: Path) -> Path:
    """Writes a dataset, its examples shuffled the same way each time, and returns its folder.

    Nothing of it is seen before it is whole; one of the same name and version is then replaced.

    Args:
        card: what the dataset is.
        splits: the examples of each split.
        data_dir: folder of prepared datasets, made where it is missing.

    Raises:
        UserError: the dataset's folder is a link, through which nothing is written or removed.
        RunStopped: another process wrote the same dataset at the same moment.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    target = data_dir / card.name / card.version
    for place in (target.parent, target):
        if place.is_symlink():
            raise UserError(f"{place} is a link; remove it, or give the folder it leads to by --data-dir")
    with tempfile.TemporaryDirectory(prefix=f".{card.name}-", dir=data_dir) as scratch:
        builder = _Builder(card, splits, Path(scratch))
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download, and there is none here.
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        try:
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                target.rename(Path(scratch) / "old")  # As a whole, so that no half of it is seen while it is removed.
            Path(builder.data_dir).rename(target)
        except OSError as error:
            raise RunStopped(
                f"{target} could not be put in place ({error.strerror}); perhaps another process prepares it too"
            ) from error
    return target


def download(urls: Sequence[str], data_dir: Path) -> dict[str, Path]:
    """Fetches files by TFDS's download manager, which checks their registered size and SHA-256, and keeps them.

    Args:
        urls: addresses that TFDS has a checksum of.
        data_dir: the files are kept in its folder `downloads`, where TFDS looks too.

    Returns:
        Where each file is, by the last part of its address.

    Raises:
        RunStopped: a file cannot be fetched, or is not the registered one.
    """
    manager = tfds.download.DownloadManager(download_dir=data_dir / "downloads", force_checksums_validation=True)
    try:
        requests.head(urls[0], timeout=10)  # One quick look first: TFDS tries a silent host for minutes.
        files: Any = manager.download({url.rsplit("/", 1)[-1]: url for url in urls})
    except (requests.RequestException, DownloadError, NonMatchingChecksumError) as error:
        why = " ".join(str(error).split())
        raise RunStopped(f"cannot download {urls[0]} ({why}); or give the raw files by --from DIR") from error
    return {name: Path(path) for name, path in files.items()}


def png(image: np.ndarray, optimize: bool = False) -> bytes:
    """Encodes a uint8 [h, w, C] image with C = 1 or 3; `optimize` takes longer to save some bytes."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG", optimize=optimize)
    return file.getvalue()
