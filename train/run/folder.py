"""The run folder: creates it, checks that it belongs to the config, and locks it for one process."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unicodedata import normalize

import jax

from configs.base import Config
from configs.options import Rule
from train.config.flat import differing, flatten
from train.config.options import names_with
from train.config.tasks import task_of
from train.config.tree import config_from_tree, config_to_tree, default_tree, flat_config
from train.process.distributed import barrier, is_main_process
from train.process.errors import RunStopped, UserError
from train.run.atomic import write_atomic
from train.run.files import (
    CHECKPOINTS,
    CONFIG,
    IMAGES,
    LOCK,
    METRICS,
    NO_OPTIONS,
    TASK,
    TIMING,
    WANDB,
    read_config_tree,
    read_run_json,
)
from train.run.lock import Lock
from train.run.manifest import checkpoint_steps
from train.run.record import TaskInfo
from w2jax.files import is_temporary
from w2jax.text import first_few, shorten

AnyConfig = TypeVar("AnyConfig", bound=Config)

_MAX_SIDE = 2**14  # pixels; a recurrent model of a higher image would fill the memory


class ImageInfo(NamedTuple):
    """The content of `images.json`: describes the training images, for programs that do not have the dataset."""

    image_shape: tuple[int, int, int]
    """(h, w, C)."""
    label_names: list[str]
    """The name of each class."""


class RunFolder:
    """The folder with all files of a run: config, metrics, checkpoints, report, tensorboard/ and wandb/.

    Use it as a context manager: on exit, the folder is unlocked for other processes.
    """

    def __init__(self, config: Config):
        """Locks `config.run.dir` for this process. Creates the folder, or checks that it belongs to the same config.

        With several processes, the main process creates the folder and the other processes check it.

        Raises:
            UserError: if the folder is a file, cannot be written, is in use, belongs to another config, contains a
                symbolic link, is not visible to every process, or has a path that is not UTF-8.
        """
        self.path = Path(str(config.run.dir))
        _check_path(self.path.absolute())
        self.metrics = self.path / METRICS
        self.timing = self.path / TIMING
        self.checkpoints = self.path / CHECKPOINTS
        self.tensorboard = self.path / "tensorboard"
        self.wandb = self.path / WANDB
        self._config, self._lock = self.path / CONFIG, None
        self._written: dict[str, str] = {}
        try:
            if is_main_process():
                self._create(config)
            barrier("run folder")
            if not is_main_process():
                self._find(config)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"--run.dir must be a folder, but {self.path} is a file or inside a file. Choose another --run.dir"
            ) from None
        except RecursionError:
            raise UserError(f"{self.path} must be a run folder, but its folders are nested too deeply") from None
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {self.path}: {error.strerror}. Choose another --run.dir"
            ) from error

    @property
    def left_by(self) -> str | None:
        """The last process in this folder, if it was killed or crashed; else None."""
        return None if self._lock is None else self._lock.left_by

    def check_in_place(self) -> None:
        """Raises RunStopped if the folder was deleted, moved or replaced. Otherwise a save would create it again."""
        if self._lock is not None and not self._lock.is_in_place():
            raise RunStopped(
                f"the run folder {self.path} was deleted, moved or replaced while the run was training. To resume, "
                "move it back and run the same command again"
            )

    def restore_files(self) -> None:
        """Writes the JSON files of this class again if someone has deleted them."""
        for name, text in self._written.items():
            if not (self.path / name).exists():
                write_atomic(self.path / name, text)

    def record_data(self, info: ImageInfo, fingerprints: Mapping[str, str]) -> None:
        """Writes `images.json`, the file that `read_image_info` reads. `fingerprints` has the fingerprint of
        each split.

        Raises:
            UserError: if the run has a checkpoint and was trained on other data. Its classes would get wrong names.
        """
        content = {**info._asdict(), "fingerprints": dict(fingerprints)}
        if (self.path / IMAGES).exists() and checkpoint_steps(self.checkpoints):
            check_data(self.path, info, fingerprints)
        barrier("data")  # Before the main process replaces the file that the others read.
        self._write_json(IMAGES, content)

    def write_task_info(self, info: TaskInfo) -> None:
        """Writes `task.json`, for programs without the task: what its metrics mean, and facts about the run."""
        self._write_json(TASK, info.as_json())

    def _write_json(self, name: str, content: Any) -> None:
        if is_main_process():
            self._written[name] = json.dumps(content, indent=2) + "\n"
            write_atomic(self.path / name, self._written[name])

    def _create(self, config: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._check(config)
        self._lock = Lock(self.path)
        try:
            self._check(config)  # Again, because another process may have run here before the lock.
            for path in filter(_is_leftover, [*_contents(self.path)]):
                path.unlink()
            content = {"task": task_of(config), **config_to_tree(config)}
            if extensions := self._extensions(config):
                content["extensions"] = extensions
            # Always written, because some options may change on resume. An unwritable folder also fails early here.
            self._write_json(CONFIG, content)
        except BaseException:
            self._lock.release()
            raise

    def _extensions(self, config: Config) -> list[dict[str, int]]:
        """Returns the "extensions" for `config.json`. If this process extends the run, the last one is new."""
        saved = read_config_tree(self.path) if self._config.exists() else {}
        extensions: list[dict[str, int]] = saved.get("extensions", [])
        done, steps = max(checkpoint_steps(self.checkpoints), default=0), flatten(saved).get("run.steps")
        if not done or steps in (None, config.run.steps):
            return extensions
        return [*extensions, {"steps": int(steps), "done": done}]

    def _find(self, config: Config) -> None:
        if not self._config.exists():
            raise UserError(
                "--run.dir must be on a file system that all processes share, but "
                f"process {jax.process_index()} does not see {self.path}, which process 0 created"
            )
        self._check(config)

    def _check(self, config: Config) -> None:
        """Raises UserError if the folder belongs to another run or another program."""
        entries = sorted(self.path.iterdir())
        if links := [str(path.relative_to(self.path)) for path in _contents(self.path) if path.is_symlink()]:
            raise UserError(
                f"{self.path} must not contain symbolic links, got {first_few(links)}. A run writes only inside its "
                "folder. To store the run elsewhere, choose another --run.dir"
            )
        if not self._config.exists():
            # A process that is killed while it starts leaves only these files.
            if any(path.name != LOCK and not _is_leftover(path) for path in entries):
                raise UserError(f"{self.path} is not empty and has no config.json. Choose another --run.dir")
            if config.run.extend:
                raise UserError(
                    f"--run.dir must be the folder of an existing run with --run.extend, got {self.path}. Pass that "
                    "folder"
                )
            return
        try:
            saved = read_config_tree(self.path)
        except UserError as error:
            raise UserError(f"{error}. Choose another --run.dir") from error
        task, other = task_of(config), saved["task"]
        if task is not None and other is not None and other != task:
            raise UserError(f"{self.path} is a run of train.{other}, not of train.{task}. Choose another --run.dir")
        ours = flat_config(config)
        theirs = flatten({name: value for name, value in saved.items() if name not in NO_OPTIONS})
        # An option that did not exist when the folder was created counts as its default.
        theirs = {name: value for name, value in flatten(default_tree(config)).items() if name in ours} | theirs
        # The epochs count only by the number of steps, which is compared too.
        ignored = {"run.epochs", *names_with(config, Rule.CHANGEABLE_ON_RESUME)}
        names = differing(ours, theirs, ignored)
        remedy = "Pass the same options to resume that run"
        if names == ["run.steps"] and isinstance(steps := theirs.get("run.steps"), int) and steps < config.run.steps:
            if config.run.extend:
                return
            remedy = f"To train that run up to step {config.run.steps}, add --run.extend"
        changed = [f"{name} was {theirs.get(name, 'absent')}, now {ours.get(name, 'absent')}" for name in names]
        if changed:
            raise UserError(
                f"{self.path} contains a run with other options: {'; '.join(changed)}. {remedy}. To start a new run, "
                "choose another --run.dir"
            )

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.release()


def has_checkpoint(config: Config) -> bool:
    """Returns whether `config.run.dir` has a checkpoint to resume from."""
    return bool(checkpoint_steps(Path(str(config.run.dir), CHECKPOINTS)))


def _contents(folder: Path) -> Iterator[Path]:
    """Yields all paths in a run folder, except those inside the folder of W&B, which makes links itself."""
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:  # Another process that trains here has deleted an old checkpoint.
        return
    for path in paths:
        yield path
        if path.is_dir() and not path.is_symlink() and path.name != WANDB:
            yield from _contents(path)


def _check_path(path: Path) -> None:
    """Raises UserError for a path that orbax's libraries would change or reject."""
    if "\\" in str(path):
        raise UserError(f"--run.dir must have no backslash, got {path}. Write / between folders")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"--run.dir must be a UTF-8 path, got {str(path)!a}. Choose another --run.dir") from None


def _is_leftover(path: Path) -> bool:
    """Returns whether this is a temporary file of a killed process. Older versions used the name "config.json.new"."""
    return is_temporary(path.name) or path.name == f"{CONFIG}.new"


def check_data(folder: Path, info: ImageInfo, fingerprints: Mapping[str, str]) -> None:
    """Raises UserError if `info` or a fingerprint of a split differs from what the run in `folder` was trained on."""
    recorded, old = read_image_info(folder), read_run_json(folder / IMAGES)
    changed = [
        f"{name} was {shorten(str(before), 200)}, now {shorten(str(now), 200)}"
        for name, before, now in zip(info._fields, recorded, info, strict=True)
        if before != now
    ]
    before = old.get("fingerprints")  # Folders of older versions have none.
    if isinstance(before, dict):
        changed += [f"the examples of {name} changed" for name, now in fingerprints.items() if before.get(name) != now]
    if changed:
        raise UserError(
            f"the dataset is not the one that the run in {folder} was trained on: {'; '.join(changed)}. "
            "Restore the dataset, or choose another --run.dir"
        )


def read_image_info(folder: Path) -> ImageInfo:
    """Reads the description of the images that a run was trained on. Its names are in NFC, like those of a dataset.

    Raises:
        UserError: if `images.json` is missing or damaged.
    """
    path, remedy = folder / IMAGES, "Run the training command again to write the file"
    if not path.exists():
        raise UserError(f"{path} must describe the images of the run, but is missing. {remedy}")
    tree = read_run_json(path)
    match tree.get("image_shape"):
        case [int(h), int(w), (1 | 3 | 4) as c] if 0 < h <= _MAX_SIDE and 0 < w <= _MAX_SIDE:
            shape = (h, w, c)
        case other:
            raise UserError(f"{path}: image_shape must be [height, width, channels], got {other!r:.100}. {remedy}")
    names = tree.get("label_names")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path}: label_names must be a list of names, got {names!r:.100}. {remedy}")
    return ImageInfo(shape, [normalize("NFC", name) for name in names])


def read_config(folder: Path, config_type: type[AnyConfig]) -> AnyConfig:
    """Reads the config of a run. An option that did not exist when the run was created has its default.

    Raises:
        UserError: if `folder` is not a run folder, or its config is not a `config_type`.
    """
    tree = {name: value for name, value in read_config_tree(folder).items() if name not in NO_OPTIONS}
    try:
        return config_from_tree(config_type, tree)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder / CONFIG} is not a config of {config_type.__module__}: {reason}") from error
