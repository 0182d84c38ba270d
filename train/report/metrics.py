"""metrics.jsonl, and the means over the steps between two of its lines."""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.errors import RunStopped
from train.task import Metrics


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file; a last line that a kill tore apart is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def check_finite(step: int, metrics: dict[str, float]) -> None:
    """RunStopped if a metric is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise RunStopped(f"{name} is {value} at step {step}")


class JsonLines:
    """A JSON-lines file that a resumed run takes up where its checkpoint stands."""

    def __init__(self, path: Path, step: int, writes: bool = True):
        """Drops the lines after `step`: those steps will be done again. Without `writes` it does nothing at all."""
        self._file = None
        if not writes:
            return
        kept = [line for line in read_lines(path) if line["step"] <= step]
        scratch = path.with_suffix(".new")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
        scratch.replace(path)
        self._file = path.open("a")

    def write(self, **line: Any) -> None:
        """Appends one object."""
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Returns when everything written is on disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()


class Window:
    """Means of the steps' metrics, handed to `emit(step, means, steps per second)` every `every` steps and at the last.

    Values are taken off the device two steps late, so that the device always has a step to work on.
    """

    def __init__(
        self,
        every: int,
        last: int,
        emit: Callable[[int, dict[str, float], float], None],
        sums: dict[str, float],
        count: int,
    ):
        """`sums` over `count` steps are what an interrupted run had gathered at its checkpoint."""
        self.sums, self.count = dict(sums), count
        self._every, self._last, self._emit = every, last, emit
        self._pending: deque[tuple[int, Metrics, int]] = deque()
        self._timed, self._busy, self._since = 0, 0.0, time.perf_counter()

    def add(self, step: int, metrics: Metrics, count: int = 1) -> None:
        """Takes the metrics of the `count` steps up to `step`, stacked if they come of one call, which may still run.

        Raises:
            RunStopped: if those of an earlier step turn out not to be finite.
        """
        self._pending.append((step, metrics, count))
        if len(self._pending) > 2:
            self._take()

    def drain(self) -> None:
        """Waits for all steps that were added; the clock stands still until `go_on`."""
        while self._pending:
            self._take()
        self._busy += time.perf_counter() - self._since

    def go_on(self) -> None:
        """Starts the clock again after a drain."""
        self._since = time.perf_counter()

    def _take(self) -> None:
        last, metrics, count = self._pending.popleft()
        stacked = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
        self._timed += count
        now = time.perf_counter()
        speed = self._timed / (self._busy + now - self._since)
        for i, step in enumerate(range(last - count + 1, last + 1)):
            values = {name: float(value[i]) for name, value in stacked.items()}
            check_finite(step, values)
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.count += 1
            if step % self._every == 0 or step == self._last:
                self._emit(step, {name: total / self.count for name, total in self.sums.items()}, speed)
                self.sums, self.count = {}, 0
                self._timed, self._busy, self._since = 0, 0.0, now
