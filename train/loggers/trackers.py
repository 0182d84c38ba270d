"""TensorBoard and Weights & Biases: copies of a run's lines, pictures and config for those who watch it there.

The run folder has all of it anyway. So what fails in a tracker is told once and ends that tracker, never the run.
"""

import json
import os
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from configs.base import Config
from train.config.flat import flatten
from train.config.tree import config_to_tree
from train.process.distributed import is_main_process
from train.process.errors import UserError
from train.report.pictures import picture_path
from train.run.atomic import write_atomic
from train.run.folder import RunFolder
from train.task import Picture


def check_trackers(config: Config) -> None:
    """UserError if a tracker is asked for whose package is not installed, or for no project."""
    if config.run.wandb == "":
        raise UserError("--run.wandb is the name of a project, got an empty one")
    for option, wanted, package in (
        ("--run.tensorboard", config.run.tensorboard, "tensorboardX"),
        ("--run.wandb", config.run.wandb is not None, "wandb"),
    ):
        # A folder of that name, as W&B makes one where it is used, can be imported too; but it has no file.
        if wanted and getattr(find_spec(package), "origin", None) is None:
            raise UserError(f'{option} wants the package {package}, which is missing: pip install -e ".[trackers]"')


class Row(NamedTuple):
    """A line of metrics.jsonl, a train line with its examples per second."""

    step: int
    wall_time: float
    """Seconds since 1970."""
    values: dict[str, float]
    """By split/name; none of a line without a split."""


class Shown(NamedTuple):
    """A file of pictures/."""

    path: Path
    caption: str


class Tracker(Protocol):
    """What each is told, in this order. It may raise whatever it likes."""

    name: str

    def begin(self, folder: RunFolder, config: Config, rows: Sequence[Row], say: Callable[[str], None]) -> None:
        """With the `rows` of the steps that were done before."""
        ...

    def add(self, row: Row) -> None: ...

    def show(self, step: int, pictures: Mapping[str, Shown]) -> None: ...

    def end(self, failed: bool) -> None: ...


class Trackers:
    """Those that a config asks for, in the leading process; a context, at whose end they are told so."""

    def __init__(self, config: Config, folder: RunFolder):
        """Nothing is begun yet."""
        self._config, self._folder = config, folder
        self._at_work: list[Tracker] = []

    def begin(
        self, lines: list[dict[str, Any]], timing: list[dict[str, Any]], seconds: float, say: Callable[[str], None]
    ) -> None:
        """Begins all of them.

        Args:
            lines: those of metrics.jsonl up to the step where the run goes on.
            timing: the same of timing.jsonl.
            seconds: wall time of the run so far.
            say: tells the user.

        Raises:
            UserError: if one cannot be used so.
        """
        if not is_main_process():
            return
        run, self._say = self._config.run, say
        self._at_work = [*([_TensorBoard()] if run.tensorboard else []), *([_WandB()] if run.wandb else [])]
        rows = list(_rows(lines, timing, time.time() - seconds))
        self._each(lambda tracker: tracker.begin(self._folder, self._config, rows, say))

    def line(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A line of metrics.jsonl, with the throughput if it is of the train split."""
        self._each(lambda tracker: tracker.add(Row(step, time.time(), _by_tag(split, values))))

    def pictures(self, pictures: Mapping[str, Picture]) -> None:
        """What `write_pictures` made files of, after the last step."""
        shown = {
            name: Shown(picture_path(self._folder.path, name), picture.caption) for name, picture in pictures.items()
        }
        self._each(lambda tracker: tracker.show(self._config.run.steps, shown))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._at_work):
            try:
                tell(tracker)
            except UserError:
                raise
            # Whatever it is: a full disk, or an error that a service's library may raise and does not list.
            except Exception as error:
                self._at_work.remove(tracker)
                reason = " ".join(str(error).split()) or type(error).__name__
                self._say(f"warning: {tracker.name} failed, and the run goes on without it: {reason}")

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._each(lambda tracker: tracker.end(kind is not None))


def _rows(lines: list[dict[str, Any]], timing: list[dict[str, Any]], started: float) -> Iterator[Row]:
    """One row a line, at the time when it was written if the run had gone on without a pause until now."""
    timed, seconds = {line["step"]: line for line in timing}, 0.0
    for line in lines:
        step, split, values = line["step"], line.get("split"), dict(line)
        if (at := timed.get(step)) is not None:
            seconds = at.get("seconds", seconds)
            if split == "train" and "examples_per_second" in at:
                values["examples_per_second"] = at["examples_per_second"]
        yield Row(step, started + seconds, {} if split is None else _by_tag(split, values))


def _by_tag(split: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{split}/{name}": value for name, value in values.items() if name not in ("step", "split")}


class _TensorBoard:
    """One event file, written anew where a run begins or goes on.

    It keeps its name, and the same config and rows have as many bytes: a TensorBoard that has read them already goes on
    behind them.
    """

    name = "TensorBoard"

    def begin(self, folder: RunFolder, config: Config, rows: Sequence[Row], say: Callable[[str], None]) -> None:
        # Any: these classes are made as the module is imported, which no type checker sees.
        self._event: Any = import_module("tensorboardX.proto.event_pb2")
        self._summary: Any = import_module("tensorboardX.proto.summary_pb2")
        self._path = folder.tensorboard / "events.out.tfevents.run"
        folder.tensorboard.mkdir(exist_ok=True)
        options = flatten(config_to_tree(config))
        # Markdown shows what is indented by four as it is.
        text = "".join(f"    {name}: {json.dumps(value)}\n" for name, value in options.items())
        began = rows[0].wall_time if rows else time.time()
        head = [
            self._event.Event(wall_time=began, file_version="brain.Event:2"),
            self._strings(0, began, "config", "text", text.encode()),
        ]
        write_atomic(self._path, b"".join(map(_record, [*head, *map(self._scalars, rows)])))

    def add(self, row: Row) -> None:
        self._append(self._scalars(row))

    def show(self, step: int, pictures: Mapping[str, Shown]) -> None:
        for name, (path, caption) in pictures.items():
            with Image.open(path) as image:
                size = [str(side).encode() for side in image.size]
            strings = (*size, path.read_bytes())
            self._append(self._strings(step, time.time(), f"pictures/{name}", "images", *strings, told=caption))

    def end(self, failed: bool) -> None:
        pass  # Nothing is open, and every event is written.

    def _append(self, event: Any) -> None:
        with self._path.open("ab") as file:
            file.write(_record(event))

    def _scalars(self, row: Row) -> Any:
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in row.values.items()]
        return self._event.Event(step=row.step, wall_time=row.wall_time, summary={"value": values})

    def _strings(self, step: int, at: float, tag: str, plugin: str, *strings: bytes, told: str = "") -> Any:
        """What a plugin of TensorBoard's shows of one string, or of several."""
        value = {
            "tag": tag,
            "metadata": {"plugin_data": {"plugin_name": plugin}, "summary_description": told},
            "tensor": {
                "dtype": "DT_STRING",
                "string_val": strings,
                "tensor_shape": {"dim": [{"size": len(strings)}] if len(strings) > 1 else []},
            },
        }
        return self._event.Event(step=step, wall_time=at, summary={"value": [value]})


def _record(event: Any) -> bytes:
    """An event as it stands in its file: length and content, each with its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (length, content))


class _WandB:
    """One run of Weights & Biases, whose own count of steps is the number of the line in metrics.jsonl.

    By it a run that goes on tells W&B the lines that it does not have yet, each once. Offline, each process leaves a
    folder with all lines since the first: what is synced of a run replaces what was there.
    """

    name = "Weights & Biases"

    def begin(self, folder: RunFolder, config: Config, rows: Sequence[Row], say: Callable[[str], None]) -> None:
        wandb = import_module("wandb")
        folder.wandb.mkdir(exist_ok=True)
        try:
            with _cache_in(folder.wandb):
                self._run = wandb.init(
                    project=config.run.wandb,
                    id=_run_id(folder.wandb / "run.json"),
                    resume="allow",
                    reinit="create_new",  # A run of the caller's own stays as it is.
                    name=folder.path.name,
                    dir=str(folder.path.absolute()),  # It adds "wandb".
                    config=flatten(config_to_tree(config)),
                    allow_val_change=True,  # What may differ when a run goes on.
                    settings=wandb.Settings(console="off", silent=True),
                )
        except wandb.errors.UsageError as error:
            raise UserError(
                f"--run.wandb {config.run.wandb}: {error} Or set WANDB_MODE=offline, which needs no account"
            ) from error
        self._image = wandb.Image
        self._run.define_metric("*", step_metric="step")
        self._line = 0
        for row in rows:
            self.add(row)
        if self._run.offline:
            say(f"Weights & Biases is offline; wandb sync {folder.wandb / 'latest-run'} hands the run over")
        elif self._run.url:
            say(f"Weights & Biases: {self._run.url}")

    def add(self, row: Row) -> None:
        self._log(row.step, row.values)

    def show(self, step: int, pictures: Mapping[str, Shown]) -> None:
        images = {f"pictures/{name}": self._image(str(path), caption=told) for name, (path, told) in pictures.items()}
        self._log(step, images)

    def end(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if values and self._line >= self._run.starting_step:
            self._run.log({"step": step, **values}, step=self._line, commit=True)
        self._line += 1


def _run_id(path: Path) -> str:
    """The name by which W&B knows this run folder, made up if it has none."""
    if not path.exists():
        write_atomic(path, json.dumps({"id": uuid.uuid4().hex}) + "\n")
    try:
        return str(json.loads(path.read_bytes())["id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{path}: wanted {{"id": …}}, got {error!r}; remove it to begin a new run of W&B') from error


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Lets W&B's background process, which begins with the first run, write there what else lies in the user's home."""
    name = "WANDB_CACHE_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(folder.absolute() / "cache")
    try:
        yield
    finally:
        del os.environ[name]
