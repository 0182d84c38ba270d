"""The folder of a run: the config it belongs to, the process that writes it, and where its files are."""

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
    """The images that a run is trained on, as `images.json` holds them: a later user may not have the dataset."""

    image_shape: tuple[int, int, int]
    """(h, w, C)."""
    label_names: list[str]
    """The name of each class."""


class RunFolder:
    """Everything a run writes: config, metrics, checkpoints, what the report is made of, and tensorboard/ and wandb/.

    A context manager: outside it, another process may claim the folder.
    """

    def __init__(self, config: Config):
        """Claims `config.run.dir`: creates it, or checks that it belongs to the same config.

        Of several processes the first creates it, and the others check what it created.

        Raises:
            UserError: it is a file, cannot be written, is in use, belongs to another config, contains a link where a
                run writes, or is not visible to every process.
        """
        self.path = Path(str(config.run.dir))
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
                f"the run folder must be a folder, but {self.path} is a file or inside one; choose another --run.dir"
            ) from None
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written: {error.strerror}; choose another --run.dir"
            ) from error

    @property
    def left_by(self) -> str | None:
        """The process that ended here without cleaning up, as one that was killed; None if there is none."""
        return None if self._lock is None else self._lock.left_by

    def write_image_info(self, image_shape: tuple[int, int, int], label_names: Sequence[str]) -> None:
        """Writes `images.json`, which `read_image_info` reads."""
        self._write_json(IMAGES, ImageInfo(image_shape, list(label_names))._asdict())

    def write_task_info(self, best_metric: str, best_mode: str, descriptions: Mapping[str, str]) -> None:
        """Writes `task.json`: how the run is judged and what its metrics mean, for programs that do not load it."""
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
            self._check(config)  # Again: until now another process could have begun here, and ended.
            for path in filter(_is_leftover, self.path.iterdir()):
                path.unlink()
            # Written each time: it says what the run does now, and fails early if nothing can be written here.
            self._write_json(CONFIG, {"task": task_of(config), **config_to_tree(config)})
        except BaseException:
            self._lock.release()
            raise

    def _find(self, config: Config) -> None:
        if not self._config.exists():
            raise UserError(
                f"process {jax.process_index()} does not see {self.path}, which process 0 created; "
                "--run.dir must be on a file system that all processes share"
            )
        self._check(config)

    def _check(self, config: Config) -> None:
        """UserError if the folder belongs to something else."""
        entries = sorted(self.path.iterdir())
        if links := [path.name for path in entries if path.is_symlink()]:
            raise UserError(
                f"{self.path} contains links ({', '.join(links)}), and a run writes only inside its folder; "
                "move the whole folder by --run.dir"
            )
        if not self._config.exists():
            # A process that is killed as it begins leaves only these.
            if any(path.name != LOCK and not _is_leftover(path) for path in entries):
                raise UserError(f"{self.path} is not empty and has no config.json; choose another --run.dir")
            return
        try:
            saved = read_config_tree(self.path)
        except UserError as error:
            raise UserError(f"{error}; choose another --run.dir") from error
        task, other = task_of(config), saved.pop("task")
        if task is not None and other is not None and other != task:
            raise UserError(f"{self.path} is a run of train.{other}, not of train.{task}; choose another --run.dir")
        ours, theirs = flat_config(config), flatten(saved)
        # An option that is younger than the folder had the effect of its default.
        theirs = {name: value for name, value in flatten(default_tree(config)).items() if name in ours} | theirs
        changed = [
            f"{name} was {theirs.get(name, 'absent')}, now {ours.get(name, 'absent')}"
            for name in differing(ours, theirs, ignored=names_with(config, Rule.CHANGEABLE_ON_RESUME))
        ]
        if changed:
            raise UserError(
                f"{self.path} was made by a different config: {'; '.join(changed)}. "
                "Give the same options to resume it, or another --run.dir"
            )

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            self._lock.release()


def has_checkpoint(config: Config) -> bool:
    """Whether `config.run.dir` has a checkpoint to resume from."""
    return bool(checkpoint_steps(Path(str(config.run.dir), CHECKPOINTS)))


def _is_leftover(path: Path) -> bool:
    """Whether a killed process left the file half written; the second name is that of older versions."""
    return is_temporary(path.name) or path.name == f"{CONFIG}.new"


def read_image_info(folder: Path) -> ImageInfo:
    """The images that a run was trained on.

    Raises:
        UserError: `images.json` does not say it.
    """
    try:
        tree = read_json(folder / IMAGES)
        height, width, channels = map(int, tree["image_shape"])
        return ImageInfo((height, width, channels), [str(name) for name in tree["label_names"]])
    except (OSError, OverflowError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / IMAGES} does not describe the images of the run ({error!r}). "
            "Start the run's command again: it writes the file, also when it resumes"
        ) from error


def read_config(folder: Path, config_type: type[AnyConfig]) -> AnyConfig:
    """The config of a run; an option that is younger than the run has its default.

    Raises:
        UserError: `folder` is not a run folder, or its config is not of that type.
    """
    tree = {name: value for name, value in read_config_tree(folder).items() if name != "task"}
    try:
        return config_from_tree(config_type, tree)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder / CONFIG} is not a config of {config_type.__module__}: {reason}") from error
