"""Prepares a dataset for training. Every task can use it, and TensorFlow is not
needed.

    python -m train.prepare mnist
    python -m train.prepare folder --from DIR --name my_images

The forms of the command:

    python -m train.prepare mnist|fashion_mnist|cifar10|cifar100 [--from DIR]
        [--data-dir DIR] [--overwrite]
    python -m train.prepare folder --from DIR --name NAME [--test-fraction 0.2]
        [--seed 0] [--skip-corrupt] [--data-dir DIR] [--overwrite]

The first form downloads the published files. With --from DIR, it reads them
from the folder DIR instead. The second form prepares your own images. DIR
contains one folder of images per class. Or it contains the folders train and
test or val (or all three), each with one folder per class.

For the options, run `python -m train.prepare mnist --help` or
`python -m train.prepare folder --help`.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from train.config.cli import read_options, run_main
from train.data.locate import PREPARABLE, data_dir, prepared_versions, version_numbers
from train.process.errors import UserError
from w2jax.text import nearest, one_line, printable

if TYPE_CHECKING:
    from train.data.prepare.tfds_writer import Dataset, DatasetMetadata

_RESERVED = (*PREPARABLE, "mnist_sample", "folder", "downloads")

_DataDir = Annotated[str | None, tyro.conf.arg(aliases=("--data.dir",), metavar="DIR")]  # the trainings' spelling


@dataclass(frozen=True)
class DownloadOptions:
    """Prepares a published dataset from its original files, downloaded or read from a folder."""

    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="DIR")] = None
    """Folder with the original files. Default: download the files.
    MNIST, Fashion-MNIST: idx files, gzipped or not; CIFAR: the binary version, as .tar.gz or extracted."""
    data_dir: _DataDir = None
    """Folder for the prepared datasets; default: $TFDS_DATA_DIR if set, else ~/tensorflow_datasets."""
    overwrite: bool = False
    """Replace the dataset if it is already prepared. Otherwise the command stops with an error."""


@dataclass(frozen=True)
class FolderOptions:
    """Prepares your own images: one folder per class, or folders train, val and test with one folder per class."""

    source: Annotated[Path, tyro.conf.arg(name="from", metavar="DIR")]
    """Folder with the images: one folder per class, or folders train, val and test with one folder per class."""
    name: str
    """Name of the new dataset: lower-case letters, digits and underscores. --data.name uses it."""
    test_fraction: float = 0.2
    """Fraction of each class's images in the test split. Not used if there are folders for the splits."""
    seed: int = 0
    """Random seed for choosing the images of the test split."""
    skip_corrupt: bool = False
    """Skip files that cannot be read as images, and list them. Otherwise the command stops with an error."""
    data_dir: _DataDir = None
    """Folder for the prepared datasets; default: $TFDS_DATA_DIR if set, else ~/tensorflow_datasets."""
    overwrite: bool = False
    """Replace the dataset if it is already prepared. Otherwise the command stops with an error."""


def dataset_from_folder(options: FolderOptions) -> "Dataset":
    """Reads a folder of images as a dataset, and prints what it contains and which files are left out.

    Raises:
        UserError: for the reasons of `image_folder.scan`, or if a file cannot be read as an image.
    """
    from train.data.image_files import describe
    from train.data.prepare import image_folder

    if options.seed < 0:
        raise UserError(f"--seed must be at least 0, got {options.seed}")
    folder = image_folder.scan(options.source, options.test_fraction, options.seed)
    if folder.corrupt and not options.skip_corrupt:
        more = f" and {len(folder.corrupt) - 9} more" if len(folder.corrupt) > 9 else ""
        raise UserError(
            f"files that cannot be read as images: {len(folder.corrupt)}, {', '.join(folder.corrupt[:9])}{more}. "
            "Repair or remove them, or skip them with --skip-corrupt."
        )
    for file in folder.corrupt:
        print(printable(f"skipped, cannot be read as an image: {file}"))
    for split, root in folder.roots.items():
        print(printable(f"split {split}: the folder {root}"))
    print(printable("\n".join(folder.table())))
    for line in describe(folder.left_out):
        print(printable(f"left out, {line}"))
    for line in folder.copies:
        print(printable(f"warning: {line}"))
    return image_folder.dataset(options.name, folder)


def _check_name(name: str) -> None:
    """Raises UserError if a user's dataset cannot have this name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in _RESERVED:
        allowed = f"lower-case letters, digits and underscores, and not one of {', '.join(_RESERVED)}"
        raise UserError(f"--name must be {allowed}, got {name!r}.")


def _writable_root(name: str, directory: str | None, overwrite: bool) -> Path:
    """The folder of prepared datasets. Raises UserError if dataset `name` cannot be written there."""
    root = data_dir(directory)
    if root.exists() and not root.is_dir():
        raise UserError(f"--data-dir must be a folder, got the file {root}.")
    if not overwrite and (existing := prepared_versions(root / name)):
        raise UserError(f"dataset {name} is already prepared in {existing[-1]}. Replace it with --overwrite.")
    return root


def _check_is_highest(name: str, version: str, root: Path) -> None:
    """Raises UserError if training would read another version of the dataset than the one that is written."""
    existing = prepared_versions(root / name)
    if existing and version_numbers(existing[-1].name) > version_numbers(version):
        raise UserError(
            f"dataset {name} is also prepared in {existing[-1]}, and training reads the highest version, but this "
            f"command writes version {version}. Remove {existing[-1]}, or use another name or --data-dir."
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command. Prints where the dataset is and how to train on it."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return
    choices = (*PREPARABLE, "folder")
    if name not in choices:
        near = nearest(name, choices)
        hint = f"Did you mean {near[0]}?" if near else "Prepare your own images with `folder`."
        raise UserError(f"the dataset must be one of {', '.join(choices)}, got {name!r}. {hint}")
    options = read_options(FolderOptions if name == "folder" else DownloadOptions, f"train.prepare {name}", rest)
    if isinstance(options, FolderOptions):
        name = options.name
        _check_name(name)
    root = _writable_root(name, options.data_dir, options.overwrite)
    import tensorflow_datasets as tfds  # Imported late, so that wrong options give an error without a wait.

    from train.data.prepare.downloads import DOWNLOADS, open_raw_files
    from train.data.prepare.tfds_writer import write

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if isinstance(options, FolderOptions):
        from train.data.prepare.image_folder import VERSION

        _check_is_highest(name, VERSION, root)
        metadata, splits = dataset_from_folder(options)
    else:
        metadata, splits = DOWNLOADS[name].read(open_raw_files(DOWNLOADS[name], options.source, root))
        _check_is_highest(name, metadata.version, root)
    target = write(metadata, splits, root)
    print(one_line(f"wrote {target}. To train on it: {training_command(metadata, options.data_dir)}"))
    if isinstance(options, FolderOptions):
        print(one_line(f"To fine-tune pretrained weights on it: {finetuning_command(name, options.data_dir)}"))


def training_command(metadata: "DatasetMetadata", directory: str | None) -> str:
    """The command that trains a Vision Transformer on a prepared dataset."""
    from configs.vit import PRESETS
    from w2jax.vit import patch_sides

    words = ["python", "-m", "train.vit"]
    if metadata.name in PRESETS:
        words.append(metadata.name)
    else:
        model, features = PRESETS["sample"].config.model, metadata.features
        sides: Any = features["image"].shape
        label: Any = features["label"]
        words += ["--data.name", metadata.name]
        patch = patch_sides(model.patch_size)
        if any(side is None or side % part for side, part in zip(sides[:2], patch, strict=True)):
            words += ["--data.image-size", *(str(8 * part) for part in patch)]
        if label.num_classes != model.num_classes:
            words += ["--model.num-classes", str(label.num_classes)]
    return shlex.join([*words, *_place(directory)])


def finetuning_command(name: str, directory: str | None) -> str:
    """The command that fine-tunes weights, a file or the name of a model on the hub, on a prepared dataset."""
    return f"python -m train.vit --init-from WEIGHTS {shlex.join(['--data.name', name, *_place(directory)])}"


def _place(directory: str | None) -> list[str]:
    return ["--data.dir", directory] if directory else []


if __name__ == "__main__":
    run_main(main)
