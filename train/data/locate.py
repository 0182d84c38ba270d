"""Where prepared datasets are. Importing this module is quick, so that a wrong name fails at once."""

import os
import re
from pathlib import Path

from train.process.errors import UserError
from w2jax.text import nearest

PREPARABLE = ("mnist", "fashion_mnist", "cifar10", "cifar100")
"""Datasets that `python -m train.prepare` knows by name."""

_BUNDLED = Path(__file__).parent
_HELP = "`python -m train.prepare --help`"
_NAME = re.compile(r"\w+(/\w[\w.+-]*)?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)


def data_dir(directory: str | None) -> Path:
    """The folder of prepared datasets: `directory`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def locate_dataset(name: str, directory: str | None = None) -> Path:
    """The folder of the highest version of a prepared dataset, such as `.../mnist/3.0.1`.

    Args:
        name: `mnist`, or `name/config` for a dataset with configs; `mnist_sample` is bundled and always found.
        directory: folder of prepared datasets; None: see `data_dir`.

    Raises:
        UserError: there is no such dataset; the text gives the command that prepares it, or the nearest names.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--data.name must be a dataset's name such as mnist or name/config, got {name!r}.")
    root = data_dir(directory)
    bundled = prepared_versions(_BUNDLED / name) if directory is None or root.is_dir() else []
    versions = bundled or prepared_versions(root / name)
    if not versions:
        raise UserError(_not_found(name, root))
    return versions[-1]


def prepared_versions(folder: Path) -> list[Path]:
    """Folders of a dataset's prepared versions, lowest first; empty if `folder` is not a dataset's."""
    try:
        versions = [p for p in folder.iterdir() if _VERSION.fullmatch(p.name) and (p / "dataset_info.json").is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"--data.dir: {folder} cannot be read ({error.strerror}). Give another folder.") from error
    return sorted(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def _prepared_names(folder: Path) -> list[str]:
    """Names of the datasets in a folder, or of the configs of a dataset."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and prepared_versions(path))


def _not_found(name: str, root: Path) -> str:
    """The error for a dataset that is not prepared."""
    if root.exists() and not root.is_dir():
        return f"--data.dir must be a folder of prepared datasets, got the file {root}."
    if prepared_versions(_BUNDLED / name):
        return f"--data.dir: there is no folder {root}. Leave the option out: {name} is bundled."
    where = f"{root}" if root.is_dir() else f"{root} (there is no such folder)"
    base = name.partition("/")[0]
    prepared = _prepared_names(root) if root.is_dir() else []
    if name == base and (root / name).is_dir() and (configs := _prepared_names(root / name)):
        choices = " or ".join(f"{name}/{config}" for config in configs)
        return f"dataset {name} in {root} has configs. Choose one by --data.name {choices}."
    if name in PREPARABLE:
        return (
            f"dataset {name} is not prepared in {where}. "
            f"Run `{prepare_command(name, root)}`, or give its folder by --data.dir."
        )
    known = sorted({*prepared, *PREPARABLE, "mnist_sample"})
    near = nearest(name, known, 3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known are {', '.join(known)}."
    return f"there is no dataset {name} in {where}. {hint} Else give its folder by --data.dir, or prepare it: {_HELP}."


def prepare_command(name: str, root: Path, *options: str) -> str:
    """The shell command that prepares a dataset in `root`."""
    place = () if root == data_dir(None) else ("--data-dir", str(root))
    return " ".join(("python -m train.prepare", name, *place, *options))


def rewrite_hint(name: str, root: Path) -> str:
    """How to rewrite a dataset in `root` that is stored in another format."""
    if name in PREPARABLE:
        return f"Run `{prepare_command(name, root, '--overwrite')}`."
    return f"Run `tfds build {name} --file_format=array_record --overwrite` where TensorFlow is installed."
