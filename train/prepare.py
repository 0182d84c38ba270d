"""Prepares a dataset once, for every task; TensorFlow is not needed.

    python -m train.prepare mnist|fashion_mnist|cifar10|cifar100 [--from DIR] [--data-dir DIR] [--overwrite]
    python -m train.prepare folder --from DIR --name NAME [--test-fraction 0.2] [--seed 0] [--skip-corrupt]
                                   [--data-dir DIR] [--overwrite]

The first form downloads the published files, or reads them from DIR. The second reads your own JPEG and PNG images from
DIR, which has one folder for each class, or the folders train and test with those.
`python -m train.prepare NAME --help` explains the options.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from train.config.cli import read_options, run_main
from train.data.locate import PREPARABLE, data_dir, prepared_versions
from train.process.errors import UserError
from w2jax.text import nearest, one_line

if TYPE_CHECKING:
    from train.data.prepare.tfds_writer import Dataset, DatasetMetadata

_RESERVED = (*PREPARABLE, "mnist_sample", "folder", "downloads")


@dataclass(frozen=True)
class DownloadOptions:
    """Prepares a published dataset from its files, which are downloaded or read from a folder."""

    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder of the raw files: MNIST's idx files, gzipped or not; CIFAR's binary version, extracted or its .tar.gz."""
    data_dir: str | None = None
    """Folder of prepared datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    overwrite: bool = False
    """Replace the dataset if it is already prepared."""


@dataclass(frozen=True)
class FolderOptions:
    """Prepares your own images: one folder for each class, or folders train and test with those."""

    source: Annotated[Path, tyro.conf.arg(name="from")]
    """Folder of the images."""
    name: str
    """Name for the dataset: lower case letters, digits and underscores."""
    test_fraction: float = 0.2
    """Fraction of each class for the test split, if there are no folders train and test."""
    seed: int = 0
    """Seed that chooses the test split."""
    skip_corrupt: bool = False
    """Skip and list files that are not complete images, instead of stopping."""
    data_dir: str | None = None
    """Folder of prepared datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    overwrite: bool = False
    """Replace the dataset if it is already prepared."""


def dataset_from_folder(options: FolderOptions) -> "Dataset":
    """A folder of images as a dataset to write; prints the files that are skipped.

    Raises:
        UserError: as `image_folder.scan`, or a file is not a complete image.
    """
    from train.data.prepare import image_folder

    folder = image_folder.scan(options.source, options.test_fraction, options.seed)
    if folder.corrupt and not options.skip_corrupt:
        more = f" and {len(folder.corrupt) - 9} more" if len(folder.corrupt) > 9 else ""
        raise UserError(
            f"{len(folder.corrupt)} files are not complete images: {', '.join(folder.corrupt[:9])}{more}. "
            "Repair or remove them, or skip them by --skip-corrupt."
        )
    for file in folder.corrupt:
        print(f"skipped, not a complete image: {file}")
    if folder.ignored:
        example = one_line(str(folder.ignored[0]))
        print(f"skipped, neither .jpg nor .png: {len(folder.ignored)} files such as {example}")
    return image_folder.dataset(options.name, folder)


def _check_name(name: str) -> None:
    """Raises a UserError unless a user's dataset may have that name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in _RESERVED:
        allowed = f"lower case letters, digits and underscores, and none of {', '.join(_RESERVED)}"
        raise UserError(f"--name must be {allowed}, got {name!r}.")


def _writable_root(name: str, directory: str | None, overwrite: bool) -> Path:
    """The folder of prepared datasets; UserError if `name` may not be written there."""
    root = data_dir(directory)
    if root.exists() and not root.is_dir():
        raise UserError(f"--data-dir must be a folder, got the file {root}.")
    if not overwrite and (existing := prepared_versions(root / name)):
        raise UserError(f"dataset {name} is already prepared in {existing[-1]}. Replace it by --overwrite.")
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command, and prints where the dataset is and how to train on it."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return
    choices = (*PREPARABLE, "folder")
    if name not in choices:
        near = nearest(name, choices)
        hint = f"Did you mean {near[0]}?" if near else "Prepare your own images by `folder`."
        raise UserError(f"the dataset must be one of {', '.join(choices)}, got {name!r}. {hint}")
    options = read_options(FolderOptions if name == "folder" else DownloadOptions, f"train.prepare {name}", rest)
    if isinstance(options, FolderOptions):
        name = options.name
        _check_name(name)
    root = _writable_root(name, options.data_dir, options.overwrite)
    import tensorflow_datasets as tfds  # Imported late, so that mistakes are reported at once.

    from train.data.prepare.downloads import DOWNLOADS, open_raw_files
    from train.data.prepare.tfds_writer import write

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if isinstance(options, FolderOptions):
        metadata, splits = dataset_from_folder(options)
    else:
        metadata, splits = DOWNLOADS[name].read(open_raw_files(DOWNLOADS[name], options.source, root))
    target = write(metadata, splits, root)
    print(f"wrote {target}; train on it: {training_command(metadata, options.data_dir)}")


def training_command(metadata: "DatasetMetadata", directory: str | None) -> str:
    """The command that trains a Vision Transformer on a prepared dataset."""
    from configs.vit import PRESETS

    words = ["python -m train.vit"]
    if metadata.name in PRESETS:
        words.append(metadata.name)
    else:
        model, features = PRESETS["sample"].config.model, metadata.features
        sides: Any = features["image"].shape
        label: Any = features["label"]
        words.append(f"--data.name {metadata.name}")
        if any(side is None or side % model.patch_size for side in sides[:2]):
            words.append(f"--data.image-size {8 * model.patch_size} {8 * model.patch_size}")
        if label.num_classes != model.num_classes:
            words.append(f"--model.num-classes {label.num_classes}")
    return " ".join([*words, *([f"--data.dir {directory}"] if directory else [])])


if __name__ == "__main__":
    run_main(main)
