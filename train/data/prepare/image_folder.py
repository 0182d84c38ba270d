"""Makes a dataset from a user's own images, with one folder for each class."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from train.data.decode import IMAGE_ERRORS, MODES, inspect_image, read_image_bytes
from train.data.image_files import HIDDEN, LeftOut, describe, is_hidden, list_images
from train.data.prepare.class_folders import class_folders, class_names, split_roots
from train.data.prepare.tfds_writer import Dataset, DatasetMetadata, Example
from train.process.errors import UserError
from w2jax.text import count_of, one_line

VERSION = "1.0.0"
"""Version of every dataset that is made from a folder."""

_NOT_READ = "cannot be read as an image"
Files = list[tuple[Path, int]]
"""Image files with their labels."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder."""

    place: Path
    """The folder."""
    classes: list[str]
    """Names of the classes; classes[k] is the name of label k."""
    splits: dict[str, Files]
    """The files of each split."""
    roots: dict[str, Path]
    """The folder of each split; empty if the images were split here."""
    corrupt: list[str]
    """Files that cannot be used as images, each with the reason."""
    left_out: list[LeftOut]
    """Every file below the folder that is not in a split."""
    copies: list[str]
    """Messages about files with the same content in two splits or in two classes."""
    shape: tuple[int | None, int | None, int]
    """(h, w, C) of the images. h and w are None if images differ in size. C is 1 if all images are gray, else 3."""

    def table(self) -> list[str]:
        """Returns lines with the number of images in each class and split."""
        counts = {split: Counter(label for _, label in files) for split, files in self.splits.items()}
        rows = [["class", *counts]]
        rows += [[name, *(str(count[k]) for count in counts.values())] for k, name in enumerate(self.classes)]
        rows.append(["(all)", *(str(count.total()) for count in counts.values())])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join([row[0].ljust(widths[0]), *(x.rjust(n) for x, n in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]


def scan(place: Path, test_fraction: float, seed: int) -> ImageFolder:
    """Opens and checks every image in a folder.

    The folder contains either one folder for each class, or one folder for each split, which contains one folder for
    each class. The split `train` and one more must exist. Without a folder for the split `test`, `validation` becomes
    the split `test`.

    Args:
        place: the folder.
        test_fraction: fraction of each class for the test split, if there are no folders for the splits.
        seed: seed for choosing the test images. The choice depends only on the seed and the names of the valid images.

    Raises:
        UserError: the folder does not exist or has fewer than 2 classes, a class has too few images, or it is not clear
            which folders are splits.
    """
    if not place.is_dir():
        raise UserError(
            f'--from must be a folder with one folder of images for each class, but "{place}" is not a folder.'
        )
    given = split_roots(place)
    roots = given or {"train": place}
    folders = {split: class_folders(root) for split, root in roots.items()}
    classes = class_names(roots["train"], folders)
    left_out = _outside(place, {root.name for root in given.values()}) if given else []
    for split, root in roots.items():
        left_out += _outside(root, {folder.name for folder in folders[split].values()})
    splits, corrupt, properties, digests = defaultdict(list), [], [], {}
    for split in roots:
        for label, name in enumerate(classes):
            if name not in folders[split]:
                continue
            found = list_images(folders[split][name])
            left_out += found.left_out
            failed = list(found.unreadable)
            for path in found.images:
                try:
                    properties.append(inspect_image(path))
                    digests[path] = _digest(path)
                    splits[split].append((path, label))
                except IMAGE_ERRORS as error:
                    failed.append(LeftOut(path, str(error)))
            corrupt += [one_line(f"{path} ({reason})") for path, reason in failed]
            left_out += [LeftOut(path, _NOT_READ) for path, _ in failed]
    _check_counts(roots, folders, classes, splits, left_out, minimum=1 if given else 2)
    if not given:
        splits = _split_classes(splits["train"], classes, test_fraction, seed)
    grays, sizes = {gray for gray, _ in properties}, {size for _, size in properties}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    return ImageFolder(
        place,
        classes,
        dict(splits),
        given,
        corrupt,
        left_out,
        _copies(splits, classes, digests),
        (height, width, 1 if all(grays) else 3),
    )


def dataset(name: str, folder: ImageFolder) -> Dataset:
    """Returns a dataset to write. Image files are stored unchanged, unless `decode` needs another encoding."""
    features = {
        "image": tfds.features.Image(shape=folder.shape),
        "label": tfds.features.ClassLabel(names=folder.classes),
        "file_name": tfds.features.Text(),
    }
    splits = {split: _examples(files, MODES[folder.shape[-1]], folder.place) for split, files in folder.splits.items()}
    description = f"Images of {count_of(len(folder.classes), 'class')}, prepared from a folder."
    return DatasetMetadata(name, VERSION, features, description), splits


def _examples(files: Iterable[tuple[Path, int]], mode: str, place: Path) -> Iterator[Example]:
    """Yields the examples. The name of a file is relative to `place`, such as cat/IMG_1.jpg."""
    for path, label in files:
        name = one_line(path.relative_to(place).as_posix())
        yield {"image": read_image_bytes(path, mode), "label": label, "file_name": name}


def _outside(place: Path, used: set[str]) -> list[LeftOut]:
    """Returns the files in `place` that are not in one of the folders `used`."""
    left_out = []
    for path in sorted(place.iterdir()):
        if path.name in used and path.is_dir():
            continue
        reason = HIDDEN if is_hidden(path.name) else "not in the folder of a class"
        if path.is_dir():
            found = list_images(path)
            files = [*found.images, *(entry.path for entry in (*found.left_out, *found.unreadable))]
            left_out += [LeftOut(file, reason) for file in files]
        else:
            left_out.append(LeftOut(path, reason))
    return left_out


def _check_counts(
    roots: Mapping[str, Path],
    folders: Mapping[str, Mapping[str, Path]],
    classes: list[str],
    splits: Mapping[str, Files],
    left_out: Iterable[LeftOut],
    minimum: int,
) -> None:
    """Raises UserError if a class has fewer than `minimum` images in train, or another split has no image."""
    counts = Counter(label for _, label in splits.get("train", []))
    for label, name in enumerate(classes):
        if counts[label] < minimum:
            needed = "2 readable images (one for training, one for testing)" if minimum == 2 else "1 readable image"
            raise UserError(
                f"--from: class {name} must have at least {needed}, got {counts[label]}. "
                f"{_contents(folders['train'][name], left_out)}"
            )
    for split, root in roots.items():
        if not splits.get(split):
            raise UserError(
                f"--from: the class folders in {root} contain no readable image. {_contents(root, left_out)}"
            )


def _contents(place: Path, left_out: Iterable[LeftOut]) -> str:
    """Says what else is in a folder."""
    lines = describe(entry for entry in left_out if entry.path.is_relative_to(place))
    return f"Left out in {place}: {'; '.join(lines)}." if lines else f"There is no other file in {place}."


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def _copies(splits: Mapping[str, Files], classes: list[str], digests: Mapping[Path, bytes]) -> list[str]:
    """Reports files with the same content in two splits, which makes the test too easy, or in two classes."""
    messages = []
    for one, other in combinations(splits, 2):
        known = {digests[path]: path for path, _ in splits[one]}
        pairs = [(path, known[digests[path]]) for path, _ in splits[other] if digests[path] in known]
        if pairs:
            messages.append(
                f"images of {other} that are also in {one}: {len(pairs)} of {len(splits[other])}. The files have the "
                f"same content, such as {pairs[0][0]} and {pairs[0][1]}"
            )
    labels, first = defaultdict(set), {}
    for path, label in (file for files in splits.values() for file in files):
        labels[digests[path]].add(label)
        first.setdefault(digests[path], path)
    several = [digest for digest, of_file in labels.items() if len(of_file) > 1]
    if several:
        names = " and ".join(classes[label] for label in sorted(labels[several[0]]))
        messages.append(
            f"images that are in more than one class: {len(several)}. The files have the same content, such as "
            f"{first[several[0]]} in {names}"
        )
    return [one_line(message) for message in messages]


def _split_classes(files: Files, classes: list[str], test_fraction: float, seed: int) -> dict[str, Files]:
    """Splits each class separately. The result depends only on the files of the class and the seed."""
    if not 0 < test_fraction < 1:
        raise UserError(f"--test-fraction must be between 0 and 1, got {test_fraction}.")
    splits: dict[str, Files] = {"train": [], "test": []}
    for label in range(len(classes)):
        of_class = [file for file in files if file[1] == label]
        count = min(max(round(len(of_class) * test_fraction), 1), len(of_class) - 1)
        test = set(np.random.default_rng((seed, label)).permutation(len(of_class))[:count].tolist())
        for index, file in enumerate(of_class):
            splits["test" if index in test else "train"].append(file)
    return splits
