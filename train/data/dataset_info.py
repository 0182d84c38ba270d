"""Dataset metadata: read from the files next to the records, or built in for well-known published datasets.

Importing this module is quick.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from train.data.decode import MAX_PIXELS, MODES
from train.data.locate import data_dir, locate_dataset, rewrite_hint
from train.process.errors import UserError
from w2jax.text import count_of, one_line, shorten

_FILE_WORD = re.compile(r"\w[\w.-]*", re.ASCII)
# No path separators, so the file cannot be outside the dataset's folder. No format options.
_TEMPLATE = re.compile(r"([\w.-]|\{[A-Z_]+\})*", re.ASCII)
_MAX_CLASSES = 2**20


@dataclass(frozen=True)
class Shards:
    """The files of one split."""

    lengths: list[int]
    """Number of records in each file."""
    template: str = ""
    """File name pattern in TFDS's notation; "" for TFDS's default pattern."""


@dataclass(frozen=True)
class DatasetInfo:
    """The metadata of a dataset."""

    image_shape: tuple[int | None, int | None, int]
    """(h, w, C) of the images; h and w are None if images differ in size."""
    label_names: list[str]
    """Label k is called label_names[k]."""
    shards: dict[str, Shards]
    """The files of each split."""
    folder: Path = Path()
    """The folder that contains the files."""
    file_prefix: str = "any"
    """The dataset name at the start of the file names."""

    @property
    def splits(self) -> dict[str, int]:
        """Number of examples in each split."""
        return {split: sum(shards.lengths) for split, shards in self.shards.items()}


def read_dataset_info(name: str, directory: str | None) -> DatasetInfo:
    """Reads `dataset_info.json`, `features.json` and the label names of a prepared dataset.

    TFDS's own builder would import the Python modules that `features.json` names. This function runs no code from the
    files: it parses them as data, with protobuf and TFDS's schema.

    Args:
        name: as for `locate_dataset`.
        directory: as for `locate_dataset`.

    Raises:
        UserError: the dataset is not found (see `locate_dataset`); a file is damaged or has impossible values; the
            records are not stored as array_record; the examples are not labeled images.
    """
    folder = locate_dataset(name, directory)
    from tensorflow_datasets.core.proto import dataset_info_pb2, feature_pb2  # Imported late: it takes seconds.

    with _file_errors(name, folder / "dataset_info.json") as file:
        info = _parse(file, dataset_info_pb2.DatasetInfo())  # pyright: ignore[reportAttributeAccessIssue]
        file_format = info.file_format or "tfrecord"
        shards = {split.name: _shards(split) for split in info.splits}
        for word in (file_format, info.name, *shards):
            if not _FILE_WORD.fullmatch(word):
                raise ValueError(f"format, dataset and split names must be plain words, got {word!r}")
    if file_format != "array_record":
        raise UserError(
            f"dataset {name} in {folder} must be stored as array_record, got {file_format}. "
            f"{rewrite_hint(name, data_dir(directory))}"
        )
    with _file_errors(name, folder / "features.json") as file:
        tree = _parse(file, feature_pb2.Feature())  # pyright: ignore[reportAttributeAccessIssue]
        kinds = {key: feature.WhichOneof("content") for key, feature in tree.features_dict.features.items()}
        if (kinds.get("image"), kinds.get("label")) != ("image", "class_label"):
            raise UserError(
                f"dataset {name} must have an Image feature named image and a ClassLabel feature named label, "
                f"got {_excerpt(kinds)}."
            )
        features = tree.features_dict.features
        image_shape, classes = _image_shape(name, features["image"].image), features["label"].class_label.num_classes
        if not 1 <= classes <= _MAX_CLASSES:
            raise ValueError(f"the number of classes must be from 1 to {_MAX_CLASSES:,}, got {classes}")
    with _file_errors(name, folder / "label.labels.txt") as file:
        label_names = _label_names(file, classes)
    return DatasetInfo(image_shape, label_names, shards, folder, info.name)


@contextmanager
def _file_errors(name: str, file: Path) -> Iterator[Path]:
    """Turns errors while reading `file` into a UserError that names the file."""
    try:
        yield file
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"dataset {name}: {file} cannot be read ({_excerpt(error)}). Prepare the dataset again."
        ) from error


def _excerpt(value: object) -> str:
    """Shortens the contents of a damaged file to one line for an error message."""
    return shorten(one_line(str(value)), 300)


def _parse(file: Path, message: Any) -> Any:
    """Fills a protobuf message from the JSON object in `file`. Fields that are not in the schema are ignored."""
    from google.protobuf import json_format

    from w2jax.files import read_json

    try:
        return json_format.ParseDict(read_json(file), message, ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error


def _shards(split: Any) -> Shards:
    """Returns the files of a SplitInfo message."""
    lengths, template = list(split.shard_lengths), split.filepath_template
    if not _TEMPLATE.fullmatch(template):
        raise ValueError(f"filepathTemplate must be a plain file name, got {template!r}")
    if min(lengths, default=0) < 0:
        raise ValueError(f"shardLengths must be at least 0, got {min(lengths)}")
    return Shards(lengths, template)


def _image_shape(name: str, image: Any) -> tuple[int | None, int | None, int]:
    """Returns (h, w, C) of an ImageFeature message; h and w are None if images differ in size."""
    dtype, sizes = image.dtype or "uint8", list(image.shape.dimensions)
    if len(sizes) != 3:
        raise ValueError(f"images must have 3 dimensions, got the shape {sizes}")
    height, width, channels = sizes
    if dtype != "uint8" or channels not in MODES:
        found = "any number of channels" if channels < 0 else count_of(channels, "channel")
        raise UserError(
            f"dataset {name} must have uint8 images with 1 (gray), 3 (RGB) or 4 (RGBA) channels, got {_excerpt(dtype)} "
            f"and {found}. Convert the images to 8-bit gray or RGB, "
            "and write the dataset again or run `python -m train.prepare folder`."
        )
    if 0 in sizes or max(height, 1) * max(width, 1) > MAX_PIXELS:
        raise ValueError(f"images must have 1 to {MAX_PIXELS:,} pixels, got {height} x {width}")
    return None if height < 0 else height, None if width < 0 else width, channels


def _label_names(file: Path, classes: int) -> list[str]:
    """Reads one name per line, in Unicode's NFC form. If there is no file, the names are numbers."""
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except FileNotFoundError:
        return _numbers(classes)
    names = [normalize("NFC", line.strip()) for line in lines if line.strip()]
    if len(names) != classes or len(set(names)) != classes:
        raise ValueError(f"the file must have {classes} lines with different label names, got {len(set(names))}")
    return names


def _numbers(count: int) -> list[str]:
    return [str(label) for label in range(count)]


def _published(image_shape: tuple[int | None, int | None, int], label_names: list[str], **splits: int) -> DatasetInfo:
    return DatasetInfo(image_shape, label_names, {split: Shards([count]) for split, count in splits.items()})


_FASHION = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]

PUBLISHED = {
    "mnist": _published((28, 28, 1), _numbers(10), train=60_000, test=10_000),
    "fashion_mnist": _published((28, 28, 1), _FASHION, train=60_000, test=10_000),
    "kmnist": _published((28, 28, 1), _numbers(10), train=60_000, test=10_000),
    "cifar10": _published((32, 32, 3), _numbers(10), train=50_000, test=10_000),
    "cifar100": _published((32, 32, 3), _numbers(100), train=50_000, test=10_000),
    "svhn_cropped": _published((32, 32, 3), _numbers(10), train=73_257, test=26_032, extra=531_131),
    "food101": _published((None, None, 3), _numbers(101), train=75_750, validation=25_250),
    "oxford_flowers102": _published((None, None, 3), _numbers(102), train=1_020, validation=1_020, test=6_149),
    "oxford_iiit_pet": _published((None, None, 3), _numbers(37), train=3_680, test=3_669),
    "imagenet2012": _published((None, None, 3), _numbers(1000), train=1_281_167, validation=50_000),
}
"""Published datasets by their TFDS names. They can be described without being prepared. Where the label names are not
listed here, they are numbers."""
