"""A user's own images, one folder a class, as a dataset."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from train.data.decode import BROKEN, FORMATS, MODES, encoded
from train.data.prepare.tfds_writer import Card, Dataset, Example
from train.process.errors import UserError

_SUFFIXES = (".jpeg", ".jpg", ".png")
_GRAY = ("1", "L")
_MODES = (*_GRAY, "P", "PA", "LA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Found:
    """What a folder of images holds."""

    classes: list[str]
    """In order: the label of classes[0] is 0."""
    splits: dict[str, list[tuple[Path, int]]]
    """By split, the files and their labels."""
    corrupt: list[str]
    """Files that are no whole image, each with what is wrong."""
    ignored: list[Path]
    """Files that are neither JPEG nor PNG by name."""
    shape: tuple[int | None, int | None, int]
    """(h, w, C) of the images, None where they differ; C is 1 if all are gray, else 3."""


def scan(place: Path, test_fraction: float, seed: int) -> Found:
    """Finds and opens every image of a folder that has a folder for each class, or `train` and `test` with those.

    Args:
        place: the folder.
        test_fraction: part of each class that becomes the test split, where there are no `train` and `test`.
        seed: of that split, which depends on the names of the good files alone.

    Raises:
        UserError: no such folder, fewer than 2 classes, or a class with too few images.
    """
    if not place.is_dir():
        raise UserError(f"--from: wanted a folder with a folder of images for each class, got {place}")
    cut = (place / "train").is_dir() and (place / "test").is_dir()
    roots = {"train": place / "train", "test": place / "test"} if cut else {"train": place}
    classes = _folders(roots["train"])
    if len(classes) < 2:
        raise UserError(f"--from: wanted at least 2 folders, one a class, in {roots['train']}, got {len(classes)}")
    for name in classes:
        if not name.isprintable() or name != name.strip():
            raise UserError(f"--from: wanted names of classes that can stand in one line, got the folder {name!r}")
    if cut and (more := set(_folders(roots["test"])) - set(classes)):
        raise UserError(f"--from: {roots['test']} has classes that train has not: {', '.join(sorted(more))}")
    splits, corrupt, ignored, looks = defaultdict(list), [], [], []
    for split, root in roots.items():
        for label, name in enumerate(classes):
            for path in _files(root / name):
                if path.suffix.lower() not in _SUFFIXES:
                    ignored.append(path)
                    continue
                try:
                    looks.append(_look(path))
                    splits[split].append((path, label))
                except BROKEN as error:
                    corrupt.append(f"{shown(path)} ({error})")
    if not cut:
        splits = _cut(splits["train"], classes, test_fraction, seed)
    for split in roots:
        if not splits[split]:
            raise UserError(f"--from: {roots[split]} has no whole JPEG or PNG image in the folders of its classes")
    modes, sizes = {mode for mode, _ in looks}, {size for _, size in looks}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    return Found(classes, dict(splits), corrupt, ignored, (height, width, 1 if modes <= set(_GRAY) else 3))


def dataset(name: str, found: Found) -> Dataset:
    """What `builders.write` takes. Files are stored as they are, unless only a new encoding makes them plain."""
    features = {
        "image": tfds.features.Image(shape=found.shape),
        "label": tfds.features.ClassLabel(names=found.classes),
    }
    splits = {split: _examples(files, MODES[found.shape[-1]]) for split, files in found.splits.items()}
    return Card(name, "1.0.0", features, f"Images of {len(found.classes)} classes, prepared from a folder."), splits


def _examples(files: Iterable[tuple[Path, int]], mode: str) -> Iterator[Example]:
    for path, label in files:
        yield {"image": encoded(path, mode), "label": label}


def _look(path: Path) -> tuple[str, tuple[int, int]]:
    """The mode and the (h, w) of an image, upright; raises one of BROKEN if it is not whole."""
    with Image.open(path, formats=FORMATS) as image:
        image.load()
        if image.mode not in _MODES:
            raise ValueError(f"wanted 8 bits a channel, got an image of mode {image.mode}")
        upright = ImageOps.exif_transpose(image)
        return image.mode, (upright.height, upright.width)


def _cut(
    files: list[tuple[Path, int]], classes: list[str], test_fraction: float, seed: int
) -> dict[str, list[tuple[Path, int]]]:
    """Splits each class by itself; the same files and seed are always split alike."""
    if not 0 < test_fraction < 1:
        raise UserError(f"--test-fraction: wanted a number between 0 and 1, got {test_fraction}")
    splits: dict[str, list[tuple[Path, int]]] = {"train": [], "test": []}
    for label, name in enumerate(classes):
        own = [file for file in files if file[1] == label]
        if len(own) < 2:
            raise UserError(f"--from: class {name} wants at least 2 whole images, to train and to test, got {len(own)}")
        count = min(max(round(len(own) * test_fraction), 1), len(own) - 1)
        test = set(np.random.default_rng((seed, label)).permutation(len(own))[:count].tolist())
        for index, file in enumerate(own):
            splits["test" if index in test else "train"].append(file)
    return splits


def _folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(place: Path) -> list[Path]:
    """Files, also behind links, which are the user's own; a link that leads nowhere is one that cannot be read."""
    if not place.is_dir():
        return []
    return sorted(path for path in place.rglob("*") if path.is_file() or (path.is_symlink() and not path.exists()))


def shown(path: Path) -> str:
    """A path in one line, whatever a file may be called."""
    return str(path) if str(path).isprintable() else ascii(str(path))
