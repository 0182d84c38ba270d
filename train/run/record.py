"""Reads a run folder, for the report and the list of runs. Imports no JAX, so both start quickly."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from train.process.errors import UserError
from train.run.facts import Facts, facts_from_json
from train.run.files import (
    CHECKPOINTS,
    CONFIG,
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
from train.run.patience import best_step, is_over

# The report and the use of a model write other files, which do not count.
_WRITTEN_BY_TRAINING = (CONFIG, METRICS, TIMING, CHECKPOINTS)

# Older run folders have no task.json. Their best metric is the first of these that was evaluated.
_OLD_BEST_METRICS: dict[str, Literal["max", "min"]] = {"accuracy": "max", "reconstruction": "min"}


RunState = Literal["running", "finished", "stopped early", "no checkpoint", "stopped", "not evaluated"]


@dataclass(frozen=True)
class TaskInfo:
    """The content of `task.json`: describes the metrics of a run, its model and its data."""

    best_metric: str
    """The test metric that ranks runs and checkpoints."""
    best_mode: Literal["max", "min"]
    """Direction of this metric: "max" if higher values are better, "min" if lower values are."""
    metric_descriptions: dict[str, str] = field(default_factory=dict)
    """A description of each metric of the task, by name."""
    adapted: str = ""
    """How `--init-from` changed the first parameters for images with another number of channels; "" if it did not."""
    facts: Facts = Facts()

    def as_json(self) -> dict[str, Any]:
        """Returns the content of `task.json`."""
        content = {name: getattr(self, name) for name in ("best_metric", "best_mode", "metric_descriptions")}
        return content | ({"adapted": self.adapted} if self.adapted else {}) | {"facts": self.facts.as_json()}


@dataclass(frozen=True)
class RunRecord:
    """A run folder, as `read_record` reads it. A value that is missing in the config or has a wrong type is None."""

    path: Path
    config: dict[str, Any]
    task_info: TaskInfo
    lines: list[dict[str, Any]]
    """The rows of metrics.jsonl."""
    timing: list[dict[str, Any]]
    """The rows of timing.jsonl."""
    saved_step: int | None
    """Step of the last checkpoint; None without a checkpoint."""
    process: str | None
    """A description of the process that trains in this folder now; None if no process does."""
    written: float
    """Time when training last wrote a file, in seconds since 1970."""

    @property
    def name(self) -> str:
        """Name of the folder."""
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
        """Seed of the run."""
        return self._setting(int, "run", "seed")

    @property
    def total_steps(self) -> int | None:
        """Number of steps of the whole run."""
        return self._setting(int, "run", "steps")

    @property
    def logged_step(self) -> int:
        """Step of the last row of metrics; 0 before the first row."""
        return max((line["step"] for line in self.lines), default=0)

    @cached_property
    def test_lines(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl from evaluations on the test split."""
        return [line for line in self.lines if line.get("split") == "test"]

    @property
    def test_metrics(self) -> dict[str, Any]:
        """The metrics of the last evaluation, by name; {} before the first evaluation."""
        last = self.test_lines[-1] if self.test_lines else {}
        return {name: value for name, value in last.items() if name not in ("step", "split")}

    @property
    def is_finished(self) -> bool:
        """Whether the last step was evaluated, or the run stopped early."""
        is_complete = bool(self.test_lines) and self.test_lines[-1]["step"] == self.total_steps
        return is_complete or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether the last evaluations had no better score, so that `--run.patience` ended the run."""
        patience = self._setting(int, "run", "patience")
        return self.total_steps not in self.scores and is_over(self.scores, self.task_info.best_mode, patience)

    @property
    def state(self) -> RunState:
        """State of the run. "not evaluated": the last step is saved, but was not evaluated."""
        if self.process is not None:
            return "running"
        if self.is_finished:
            return "stopped early" if self.stopped_early else "finished"
        if self.saved_step is None:
            return "no checkpoint"
        return "stopped" if self.saved_step < (self.total_steps or 0) else "not evaluated"

    @property
    def step(self) -> int:
        """The last step of a running process, or else the step from which the same command would resume."""
        if self.state == "running":
            return max(self.logged_step, self.saved_step or 0)
        return self.logged_step if self.is_finished else self.saved_step or 0

    @property
    def seconds(self) -> float | None:
        """Wall time of the training at the last row of timing.jsonl; None before the first row."""
        seconds = [line["seconds"] for line in self.timing if is_number(line.get("seconds"))]
        return seconds[-1] if seconds else None

    @cached_property
    def scores(self) -> dict[int, float]:
        """The finite values of the task's best metric by step, in the order of the evaluations."""
        name = self.task_info.best_metric
        return {line["step"]: line[name] for line in self.test_lines if is_number(line.get(name))}

    @property
    def best_score(self) -> float | None:
        """The best of the `scores`; None without a score."""
        return self.scores[best_step(self.scores, self.task_info.best_mode)] if self.scores else None

    def _setting(self, kind: type, group: str, name: str) -> Any:
        part = self.config.get(group)
        value = part.get(name) if isinstance(part, dict) else None
        return value if type(value) is kind else None


def read_record(folder: Path) -> RunRecord:
    """Reads the record of a run folder.

    Raises:
        UserError: if `folder` is not a run folder, or one of its files is damaged or cannot be read.
    """
    try:
        lines = read_lines(folder / METRICS)
        return RunRecord(
            path=folder,
            config=read_config_tree(folder),
            task_info=read_task_info(folder, lines),
            lines=lines,
            timing=read_lines(folder / TIMING),
            saved_step=max(checkpoint_steps(folder / CHECKPOINTS), default=None),
            process=holder(folder),
            written=max((folder / name).stat().st_mtime for name in _WRITTEN_BY_TRAINING if (folder / name).exists()),
        )
    except OSError as error:
        raise UserError(f"cannot read {error.filename or folder}: {error.strerror}") from error


def read_task_info(folder: Path, lines: list[dict[str, Any]]) -> TaskInfo:
    """Reads the `task.json` of a run folder. Older folders have none; there, `lines` (the metrics) decide.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / TASK
    if not path.exists():
        tested = {name for line in lines if line.get("split") == "test" for name in line if is_number(line[name])}
        metric = next((name for name in _OLD_BEST_METRICS if name in tested), "accuracy")
        return TaskInfo(metric, _OLD_BEST_METRICS[metric])
    content = read_run_json(path)
    metric, mode, descriptions = (content.get(name) for name in ("best_metric", "best_mode", "metric_descriptions"))
    adapted = content.get("adapted", "")
    try:
        facts = facts_from_json(content.get("facts", {}))
    except ValueError:
        facts = None
    if facts is None or not (
        isinstance(metric, str)
        and mode in ("max", "min")
        and isinstance(descriptions, dict)
        and all(isinstance(words, str) for words in (*descriptions.values(), adapted))
    ):
        raise UserError(f"{path} is damaged. Delete it and run the training command again to rewrite it")
    return TaskInfo(metric, mode, descriptions, adapted, facts)
