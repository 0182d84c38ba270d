"""Finds the folders of the splits and of the classes in a folder of images."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from unicodedata import normalize

from train.data.image_files import is_hidden
from train.process.errors import UserError
from w2jax.text import first_few, one_line

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "eval": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_roots(place: Path) -> dict[str, Path]:
    """Returns the folder of each split, `train` first; empty if `place` contains one folder for each class."""
    folders = _folders(place)
    named = _named_splits(folders)
    if "train" not in named or len(named) == 1:
        for name in folders if len(folders) > 1 else ():
            inner = _folders(place / name)
            if len(_named_splits(inner)) > 1:
                message = (
                    f"--from: a class must not contain splits, but {place / name} contains {first_few(inner)}. "
                    "Make one folder for each split, and in it one folder for each class."
                )
            elif name.lower() in _SPLITS and len(inner) > 1:
                message = (
                    f"--from: {place / name} has the name of a split and contains folders, but train or the other "
                    f"splits are missing, got {first_few(folders)}. Name the splits train, val and test. If it is a "
                    "class, rename it."
                )
            else:
                continue
            raise UserError(one_line(message))
        return {}
    for split, names in named.items():
        if len(names) > 1:
            raise UserError(
                f"--from: {place} must have one folder for the split {split}, got {first_few(names)}. Keep one of them."
            )
    if "test" not in named:
        named["test"] = named.pop("validation")
    return {split: place / named[split][0] for split in ("train", "validation", "test") if split in named}


def _named_splits(folders: Iterable[str]) -> dict[str, list[str]]:
    """Returns the folders that have the name of a split, by split."""
    named = defaultdict(list)
    for name in folders:
        if name.lower() in _SPLITS:
            named[_SPLITS[name.lower()]].append(name)
    return dict(named)


def class_folders(root: Path) -> dict[str, Path]:
    """Returns the folder of each class by its name, sorted.

    The names are in Unicode's NFC form, because macOS and Linux may store the same name with other code points.

    Raises:
        UserError: a name is not possible, or two folders have the same name in NFC.
    """
    folders: dict[str, Path] = {}
    for name in _folders(root):
        if not name.isprintable() or name != name.strip():
            raise UserError(
                f"--from: class names must be one printable line without spaces at the ends, got the folder {name!r}."
            )
        other = folders.setdefault(normalize("NFC", name), root / name).name
        if other != name:
            raise UserError(
                f"--from: the classes in {root} must have different names, got {other!a} and {name!a}, which "
                "look the same. Put their images into one folder."
            )
    return dict(sorted(folders.items()))


def class_names(train: Path, folders: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """Returns the names of the classes. Raises UserError if there are fewer than 2, or train lacks one.

    Args:
        train: the folder of the split `train`.
        folders: for each split, the result of `class_folders`.
    """
    classes = list(folders["train"])
    if len(classes) < 2:
        message = (
            f"--from: {train} must contain at least 2 folders, one for each class, got {len(classes)}"
            f"{''.join(f' ({name})' for name in classes)}."
        )
        if classes and len(_folders(inner := folders["train"][classes[0]])) > 1:
            message += f" If the classes are in that folder, pass --from {shlex.quote(str(inner))}."
        raise UserError(one_line(message))
    for of_split in folders.values():
        if unknown := [folder for name, folder in of_split.items() if name not in classes]:
            names = ", ".join(folder.name for folder in unknown)
            raise UserError(f"--from: {unknown[0].parent} has classes that are missing in train: {names}.")
    return classes


def _folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir() and not is_hidden(path.name))
