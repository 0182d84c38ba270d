"""Logs a run's metrics, pictures and config to TensorBoard and Weights & Biases.

The run folder contains all of these too. So an error in a tracker prints one warning and turns off that tracker, but
does not stop the run.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from configs.base import Config
from train.process.distributed import is_main_process
from train.process.errors import UserError
from train.report.pictures import picture_path
from train.run.folder import RunFolder
from train.task import Picture


def check_trackers(config: Config) -> None:
    """Raises UserError if a tracker's package is not installed, or its project has no name."""
    if config.run.wandb == "":
        raise UserError("--run.wandb must be the name of a project, got an empty name")
    for option, is_wanted, package in (
        ("--run.tensorboard", config.run.tensorboard, "tensorboardX"),
        ("--run.wandb", config.run.wandb is not None, "wandb"),
    ):
        # A plain folder with that name, such as W&B's output, can also be imported, but has no origin.
        if is_wanted and getattr(find_spec(package), "origin", None) is None:
            raise UserError(
                f'{option} needs the package {package}, which is not installed. Run: pip install -e ".[trackers]"'
            )


class MetricRow(NamedTuple):
    """A row of metrics.jsonl. A train row also has its examples per second."""

    step: int
    wall_time: float
    """Seconds since 1970."""
    values: dict[str, float]
    """Values by "split/name"; {} for a row without a split."""


class PictureFile(NamedTuple):
    """A file in the folder pictures/."""

    path: Path
    caption: str


class Tracker(Protocol):
    """An experiment tracker. The methods are called in this order, and may raise any error."""

    name: str

    def start(self, folder: RunFolder, config: Config, rows: Sequence[MetricRow], say: Callable[[str], None]) -> None:
        """Starts or resumes a run. `rows` are the metrics up to now."""
        ...

    def log_row(self, row: MetricRow) -> None: ...

    def log_pictures(self, step: int, pictures: Mapping[str, PictureFile]) -> None: ...

    def finish(self, failed: bool) -> None: ...


class Trackers:
    """The trackers of a config, used only in the main process. Leaving the context finishes them."""

    def __init__(self, config: Config, folder: RunFolder):
        """Starts no tracker yet."""
        self._config, self._folder = config, folder
        self._active: list[Tracker] = []

    def start(
        self, lines: list[dict[str, Any]], timing: list[dict[str, Any]], seconds: float, say: Callable[[str], None]
    ) -> None:
        """Starts all trackers.

        Args:
            lines: metrics.jsonl up to the step where the run resumes.
            timing: timing.jsonl up to that step.
            seconds: wall time of the run so far.
            say: prints a message for the user.

        Raises:
            UserError: if a tracker's options are wrong.
        """
        if not is_main_process():
            return
        # Late imports, because these modules import this one.
        from train.loggers.tensorboard import TensorBoard
        from train.loggers.wandb import WandB

        run, self._say = self._config.run, say
        self._active = [*([TensorBoard()] if run.tensorboard else []), *([WandB()] if run.wandb else [])]
        rows = list(_rows(lines, timing, time.time() - seconds))
        self._call_each(lambda tracker: tracker.start(self._folder, self._config, rows, say))

    def log_metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Logs a row of metrics.jsonl. For the train split it includes the throughput."""
        self._call_each(lambda tracker: tracker.log_row(MetricRow(step, time.time(), _by_tag(split, values))))

    def log_pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Logs the files that `write_pictures` wrote for these pictures after a step."""
        files = {
            name: PictureFile(picture_path(self._folder.path, name), picture.caption)
            for name, picture in pictures.items()
        }
        self._call_each(lambda tracker: tracker.log_pictures(step, files))

    def _call_each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._active):
            try:
                call(tracker)
            except UserError:
                self._active.remove(tracker)
                raise
            # Catch any error: the disk may be full, and the libraries raise undocumented errors.
            except Exception as error:
                self._active.remove(tracker)
                reason = " ".join(str(error).split()) or type(error).__name__
                self._say(f"warning: {tracker.name} failed, and training continues without it: {reason}")

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._call_each(lambda tracker: tracker.finish(kind is not None))


def _rows(lines: list[dict[str, Any]], timing: list[dict[str, Any]], started: float) -> Iterator[MetricRow]:
    """Yields a MetricRow per row of `lines`, with times as if the run had never been interrupted."""
    timing_of_step, seconds = {line["step"]: line for line in timing}, 0.0
    for line in lines:
        step, split, values = line["step"], line.get("split"), dict(line)
        if (timed := timing_of_step.get(step)) is not None:
            seconds = timed.get("seconds", seconds)
            if split == "train" and "examples_per_second" in timed:
                values["examples_per_second"] = timed["examples_per_second"]
        yield MetricRow(step, started + seconds, {} if split is None else _by_tag(split, values))


def _by_tag(split: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{split}/{name}": value for name, value in values.items() if name not in ("step", "split")}
