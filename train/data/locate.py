"""Where prepared datasets lie. Imports nothing heavy, so that a wrong name is answered at once."""

import difflib
import os
import re
from pathlib import Path

from train.process.errors import UserError

PREPARABLE = ("mnist", "fashion_mnist", "cifar10", "cifar100")
"""Datasets that `python -m train.prepare` knows by name."""

_BUNDLED = Path(__file__).parent
_HELP = "`python -m train.prepare --help`"
_NAME = re.compile(r"\w+(/\w[\w.+-]*)?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)


def data_dir(directory: str | None) -> Path:
    """The folder of prepared datasets: `directory`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find(name: str, directory: str | None = None) -> Path:
    """The folder of the highest version of a prepared dataset, such as `.../mnist/3.0.1`.

    Args:
        name: `mnist`, or `name/config` for a dataset that has configs; `mnist_sample` is always found.
        directory: folder of prepared datasets; None: see `data_dir`.

    Raises:
        UserError: there is no such dataset, with the command that prepares it or the nearest names.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--data.name: wanted a dataset's name such as mnist or name/config, got {name!r}")
    root = data_dir(directory)
    bundled = versions(_BUNDLED / name) if directory is None or root.is_dir() else []
    found = bundled or versions(root / name)
    if not found:
        raise UserError(_missing(name, root))
    return found[-1]


def versions(folder: Path) -> list[Path]:
    """Folders of a dataset's prepared versions, lowest first; none where the folder is not a dataset's."""
    try:
        found = [p for p in folder.iterdir() if _VERSION.fullmatch(p.name) and (p / "dataset_info.json").is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"--data.dir: {folder} cannot be read ({error.strerror}); give another folder") from error
    return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))


def _subfolders(folder: Path) -> list[str]:
    """Names of the datasets in a folder, or of the configs of a dataset."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and versions(path))


def _missing(name: str, root: Path) -> str:
    """What to tell a user whose dataset is not there."""
    if root.exists() and not root.is_dir():
        return f"--data.dir: wanted a folder of prepared datasets, got the file {root}"
    if versions(_BUNDLED / name):
        return f"--data.dir: there is no folder {root}; {name} is bundled and needs none"
    where = f"{root}" if root.is_dir() else f"{root} (there is no such folder)"
    base = name.partition("/")[0]
    prepared = _subfolders(root) if root.is_dir() else []
    if name == base and (root / name).is_dir() and (configs := _subfolders(root / name)):
        choices = " or ".join(f"{name}/{config}" for config in configs)
        return f"dataset {name} in {root} has configs; give one: --data.name {choices}"
    if name in PREPARABLE:
        return (
            f"dataset {name} is not prepared in {where}; run `{command(name, root)}`, or say where it is by --data.dir"
        )
    known = sorted({*prepared, *PREPARABLE, "mnist_sample"})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}" if near else f"known are {', '.join(known)}"
    return f"there is no dataset {name} in {where}; {hint}; or name its folder by --data.dir, or prepare it: {_HELP}"


def command(name: str, root: Path, *options: str) -> str:
    """The shell command that prepares a dataset in `root`."""
    place = () if root == data_dir(None) else ("--data-dir", str(root))
    return " ".join(("python -m train.prepare", name, *place, *options))


def rewrite(name: str, root: Path) -> str:
    """What to do about a dataset in `root` that is stored in another form."""
    if name in PREPARABLE:
        return f"run `{command(name, root, '--overwrite')}`"
    return f"with TensorFlow installed, run `tfds build {name} --file_format=array_record --overwrite`"
