"""Makes a dataset from a user's own images, with one folder for each class."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from train.data.decode import FORMATS, IMAGE_ERRORS, MODES, read_image_bytes
from train.data.prepare.tfds_writer import Dataset, DatasetMetadata, Example
from train.process.errors import UserError
from w2jax.text import one_line

_SUFFIXES = (".jpeg", ".jpg", ".png")
_GRAY = ("1", "L")
_MODES = (*_GRAY, "P", "PA", "LA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder."""

    classes: list[str]
    """Names of the classes; classes[k] is the name of label k."""
    splits: dict[str, list[tuple[Path, int]]]
    """The files of each split, with their labels."""
    corrupt: list[str]
    """Files that cannot be used as images, each with the reason."""
    ignored: list[Path]
    """Files whose names do not end in .jpg, .jpeg or .png."""
    shape: tuple[int | None, int | None, int]
    """(h, w, C) of the images. h and w are None if images differ in size. C is 1 if all images are gray, else 3."""


def scan(place: Path, test_fraction: float, seed: int) -> ImageFolder:
    """Opens and checks every image in a folder.

    The folder contains either one folder for each class, or the folders `train` and `test`, each with one folder for
    each class.

    Args:
        place: the folder.
        test_fraction: fraction of each class for the test split, if there are no folders `train` and `test`.
        seed: seed for choosing the test images. The choice depends only on the seed and the names of the valid images.

    Raises:
        UserError: the folder does not exist or has fewer than 2 classes, or a class has too few images.
    """
    if not place.is_dir():
        raise UserError(
            f'--from must be a folder with one folder of images for each class, but "{place}" is not a folder.'
        )
    has_splits = (place / "train").is_dir() and (place / "test").is_dir()
    roots = {"train": place / "train", "test": place / "test"} if has_splits else {"train": place}
    classes = _folders(roots["train"])
    if len(classes) < 2:
        raise UserError(
            f"--from: {roots['train']} must contain at least 2 folders, one for each class, got {len(classes)}."
        )
    for name in classes:
        if not name.isprintable() or name != name.strip():
            raise UserError(
                f"--from: class names must be one printable line without spaces at the ends, got the folder {name!r}."
            )
    if has_splits and (unknown := set(_folders(roots["test"])) - set(classes)):
        raise UserError(f"--from: {roots['test']} has classes that are missing in train: {', '.join(sorted(unknown))}.")
    splits, corrupt, ignored, properties = defaultdict(list), [], [], []
    for split, root in roots.items():
        for label, name in enumerate(classes):
            for path in _files(root / name):
                if path.suffix.lower() not in _SUFFIXES:
                    ignored.append(path)
                    continue
                try:
                    properties.append(_inspect(path))
                    splits[split].append((path, label))
                except IMAGE_ERRORS as error:
                    corrupt.append(one_line(f"{path} ({error})"))
    if not has_splits:
        splits = _split_classes(splits["train"], classes, test_fraction, seed)
    for split in roots:
        if not splits[split]:
            raise UserError(f"--from: the class folders in {roots[split]} contain no complete JPEG or PNG image.")
    modes, sizes = {mode for mode, _ in properties}, {size for _, size in properties}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    return ImageFolder(classes, dict(splits), corrupt, ignored, (height, width, 1 if modes <= set(_GRAY) else 3))


def dataset(name: str, folder: ImageFolder) -> Dataset:
    """Returns a dataset to write. Image files are stored unchanged, unless `decode` needs another encoding."""
    features = {
        "image": tfds.features.Image(shape=folder.shape),
        "label": tfds.features.ClassLabel(names=folder.classes),
    }
    splits = {split: _examples(files, MODES[folder.shape[-1]]) for split, files in folder.splits.items()}
    description = f"Images of {len(folder.classes)} classes, prepared from a folder."
    return DatasetMetadata(name, "1.0.0", features, description), splits


def _examples(files: Iterable[tuple[Path, int]], mode: str) -> Iterator[Example]:
    for path, label in files:
        yield {"image": read_image_bytes(path, mode), "label": label}


def _inspect(path: Path) -> tuple[str, tuple[int, int]]:
    """Returns the mode and the upright (h, w) of an image. Raises one of `IMAGE_ERRORS` if the image is not valid."""
    with Image.open(path, formats=FORMATS) as image:
        image.load()
        if image.mode not in _MODES:
            raise ValueError(f"must have 8 bits per channel, got Pillow's mode {image.mode}")
        upright = ImageOps.exif_transpose(image)
        return image.mode, (upright.height, upright.width)


def _split_classes(
    files: list[tuple[Path, int]], classes: list[str], test_fraction: float, seed: int
) -> dict[str, list[tuple[Path, int]]]:
    """Splits each class separately. The result depends only on the files of the class and the seed."""
    if not 0 < test_fraction < 1:
        raise UserError(f"--test-fraction must be between 0 and 1, got {test_fraction}.")
    splits: dict[str, list[tuple[Path, int]]] = {"train": [], "test": []}
    for label, name in enumerate(classes):
        of_class = [file for file in files if file[1] == label]
        if len(of_class) < 2:
            raise UserError(
                f"--from: class {name} must have at least 2 complete images (one for training, one for testing), "
                f"got {len(of_class)}."
            )
        count = min(max(round(len(of_class) * test_fraction), 1), len(of_class) - 1)
        test = set(np.random.default_rng((seed, label)).permutation(len(of_class))[:count].tolist())
        for index, file in enumerate(of_class):
            splits["test" if index in test else "train"].append(file)
    return splits


def _folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(place: Path) -> list[Path]:
    """Lists the files in a folder and its subfolders. Links are followed, and broken links are listed too."""
    if not place.is_dir():
        return []
    return sorted(path for path in place.rglob("*") if path.is_file() or (path.is_symlink() and not path.exists()))
