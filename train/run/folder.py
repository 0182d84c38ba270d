"""The run folder: creates it, checks that it belongs to the config, and locks it for one process."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from configs.base import Config
from configs.options import Rule
from train.config.flat import differing, flatten
from train.config.options import names_with
from train.config.tasks import task_of
from train.config.tree import config_from_tree, config_to_tree, default_tree, flat_config
from train.process.distributed import barrier, is_main_process
from train.process.errors import UserError
from train.run.atomic import write_atomic
from train.run.files import CHECKPOINTS, CONFIG, IMAGES, LOCK, METRICS, TASK, TIMING, read_config_tree
from train.run.lock import Lock
from train.run.manifest import checkpoint_steps
from w2jax.files import is_temporary, read_json

AnyConfig = TypeVar("AnyConfig", bound=Config)


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
        _check_utf8(self.path.absolute())
        self.metrics = self.path / METRICS
        self.timing = self.path / TIMING
        self.checkpoints = self.path / CHECKPOINTS
        self.tensorboard = self.path / "tensorboard"
        self.wandb = self.path / "wandb"
        self._config, self._lock = self.path / CONFIG, None
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
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {self.path}: {error.strerror}. Choose another --run.dir"
            ) from error

    @property
    def left_by(self) -> str | None:
        """The last process in this folder, if it was killed or crashed; else None."""
        return None if self._lock is None else self._lock.left_by

    def write_image_info(self, image_shape: tuple[int, int, int], label_names: Sequence[str]) -> None:
        """Writes `images.json`, the file that `read_image_info` reads."""
        self._write_json(IMAGES, ImageInfo(image_shape, list(label_names))._asdict())

    def write_task_info(self, best_metric: str, best_mode: str, descriptions: Mapping[str, str]) -> None:
        """Writes `task.json`: the metric that ranks runs and what each metric means, for programs without the task."""
        info = {"best_metric": best_metric, "best_mode": best_mode, "metric_descriptions": dict(descriptions)}
        self._write_json(TASK, info)

    def _write_json(self, name: str, content: Any) -> None:
        if is_main_process():
            write_atomic(self.path / name, json.dumps(content, indent=2) + "\n")

    def _create(self, config: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._check(config)
        self._lock = Lock(self.path / LOCK)
        try:
            self._check(config)  # Again, because another process may have run here before the lock.
            for path in filter(_is_leftover, self.path.iterdir()):
                path.unlink()
            # Always written, because some options may change on resume. An unwritable folder also fails early here.
            self._write_json(CONFIG, {"task": task_of(config), **config_to_tree(config)})
        except BaseException:
            self._lock.release()
            raise

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
        if links := [path.name for path in entries if path.is_symlink()]:
            raise UserError(
                f"{self.path} must not contain symbolic links, got {', '.join(links)}. A run writes only inside its "
                "folder. To store the run elsewhere, choose another --run.dir"
            )
        if not self._config.exists():
            # A process that is killed while it starts leaves only these files.
            if any(path.name != LOCK and not _is_leftover(path) for path in entries):
                raise UserError(f"{self.path} is not empty and has no config.json. Choose another --run.dir")
            return
        try:
            saved = read_config_tree(self.path)
        except UserError as error:
            raise UserError(f"{error}. Choose another --run.dir") from error
        task, other = task_of(config), saved.pop("task")
        if task is not None and other is not None and other != task:
            raise UserError(f"{self.path} is a run of train.{other}, not of train.{task}. Choose another --run.dir")
        ours, theirs = flat_config(config), flatten(saved)
        # An option that did not exist when the folder was created counts as its default.
        theirs = {name: value for name, value in flatten(default_tree(config)).items() if name in ours} | theirs
        changed = [
            f"{name} was {theirs.get(name, 'absent')}, now {ours.get(name, 'absent')}"
            for name in differing(ours, theirs, ignored=names_with(config, Rule.CHANGEABLE_ON_RESUME))
        ]
        if changed:
            raise UserError(
                f"{self.path} contains a run with other options: {'; '.join(changed)}. "
                "Pass the same options to resume that run, or choose another --run.dir"
            )

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.release()


def has_checkpoint(config: Config) -> bool:
    """Returns whether `config.run.dir` has a checkpoint to resume from."""
    return bool(checkpoint_steps(Path(str(config.run.dir), CHECKPOINTS)))


def _check_utf8(path: Path) -> None:
    """Raises UserError if the path is not UTF-8. The library that writes checkpoints accepts no other paths."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"--run.dir must be a UTF-8 path, got {str(path)!a}. Choose another --run.dir") from None


def _is_leftover(path: Path) -> bool:
    """Returns whether this is a temporary file of a killed process. Older versions used the name "config.json.new"."""
    return is_temporary(path.name) or path.name == f"{CONFIG}.new"


def read_image_info(folder: Path) -> ImageInfo:
    """Reads the description of the images that a run was trained on.

    Raises:
        UserError: if `images.json` is missing or damaged.
    """
    try:
        tree = read_json(folder / IMAGES)
        height, width, channels = map(int, tree["image_shape"])
        return ImageInfo((height, width, channels), [str(name) for name in tree["label_names"]])
    except (OSError, OverflowError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / IMAGES} must describe the images of the run, but is missing or damaged ({error!r}). "
            "Run the training command again to write the file"
        ) from error


def read_config(folder: Path, config_type: type[AnyConfig]) -> AnyConfig:
    """Reads the config of a run. An option that did not exist when the run was created has its default.

    Raises:
        UserError: if `folder` is not a run folder, or its config is not a `config_type`.
    """
    tree = {name: value for name, value in read_config_tree(folder).items() if name != "task"}
    try:
        return config_from_tree(config_type, tree)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder / CONFIG} is not a config of {config_type.__module__}: {reason}") from error
