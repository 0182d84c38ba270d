"""A run folder as its files describe it, for the report and the list of runs. It imports no JAX, so both start fast."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from train.process.errors import UserError
from train.run.files import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    METRICS,
    TASK,
    TIMING,
    is_number,
    read_config_tree,
    read_lines,
    read_run_json,
)
from train.run.lock import holder
from train.run.manifest import checkpoint_steps

_WRITTEN_BY_TRAINING = (CONFIG, METRICS, TIMING, CHECKPOINTS)  # A new report, or a use of the model, is no training.

# The best metric of run folders older than task.json: the first of these that was evaluated.
_OLD_BEST_METRICS: dict[str, Literal["max", "min"]] = {"accuracy": "max", "reconstruction": "min"}


@dataclass(frozen=True)
class TaskInfo:
    """What `task.json` says about the metrics of a run."""

    best_metric: str
    """Test metric by which runs and checkpoints are compared."""
    best_mode: Literal["max", "min"]
    """Whether a high or a low value of it is better."""
    metric_descriptions: dict[str, str] = field(default_factory=dict)
    """The task's own metrics in words, by name."""


@dataclass(frozen=True)
class RunRecord:
    """A run folder, as read by `read_record`. What the config does not say, or says in another type, is None."""

    path: Path
    config: dict[str, Any]
    task_info: TaskInfo
    lines: list[dict[str, Any]]
    """metrics.jsonl."""
    timing: list[dict[str, Any]]
    """timing.jsonl."""
    saved_step: int | None
    """Step of the last checkpoint; None if there is none."""
    process: str | None
    """The process that trains in this folder now, in words; None if none does."""
    written: float
    """When training last wrote a file, in seconds since 1970."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def task(self) -> str | None:
        """Name of the task, as in `python -m train.TASK`."""
        task = self.config.get("task")
        return task if isinstance(task, str) else None

    @property
    def model_class(self) -> str | None:
        """Name of the model's class."""
        return self._setting(str, "model", "class")

    @property
    def dataset(self) -> str | None:
        """Name of the training data."""
        return self._setting(str, "data", "name")

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        return self._setting(int, "run", "seed")

    @property
    def total_steps(self) -> int | None:
        """Length of the run."""
        return self._setting(int, "run", "steps")

    @property
    def logged_step(self) -> int:
        """Step of the last metrics; 0 before the first."""
        return max((line["step"] for line in self.lines), default=0)

    @cached_property
    def test_lines(self) -> list[dict[str, Any]]:
        """The metrics of each evaluation."""
        return [line for line in self.lines if line.get("split") == "test"]

    @property
    def test_metrics(self) -> dict[str, Any]:
        """The metrics of the last evaluation by name; {} before the first."""
        last = self.test_lines[-1] if self.test_lines else {}
        return {name: value for name, value in last.items() if name not in ("step", "split")}

    @property
    def is_finished(self) -> bool:
        """Whether the last step was evaluated."""
        return bool(self.test_lines) and self.test_lines[-1]["step"] == self.total_steps

    @property
    def state(self) -> Literal["running", "finished", "no checkpoint", "stopped", "not evaluated"]:
        """Where the run stands: "not evaluated" is saved at its last step, but has no test metrics of it."""
        if self.process is not None:
            return "running"
        if self.is_finished:
            return "finished"
        if self.saved_step is None:
            return "no checkpoint"
        return "stopped" if self.saved_step < (self.total_steps or 0) else "not evaluated"

    @property
    def step(self) -> int:
        """The step where the same command would resume, or that a running process has reached."""
        if self.state == "running":
            return max(self.logged_step, self.saved_step or 0)
        return self.logged_step if self.is_finished else self.saved_step or 0

    @property
    def seconds(self) -> float | None:
        """Wall time of the training up to its last timing; None before the first."""
        seconds = [line["seconds"] for line in self.timing if is_number(line.get("seconds"))]
        return seconds[-1] if seconds else None

    @cached_property
    def scores(self) -> list[float]:
        """The values of the task's best metric, one for each evaluation that has a finite one."""
        name = self.task_info.best_metric
        return [line[name] for line in self.test_lines if is_number(line.get(name))]

    @property
    def best_score(self) -> float | None:
        """The best of the `scores`; None if there are none."""
        return (max if self.task_info.best_mode == "max" else min)(self.scores, default=None)

    def _setting(self, kind: type, group: str, name: str) -> Any:
        part = self.config.get(group)
        value = part.get(name) if isinstance(part, dict) else None
        return value if type(value) is kind else None


def read_record(folder: Path) -> RunRecord:
    """The record of a run folder.

    Raises:
        UserError: if it is no run folder, or one of its files is damaged or cannot be read.
    """
    try:
        for name in (TASK, METRICS, TIMING, LOCK):
            _check_is_file(folder / name)
        lines = read_lines(folder / METRICS)
        return RunRecord(
            path=folder,
            config=read_config_tree(folder),
            task_info=read_task_info(folder, lines),
            lines=lines,
            timing=read_lines(folder / TIMING),
            saved_step=max(checkpoint_steps(folder / CHECKPOINTS), default=None),
            process=holder(folder / LOCK),
            written=max((folder / name).stat().st_mtime for name in _WRITTEN_BY_TRAINING if (folder / name).exists()),
        )
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


def read_task_info(folder: Path, lines: list[dict[str, Any]]) -> TaskInfo:
    """The content of a run folder's `task.json`. In an older folder without one, `lines`, its metrics, decide.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / TASK
    if not path.exists():
        tested = {name for line in lines if line.get("split") == "test" for name in line if is_number(line[name])}
        metric = next((name for name in _OLD_BEST_METRICS if name in tested), "accuracy")
        return TaskInfo(metric, _OLD_BEST_METRICS[metric])
    content = read_run_json(path)
    metric, mode, descriptions = (content.get(name) for name in ("best_metric", "best_mode", "metric_descriptions"))
    if not (
        isinstance(metric, str)
        and mode in ("max", "min")
        and isinstance(descriptions, dict)
        and all(isinstance(words, str) for words in descriptions.values())
    ):
        raise UserError(f"{path} is damaged; remove it, and the training's command writes it again")
    return TaskInfo(metric, mode, descriptions)


def _check_is_file(path: Path) -> None:
    """UserError if there is something else, such as a pipe, which would never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file")
