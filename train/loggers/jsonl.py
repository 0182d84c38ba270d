"""metrics.jsonl, and the means over the steps between two of its lines."""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from train.process.errors import RunStopped
from train.run.atomic import write_atomic
from train.run.files import read_lines
from train.task import NONFINITE, Metrics

ANEW = "begin anew in another --run.dir with a lower learning rate"
FINITE_REMEDY = f"skip such steps by --run.on-nonfinite skip, or {ANEW}"


def first_few(names: Sequence[str]) -> str:
    """The first few of the names."""
    return ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")


def check_finite(step: int, metrics: dict[str, float]) -> None:
    """RunStopped if a metric of the test split is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise RunStopped(f"{name} of the test split is {value} at step {step}; {ANEW}")


class JsonLines:
    """A JSON-lines file that a resumed run takes up where its checkpoint stands.

    What a full disk does not take waits in memory until it does; `sync` tells.
    """

    def __init__(self, path: Path, step: int, writes: bool = True):
        """Drops the lines after `step`: those steps will be done again. Without `writes` nothing is written at all."""
        self.kept = [line for line in read_lines(path) if line["step"] <= step]
        """The lines that were there."""
        self.count = len(self.kept)
        """How many lines there are now."""
        self._file, self._waiting = None, b""
        if writes:
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in self.kept))
            self._file = path.open("ab", buffering=0)

    def write(self, **line: Any) -> None:
        """Appends one object."""
        self.count += 1
        if self._file is not None:
            self._waiting += f"{json.dumps(line, allow_nan=False)}\n".encode()
            try:
                self._put()
            except OSError:
                return  # It is tried again with the next line, and `sync` raises it.

    def sync(self) -> None:
        """Returns when everything written is on disk.

        Raises:
            OSError: if it cannot be.
        """
        if self._file is not None:
            self._put()
            os.fsync(self._file.fileno())

    def _put(self) -> None:
        while self._file is not None and self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

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
        parameters: Sequence[str] = (),
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ):
        """`sums` over `count` steps are what an interrupted run had gathered at its checkpoint.

        `parameters` names the leaves that NOT_FINITE is about. What `on_nonfinite` skips is in no mean; `emit` is given the
        number of such steps as "skipped".
        """
        self.sums, self.count = dict(sums), count
        self._every, self._last, self._emit = every, last, emit
        self._parameters, self._skips = parameters, on_nonfinite == "skip"
        self._pending: deque[tuple[int, Metrics, int]] = deque()
        self._timed, self._busy, self._since = 0, 0.0, time.perf_counter()

    def add(self, step: int, metrics: Metrics, count: int = 1) -> None:
        """Takes the metrics of the `count` steps up to `step`, stacked if they come of one call, which may still run.

        Raises:
            RunStopped: if those of an earlier step turn out not to be finite, and are not to be skipped.
        """
        self._pending.append((step, metrics, count))
        if len(self._pending) > 2:
            self._take()

    def drain(self) -> None:
        """Waits for all steps that were added; the clock stands still until `resume`."""
        while self._pending:
            self._take()
        self._busy += time.perf_counter() - self._since

    def resume(self) -> None:
        """Starts the clock again after a drain."""
        self._since = time.perf_counter()

    def _take(self) -> None:
        last, metrics, count = self._pending.popleft()
        found = jax.device_get(metrics)
        broken = found.pop(NONFINITE, np.zeros((count, 0), bool)).reshape(count, -1)
        stacked = {name: np.atleast_1d(value) for name, value in found.items()}
        self._timed += count
        now = time.perf_counter()
        speed = self._timed / (self._busy + now - self._since)
        for i, step in enumerate(range(last - count + 1, last + 1)):
            values = {name: float(value[i]) for name, value in stacked.items()}
            fault = _fault(values, [self._parameters[p] for p in np.flatnonzero(broken[i]).tolist()], broken.shape[1])
            if fault is None:
                for name, value in values.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                self.count += 1
            elif self._skips:
                self.sums["skipped"] = self.sums.get("skipped", 0.0) + 1
            else:
                raise RunStopped(f"step {step}: {fault}; {FINITE_REMEDY}")
            if step % self._every == 0 or step == self._last:
                skipped = {"skipped": self.sums.pop("skipped", 0.0)} if self._skips else {}
                means = {name: total / self.count for name, total in self.sums.items()}
                self._emit(step, means | skipped, speed)
                self.sums, self.count = {}, 0
                self._timed, self._busy, self._since = 0, 0.0, now


def _fault(values: dict[str, float], broken: Sequence[str], parameters: int) -> str | None:
    """What of a step is not finite: its metrics, and the gradients of the parameters named; None: nothing."""
    faults = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        which = "all" if len(broken) == parameters else f"{len(broken)} of {parameters}"
        faults.append(f"the gradients of {which} parameters are not ({first_few(broken)})")
    return "; ".join(faults) or None
