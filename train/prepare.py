"""Prepares a dataset once, for every task; TensorFlow is not needed.

    python -m train.prepare mnist|fashion_mnist|cifar10|cifar100 [--from DIR] [--data-dir DIR] [--overwrite]
    python -m train.prepare folder --from DIR --name NAME [--test-fraction 0.2] [--seed 0] [--skip-corrupt]
                                   [--data-dir DIR] [--overwrite]

The first form downloads the published files, or takes them from DIR. The second takes your own JPEG and PNG images from
DIR, which holds one folder for each class, or the folders train and test with those.
`python -m train.prepare NAME --help` explains the options.
"""

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from train.config.cli import read_options, run_main
from train.data.locate import PREPARABLE, data_dir, versions
from train.process.errors import UserError

if TYPE_CHECKING:
    from train.data.prepare.tfds_writer import Card, Dataset

_TAKEN = (*PREPARABLE, "mnist_sample", "folder", "downloads")


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


def own_images(options: Own) -> "Dataset":
    """A folder of images as a dataset to write; files that are left out are printed.

    Raises:
        UserError: the folder is not as wanted, or a file is no whole image.
    """
    from train.data.prepare import image_folder

    found = image_folder.scan(options.source, options.test_fraction, options.seed)
    if found.corrupt and not options.skip_corrupt:
        more = f" and {len(found.corrupt) - 9} more" if len(found.corrupt) > 9 else ""
        raise UserError(
            f"{len(found.corrupt)} files are no whole images: {', '.join(found.corrupt[:9])}{more}; "
            "mend or remove them, or leave them out by --skip-corrupt"
        )
    for file in found.corrupt:
        print(f"left out, no whole image: {file}")
    if found.ignored:
        print(
            f"left out, neither .jpg nor .png: {len(found.ignored)} files such as {image_folder.shown(found.ignored[0])}"
        )
    return image_folder.dataset(options.name, found)


def _plain(name: str) -> str:
    """The name, once it is clear that a dataset of the user's own may be called so."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in _TAKEN:
        wanted = f"lower case letters, digits and underscores, and none of {', '.join(_TAKEN)}"
        raise UserError(f"--name: wanted {wanted}; got {name!r}")
    return name


def _free(name: str, directory: str | None, overwrite: bool) -> Path:
    """The folder of prepared datasets, once it is clear that `name` may be written there."""
    root = data_dir(directory)
    if root.exists() and not root.is_dir():
        raise UserError(f"--data-dir: wanted a folder, got the file {root}")
    if not overwrite and (there := versions(root / name)):
        raise UserError(f"dataset {name} is prepared already, in {there[-1]}; replace it by --overwrite")
    return root


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
    options = read_options(Own if name == "folder" else Published, f"train.prepare {name}", rest)
    if isinstance(options, Own):
        name = _plain(options.name)
    root = _free(name, options.data_dir, options.overwrite)
    import tensorflow_datasets as tfds  # Imported late: a mistake is answered first.

    from train.data.prepare.downloads import KNOWN, raw_files
    from train.data.prepare.tfds_writer import write

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if isinstance(options, Own):
        card, splits = own_images(options)
    else:
        card, splits = KNOWN[name].read(raw_files(KNOWN[name], options.source, root))
    target = write(card, splits, root)
    print(f"wrote {target}; train on it: {training_command(card, options.data_dir)}")


def training_command(card: "Card", directory: str | None) -> str:
    """The command that trains a Vision Transformer on a prepared dataset."""
    from configs.vit import PRESETS

    words = ["python -m train.vit"]
    if card.name in PRESETS:
        words.append(card.name)
    else:
        model, features = PRESETS["sample"].config.model, card.features
        sides: Any = features["image"].shape
        label: Any = features["label"]
        words.append(f"--data.name {card.name}")
        if any(side is None or side % model.patch_size for side in sides[:2]):
            words.append(f"--data.image-size {8 * model.patch_size} {8 * model.patch_size}")
        if label.num_classes != model.num_classes:
            words.append(f"--model.num-classes {label.num_classes}")
    return " ".join([*words, *([f"--data.dir {directory}"] if directory else [])])


if __name__ == "__main__":
    run_main(main)
