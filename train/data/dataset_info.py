"""What a dataset is apart from its examples: read from the files beside its records, or known of published ones.

Importing this module is quick.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.data.decode import MAX_PIXELS, MODES
from train.data.locate import data_dir, locate_dataset, rewrite_hint
from train.process.errors import UserError
from w2jax.text import one_line, shorten

_FILE_WORD = re.compile(r"\w[\w.-]*", re.ASCII)
_TEMPLATE = re.compile(r"([\w.-]|\{[A-Z_]+\})*", re.ASCII)  # Stays in the dataset's folder; has no format options.
_MAX_CLASSES = 2**20


@dataclass(frozen=True)
class Shards:
    """The files of one split."""

    lengths: list[int]
    """Records in each file."""
    template: str = ""
    """The pattern of their names, in TFDS's notation; "" for its usual one."""


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset apart from its examples."""

    image_shape: tuple[int | None, int | None, int]
    """(h, w, C) of the images; h and w are None where images differ in size."""
    label_names: list[str]
    """Label k is called label_names[k]."""
    shards: dict[str, Shards]
    """By split."""
    folder: Path = Path()
    """Folder of the files."""
    file_prefix: str = "any"
    """The dataset's name in the names of its files."""

    @property
    def splits(self) -> dict[str, int]:
        """Examples in each split."""
        return {split: sum(shards.lengths) for split, shards in self.shards.items()}


def read_dataset_info(name: str, directory: str | None) -> DatasetInfo:
    """Reads `dataset_info.json`, `features.json` and the label names of a prepared dataset.

    TFDS's own builder imports the Python modules that `features.json` names. Here the files are parsed as data, by
    protobuf and TFDS's schema.

    Args:
        name: as for `locate_dataset`.
        directory: as for `locate_dataset`.

    Raises:
        UserError: as `locate_dataset`; a file is damaged or its values are impossible; the records are not stored as
            array_record; the examples are not labelled images.
    """
    folder = locate_dataset(name, directory)
    from tensorflow_datasets.core.proto import dataset_info_pb2, feature_pb2  # Imported late: it takes seconds.

    with _file_errors(name, folder / "dataset_info.json") as file:
        info = _parse(file, dataset_info_pb2.DatasetInfo())  # pyright: ignore[reportAttributeAccessIssue]
        file_format = info.file_format or "tfrecord"
        shards = {split.name: _shards(split) for split in info.splits}
        for word in (file_format, info.name, *shards):
            if not _FILE_WORD.fullmatch(word):
                raise ValueError(f"names of formats, datasets and splits must be plain words, got {word!r}")
    if file_format != "array_record":
        raise UserError(
            f"dataset {name} in {folder} must be stored as array_record, which is read in any order, "
            f"got {file_format}. {rewrite_hint(name, data_dir(directory))}"
        )
    with _file_errors(name, folder / "features.json") as file:
        tree = _parse(file, feature_pb2.Feature())  # pyright: ignore[reportAttributeAccessIssue]
        kinds = {key: feature.WhichOneof("content") for key, feature in tree.features_dict.features.items()}
        if (kinds.get("image"), kinds.get("label")) != ("image", "class_label"):
            raise UserError(
                f"dataset {name} must have an Image called image and a ClassLabel called label, got {_excerpt(kinds)}"
            )
        features = tree.features_dict.features
        image_shape, classes = _image_shape(features["image"].image), features["label"].class_label.num_classes
        if not 1 <= classes <= _MAX_CLASSES:
            raise ValueError(f"the number of classes must be from 1 to {_MAX_CLASSES:,}, got {classes}")
    with _file_errors(name, folder / "label.labels.txt") as file:
        label_names = _label_names(file, classes)
    return DatasetInfo(image_shape, label_names, shards, folder, info.name)


@contextmanager
def _file_errors(name: str, file: Path) -> Iterator[Path]:
    """Errors of reading `file` as a UserError that names it."""
    try:
        yield file
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"dataset {name}: {file} cannot be read ({_excerpt(error)}). Prepare it again.") from error


def _excerpt(value: object) -> str:
    """A damaged file's words, fit for an error."""
    return shorten(one_line(str(value)), 300)


def _parse(file: Path, message: Any) -> Any:
    """Fills a protobuf message with the JSON object in `file`; fields that the schema lacks are left out."""
    from google.protobuf import json_format

    from w2jax.files import json_object

    try:
        return json_format.ParseDict(json_object(file.name, file.read_bytes()), message, ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error


def _shards(split: Any) -> Shards:
    """The files of a SplitInfo message."""
    lengths, template = list(split.shard_lengths), split.filepath_template
    if not _TEMPLATE.fullmatch(template):
        raise ValueError(f"filepathTemplate must be a plain file name, got {template!r}")
    if min(lengths, default=0) < 0:
        raise ValueError(f"shardLengths must be at least 0, got {min(lengths)}")
    return Shards(lengths, template)


def _image_shape(image: Any) -> tuple[int | None, int | None, int]:
    """(h, w, C) of an ImageFeature message; h and w are None where images differ in size."""
    dtype, sizes = image.dtype or "uint8", list(image.shape.dimensions)
    if dtype != "uint8" or len(sizes) != 3 or sizes[2] not in MODES:
        raise ValueError(f"images must be uint8 with 1, 3 or 4 channels, got {dtype!r} of shape {sizes}")
    height, width, channels = sizes
    if 0 in sizes or max(height, 1) * max(width, 1) > MAX_PIXELS:
        raise ValueError(f"images must have 1 to {MAX_PIXELS:,} pixels, got {height} x {width}")
    return None if height < 0 else height, None if width < 0 else width, channels


def _label_names(file: Path, classes: int) -> list[str]:
    """One name a line; numbers where there is no such file."""
    try:
        lines = file.read_text("utf-8").split("\n")
    except FileNotFoundError:
        return _numbers(classes)
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != classes or len(set(names)) != classes:
        raise ValueError(f"label names must be {classes} different lines, got {len(set(names))}")
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
"""Published datasets by TFDS's name, known without being prepared. Unknown label names are numbers."""
