"""The folder of a run: which config it belongs to, who is at work in it, and where its files lie."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import jax
from flax import linen as nn

from configs.base import Config
from train.process.distributed import barrier, is_main_process
from train.process.errors import UserError
from train.run.atomic import write_atomic
from train.run.files import CHECKPOINTS, CONFIG, LOCK, METRICS, TIMING, flattened, must_agree, read_tree
from train.run.lock import Lock
from train.run.manifest import checkpoint_steps
from w2jax.convert.schema import module_from_json, module_to_json

IMAGES, MISTAKES, PICTURES = "images.json", "mistakes.json", "pictures"

AnyConfig = TypeVar("AnyConfig", bound=Config)


class ImageInfo(NamedTuple):
    """What a run is trained on, as `images.json` keeps it: who uses the model later may not have the dataset."""

    image_shape: tuple[int, int, int]
    """(h, w, C)."""
    label_names: list[str]
    """What each label is called."""


class RunFolder:
    """What a run writes, under one folder: its config, metrics, checkpoints, and what the report is made of.

    Where they are asked for, tensorboard/ and wandb/ too.

    To be entered as a context: outside of it, another process may claim the folder.
    """

    def __init__(self, config: Config):
        """Claims `config.run.dir`: makes it, or checks that it belongs to the same config.

        Of several processes the first one makes it, and the others look at what it made.

        Raises:
            UserError: if it is a file, cannot be written, is in use, belongs to another config, has a link where a run
                writes, or is not seen by every process.
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
                self._make(config)
            barrier("run folder")
            if not is_main_process():
                self._see(config)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"the run folder must be a folder, but {self.path} is or lies in a file; choose another --run.dir"
            ) from None
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written: {error.strerror}; choose another --run.dir"
            ) from error

    @property
    def left_by(self) -> str | None:
        """Which process was at work here and ended without a word, as one that is killed; None: none."""
        return None if self._lock is None else self._lock.left_by

    def write_image_info(self, image_shape: tuple[int, int, int], label_names: Sequence[str]) -> None:
        """Writes `images.json`, which `read_image_info` reads."""
        if is_main_process():
            seen = ImageInfo(image_shape, list(label_names))
            write_atomic(self.path / IMAGES, json.dumps(seen._asdict(), indent=2) + "\n")

    def _make(self, config: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._check(config)
        self._lock = Lock(self.path / LOCK)
        try:
            self._check(config)  # Again: until now another process could have begun here, and ended.
            # Written each time: it says what the run does now, and fails early if nothing can be written here.
            write_atomic(self._config, json.dumps(config_tree(config), indent=2) + "\n")
        except BaseException:
            self._lock.give_back()
            raise

    def _see(self, config: Config) -> None:
        if not self._config.exists():
            raise UserError(
                f"process {jax.process_index()} does not see {self.path}, which process 0 made; "
                "--run.dir must lie on a file system that all processes share"
            )
        self._check(config)

    def _check(self, config: Config) -> None:
        """UserError if the folder belongs to something else."""
        found = sorted(self.path.iterdir())
        if links := [path.name for path in found if path.is_symlink()]:
            raise UserError(
                f"{self.path} holds links ({', '.join(links)}), and a run writes nowhere but in its folder; "
                "put the whole folder elsewhere by --run.dir"
            )
        if not self._config.exists():
            # What a process leaves that is killed as it begins is no hindrance.
            if {path.name for path in found} - {LOCK, f"{self._config.name}.new"}:
                raise UserError(f"{self.path} holds other things and no config.json; choose another --run.dir")
            return
        try:
            saved = json.loads(self._config.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self._config} is not valid JSON ({error}); choose another --run.dir") from error
        # A field that is younger than the folder had the effect of its default.
        here, there = flattened(config_tree(config)), flattened(saved)
        there = {name: value for name, value in flattened(defaults(config)).items() if name in here} | there
        changed = [
            f"{name} was {there.get(name, 'absent')}, now {here.get(name, 'absent')}"
            for name in must_agree(here, there)
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
            self._lock.give_back()


def has_checkpoint(config: Config) -> bool:
    """Whether a run was saved in `config.run.dir`, so that it would go on."""
    return bool(checkpoint_steps(Path(str(config.run.dir), CHECKPOINTS)))


def read_image_info(path: Path) -> ImageInfo:
    """What the run at `path` was trained on.

    Raises:
        UserError: if that is not written there.
    """
    try:
        tree = json.loads((path / IMAGES).read_bytes())
        height, width, channels = map(int, tree["image_shape"])
        return ImageInfo((height, width, channels), [str(name) for name in tree["label_names"]])
    except (OSError, OverflowError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path / IMAGES} does not say what images the run is for ({error!r}); "
            "a run of this version writes it when it begins, also one that goes on"
        ) from error


def read_model(path: Path) -> nn.Module:
    """The model that the run at `path` trains.

    Raises:
        UserError: if it is no run folder, or its config describes no model of ours.
    """
    try:
        return module_from_json(read_tree(path)["model"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / CONFIG} describes no model: {error!r}") from error


def read_config(path: Path, config_type: type[AnyConfig]) -> AnyConfig:
    """The config of the run at `path`; a field that is younger than the run has its default.

    Raises:
        UserError: if it is no run folder, or its config is none of that type.
    """
    try:
        return _built(config_type, read_tree(path))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / CONFIG} is no {config_type.__module__} of this version: {error}") from error


def _built(kind: Any, value: Any) -> Any:
    """What `config_tree` made `value` of, an object of type `kind`."""
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        (kind,) = (option for option in get_args(kind) if option is not type(None))
    if isinstance(kind, type) and is_dataclass(kind):
        if issubclass(kind, nn.Module):
            return module_from_json(value)
        hints = get_type_hints(kind)
        return kind(**{name: _built(hints[name], part) for name, part in value.items()})
    return tuple(value) if get_origin(kind) is tuple else value


def defaults(config: Any) -> dict[str, Any]:
    """The tree of a config's fields that have a default, each with its class's own."""
    found = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if is_dataclass(value) and not isinstance(value, type):
            found[field.name] = defaults(value)
        elif default is not MISSING:
            found[field.name] = config_tree(default)
    return found


def config_tree(config: Any) -> Any:
    """A config as JSON knows it: dataclasses as objects, Linen modules too, with their class; tuples as arrays."""
    if is_dataclass(config):
        if isinstance(config, nn.Module):
            return config_tree(module_to_json(config))
        return {field.name: config_tree(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, dict):
        return {name: config_tree(value) for name, value in config.items()}
    return list(config) if isinstance(config, tuple) else config
