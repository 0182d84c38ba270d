"""What the files beside a prepared dataset's records say of it. Imports nothing heavy and runs nothing they name."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.data.decode import MODES, MOST_PIXELS
from train.data.locate import data_dir, find, rewrite
from train.data.published import Facts
from train.process.errors import UserError

_PART = re.compile(r"\w[\w.-]*", re.ASCII)  # Of a file's name.
_TEMPLATE = re.compile(r"([\w.-]|\{[A-Z_]+\})*", re.ASCII)  # Names a file in the folder itself, and formats nothing.
_MOST_CLASSES = 2**20


@dataclass(frozen=True)
class Shards:
    """The files that hold a split."""

    template: str
    """How they are called, in TFDS's notation; "" for its usual one."""
    lengths: list[int]
    """Records in each."""


@dataclass(frozen=True)
class Description:
    """A prepared dataset apart from its records."""

    folder: Path
    prefix: str
    """The dataset's name in the names of its files."""
    facts: Facts
    shards: dict[str, Shards]
    """By split."""


def describe(name: str, directory: str | None) -> Description:
    """Reads `dataset_info.json`, `features.json` and the label names of a prepared dataset; the arguments are `find`'s.

    TFDS would import the Python modules that these files name. Here they are only data.

    Raises:
        UserError: as `find`; a file is damaged or says what cannot be; the records cannot be read in any order; the
            examples are not labelled images.
    """
    folder = find(name, directory)
    with _named(name, folder / "dataset_info.json") as file:
        info = _content(file)
        form, prefix = _text(info, "fileFormat") or "tfrecord", _text(info, "name")
        splits = {_text(split, "name"): _shards(split) for split in _items(info, "splits")}
        wrong = [part for part in (form, prefix, *splits) if not _PART.fullmatch(part)]
        if wrong:
            raise ValueError(f"wanted plain names, got {wrong[0]!r}")
    if form != "array_record":
        raise UserError(
            f"dataset {name} in {folder} is stored as {form}, but only array_record can be read in any order; "
            f"{rewrite(name, data_dir(directory))}"
        )
    with _named(name, folder / "features.json") as file:
        features = _object(_object(_content(file), "featuresDict"), "features")
        kinds = [_object(features, key) for key in ("image", "label")]
        if "image" not in kinds[0] or "classLabel" not in kinds[1]:
            got = {key: sorted(_object(features, key).keys() - {"pythonClassName", "description"}) for key in features}
            raise UserError(
                f"dataset {name}: wanted an Image called image and a ClassLabel called label, got {str(got)[:200]}"
            )
        shape, classes = _shape(_object(kinds[0], "image")), _integer(_object(kinds[1], "classLabel"), "numClasses")
        if not 1 <= classes <= _MOST_CLASSES:
            raise ValueError(f"wanted 1 to {_MOST_CLASSES:,} classes, got {classes}")
    with _named(name, folder / "label.labels.txt") as file:
        labels = _label_names(file, classes)
    counts = {split: sum(shards.lengths) for split, shards in splits.items()}
    return Description(folder, prefix, Facts(shape, labels, counts), splits)


@contextmanager
def _named(name: str, file: Path) -> Iterator[Path]:
    """Names the file in what is wrong with it."""
    try:
        yield file
    except (OSError, ValueError, RecursionError) as error:
        why = str(error) if str(error).isprintable() else ascii(str(error))
        raise UserError(f"dataset {name}: {file} cannot be read ({why}); prepare it again") from error


def _content(file: Path) -> Mapping[str, Any]:
    return _object({"it": json.loads(file.read_text("utf-8"))}, "it")


def _shards(split: Mapping[str, Any]) -> Shards:
    template, lengths = _text(split, "filepathTemplate"), [_whole(length) for length in _list(split, "shardLengths")]
    if not _TEMPLATE.fullmatch(template):
        raise ValueError(f"wanted a filepathTemplate of a plain file name, got {template!r}")
    if min(lengths, default=0) < 0:
        raise ValueError(f"wanted shardLengths of at least 0, got {min(lengths)}")
    return Shards(template, lengths)


def _shape(image: Mapping[str, Any]) -> tuple[int | None, int | None, int]:
    """(h, w, C) of an image feature, h and w None where they differ."""
    dtype, sides = _text(image, "dtype") or "uint8", _list(_object(image, "shape"), "dimensions")
    sizes = [_whole(side) for side in sides]
    if dtype != "uint8" or len(sizes) != 3 or sizes[2] not in MODES:
        raise ValueError(f"wanted uint8 images of 1, 3 or 4 channels, got {dtype!r} of shape {sizes}")
    height, width, channels = sizes
    if 0 in sizes or max(height, 1) * max(width, 1) > MOST_PIXELS:
        raise ValueError(f"wanted images of 1 to {MOST_PIXELS:,} pixels, got {height} x {width}")
    return None if height < 0 else height, None if width < 0 else width, channels


def _label_names(file: Path, classes: int) -> list[str]:
    """One name a line; numbers where there is no such file."""
    try:
        lines = file.read_text("utf-8").split("\n")
    except FileNotFoundError:
        return [str(label) for label in range(classes)]
    found = [line.strip() for line in lines if line.strip()]
    if len(found) != classes or len(set(found)) != classes:
        raise ValueError(f"wanted {classes} different label names, got {len(set(found))}")
    return found


def _object(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _of(dict, content, key)


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    return _of(list, content, key)


def _items(content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [_object({key: item}, key) for item in _list(content, key)]


def _text(content: Mapping[str, Any], key: str) -> str:
    return _of(str, content, key)


def _integer(content: Mapping[str, Any], key: str) -> int:
    return _whole(content.get(key, 0))


def _of(kind: type, content: Mapping[str, Any], key: str) -> Any:
    """A field of that kind; its default where it is left out, as protobuf does."""
    found = content.get(key, kind())
    if not isinstance(found, kind):
        raise ValueError(f"wanted {key} to be a {kind.__name__}, got {str(found)[:40]!r}")
    return found


def _whole(value: Any) -> int:
    """A whole number of 64 bits, which protobuf writes as text."""
    number = int(value) if isinstance(value, str | int) else None
    if number is None or not -(2**63) <= number < 2**63:
        raise ValueError(f"wanted a whole number, got {str(value)[:40]!r}")
    return number
