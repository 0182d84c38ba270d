"""Finds prepared datasets. Importing this module is quick, so a wrong name gives an error immediately."""

import os
import re
import shlex
from pathlib import Path

from train.process.errors import UserError
from w2jax.text import nearest

PREPARABLE = ("mnist", "fashion_mnist", "cifar10", "cifar100")
"""Names of the published datasets that `python -m train.prepare` can prepare."""

_BUNDLED = Path(__file__).parent
_HELP = "`python -m train.prepare --help`"
_NAME = re.compile(r"\w+(/\w[\w.+-]*)?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)


def data_dir(directory: str | None) -> Path:
    """Returns the folder of prepared datasets: `directory`, or $TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises:
        UserError: it begins with "~" and there is no such home, as for the user of some containers.
    """
    folder = Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    try:
        return folder.expanduser()
    except RuntimeError:
        raise UserError(
            f"the folder of datasets is {folder}, but this user has no such home. Pass --data.dir (or --data-dir for "
            "train.prepare), or set the environment variable TFDS_DATA_DIR"
        ) from None


def locate_dataset(name: str, directory: str | None = None) -> Path:
    """Returns the folder of the highest version of a prepared dataset, such as `.../mnist/3.0.1`.

    Args:
        name: such as `mnist`, or `name/config` for a dataset with configs. `mnist_sample` is bundled and always found.
        directory: folder of prepared datasets. None: the default of `data_dir`.

    Raises:
        UserError: there is no such dataset. The message gives the command that prepares it, or similar names.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--data.name must be a dataset's name such as mnist or name/config, got {name!r}.")
    bundled = prepared_versions(_BUNDLED / name)
    if bundled and directory is None:
        return bundled[-1]
    root = data_dir(directory)
    versions = (bundled if root.is_dir() else []) or prepared_versions(root / name)
    if not versions:
        raise UserError(_not_found(name, root))
    return versions[-1]


def prepared_versions(folder: Path) -> list[Path]:
    """Returns the folders of a dataset's prepared versions, lowest version first; empty if `folder` has none."""
    try:
        versions = [p for p in folder.iterdir() if _VERSION.fullmatch(p.name) and (p / "dataset_info.json").is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"--data.dir: {folder} cannot be read ({error.strerror}). Pass another folder.") from error
    return sorted(versions, key=lambda path: version_numbers(path.name))


def version_numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version such as 3.0.1, so that versions can be compared."""
    return tuple(map(int, version.split(".")))


def _prepared_names(folder: Path) -> list[str]:
    """Returns the names of the datasets in a folder, or of the configs of a dataset."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and prepared_versions(path))


def _not_found(name: str, root: Path) -> str:
    """Returns the error message for a dataset that is not prepared."""
    if root.exists() and not root.is_dir():
        return f"--data.dir must be a folder of prepared datasets, got the file {root}."
    if prepared_versions(_BUNDLED / name):
        return f"--data.dir: the folder {root} does not exist. Omit the option, because {name} is bundled."
    where = f"{root}" if root.is_dir() else f"{root} (this folder does not exist)"
    base = name.partition("/")[0]
    prepared = _prepared_names(root) if root.is_dir() else []
    if name == base and (root / name).is_dir() and (configs := _prepared_names(root / name)):
        choices = " or ".join(f"{name}/{config}" for config in configs)
        return f"dataset {name} in {root} has configs. Choose one with --data.name {choices}."
    if name in PREPARABLE:
        return (
            f"dataset {name} is not prepared in {where}. "
            f"Run `{prepare_command(name, root)}`, or set --data.dir to the folder that contains it."
        )
    known = sorted({*prepared, *PREPARABLE, "mnist_sample"})
    near = nearest(name, known, 3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known datasets are {', '.join(known)}."
    return (
        f"there is no dataset {name} in {where}. {hint} If {name} is in another folder, set --data.dir to that folder. "
        f"To prepare a dataset, see {_HELP}."
    )


def prepare_command(name: str, root: Path, *options: str) -> str:
    """Returns the shell command that prepares a dataset in `root`."""
    try:
        is_default = root == data_dir(None)
    except UserError:
        is_default = False
    place = () if is_default else ("--data-dir", str(root))
    return shlex.join(("python", "-m", "train.prepare", name, *place, *options))


def rewrite_hint(name: str, root: Path) -> str:
    """Tells the user how to rewrite a dataset in `root` that is stored in another format."""
    if name in PREPARABLE:
        return f"Run `{prepare_command(name, root, '--overwrite')}`."
    return f"Run `tfds build {name} --file_format=array_record --overwrite` in an environment with TensorFlow."
