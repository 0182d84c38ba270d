"""Prepares a dataset once, for every task; TensorFlow is not needed.

    python -m train.prepare mnist|fashion_mnist|cifar10|cifar100 [--from DIR] [--data-dir DIR] [--overwrite]
    python -m train.prepare folder --from DIR --name NAME [--test-fraction 0.2] [--seed 0] [--skip-corrupt] [--data-dir DIR]

The first form downloads the published files, or takes them from DIR. The second takes your own JPEG and PNG images from
DIR, which holds one folder for each class, or the folders train and test with those. `python -m train.prepare NAME --help`
explains the options.
"""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from train.cli import _first_section, run_main
from train.data.find import PREPARABLE, data_dir, versions
from train.errors import UserError

_TAKEN = (*PREPARABLE, "mnist_sample", "folder", "downloads")
_Options = TypeVar("_Options")


@dataclass(frozen=True)
class Published:
    """Downloads a published dataset, or takes its raw files from a folder, and prepares it."""

    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder of the raw files: MNIST's idx files, gzipped or not; CIFAR's binary version, extracted or its .tar.gz."""
    data_dir: str | None = None
    """Folder of prepared datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    overwrite: bool = False
    """Replace the dataset if it is there already."""


@dataclass(frozen=True)
class Own:
    """Prepares your own images: one folder a class, or train and test folders with those."""

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """Folder of the images."""
    name: str
    """What the dataset shall be called: lower case letters, digits and underscores."""
    test_fraction: float = 0.2
    """Part of each class that becomes the test split, where there are no train and test folders."""
    seed: int = 0
    """Seed of that split."""
    skip_corrupt: bool = False
    """Leave out files that are not whole images, and list them, instead of stopping."""
    data_dir: str | None = None
    """Folder of prepared datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    overwrite: bool = False
    """Replace the dataset if it is there already."""


def prepare_published(name: str, options: Published) -> Path:
    """Prepares one of `PREPARABLE` and returns its folder.

    Raises:
        UserError: it is there already, or a raw file is missing or not what it should be.
        RunStopped: the download failed.
    """
    from train.data import builders, known

    root = _free(name, options.data_dir, options.overwrite)
    published = known.KNOWN[name]
    return builders.write(*published.read(known.raw_files(published, options.source, root)), root)


def prepare_own(options: Own) -> Path:
    """Prepares a folder of images and returns the dataset's folder.

    Raises:
        UserError: the name is taken or not plain, the folder is not as wanted, or a file is no whole image.
    """
    from train.data import builders, folder

    if not re.fullmatch(r"[a-z][a-z0-9_]*", options.name) or options.name in _TAKEN:
        raise UserError(
            f"--name: wanted lower case letters, digits and underscores, and none of {', '.join(_TAKEN)}; "
            f"got {options.name!r}"
        )
    root = _free(options.name, options.data_dir, options.overwrite)
    found = folder.scan(options.source, options.test_fraction, options.seed)
    if found.corrupt and not options.skip_corrupt:
        raise UserError(
            f"{len(found.corrupt)} files are no whole images: {', '.join(found.corrupt)}; "
            "mend or remove them, or leave them out by --skip-corrupt"
        )
    for file in found.corrupt:
        print(f"left out, no whole image: {file}")
    if found.ignored:
        print(f"left out, neither .jpg nor .png: {len(found.ignored)} files such as {found.ignored[0]}")
    return builders.write(*folder.dataset(options.name, found), root)


def _free(name: str, directory: str | None, overwrite: bool) -> Path:
    """The folder of prepared datasets, once it is clear that `name` may be written there."""
    root = data_dir(directory)
    if root.exists() and not root.is_dir():
        raise UserError(f"--data-dir: wanted a folder, got the file {root}")
    if not overwrite and (there := versions(root / name)):
        raise UserError(f"dataset {name} is prepared already, in {there[-1]}; replace it by --overwrite")
    return root


def _options(kind: type[_Options], name: str, arguments: Sequence[str]) -> _Options:
    """The options of one form of the command; a mistake is a UserError of one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            flags = (tyro.conf.FlagCreatePairsOff,)
            return tyro.cli(kind, args=arguments, prog=f"python -m train.prepare {name}", config=flags)
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise UserError(_first_section(errors.getvalue())) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; prints where the dataset is and how to train on it."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return
    choices = (*PREPARABLE, "folder")
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean {near[0]}?" if near else "your own images are prepared by `folder`"
        raise UserError(f"wanted one of {', '.join(choices)}, got {name!r}; {hint}")
    if name == "folder":
        own = _options(Own, name, rest)
        name, directory, target = own.name, own.data_dir, prepare_own(own)
    else:
        published = _options(Published, name, rest)
        directory, target = published.data_dir, prepare_published(name, published)
    place = f" --data.dir {directory}" if directory else ""
    print(f"wrote {target}; train on it: python -m train.vit --data.name {name}{place}")


if __name__ == "__main__":
    run_main(main)
