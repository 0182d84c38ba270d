"""Means of the metrics between two lines of metrics.jsonl, and the check that they are finite."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from train.process.errors import RunStopped
from train.task import NONFINITE, Metrics

RESTART_REMEDY = "begin anew in another --run.dir with a lower learning rate"
FINITE_REMEDY = f"skip such steps with --run.on-nonfinite skip, or {RESTART_REMEDY}"


def first_few(names: Sequence[str]) -> str:
    """The first five names, separated by commas."""
    return ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")


def check_finite_metrics(step: int, metrics: dict[str, float]) -> None:
    """RunStopped if a metric of the test split is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise RunStopped(f"{name} of the test split is {value} at step {step}; {RESTART_REMEDY}")


class MetricWindow:
    """Means of the steps' metrics, given to `emit(step, means, steps per second)` every `every` steps and at the last.

    Values are fetched from the device two steps late, so that it always has a step to work on.
    """

    def __init__(
        self,
        every: int,
        last: int,
        emit: Callable[[int, dict[str, float], float], None],
        sums: dict[str, float],
        count: int,
        parameter_names: Sequence[str] = (),
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ):
        """Starts the clock.

        Args:
            every: steps between two means.
            last: the run's last step.
            emit: receives the means. With "skip" it also receives "skipped", the number of skipped steps.
            sums: the sums that the checkpoint has of an unfinished window; {} at the start of a run.
            count: over how many steps they are.
            parameter_names: the leaves that the flags `NONFINITE` are about.
            on_nonfinite: whether a NaN or infinite value stops the run, or leaves its step out of the means.
        """
        self.sums, self.count = dict(sums), count
        self._every, self._last, self._emit = every, last, emit
        self._parameter_names, self._skips = parameter_names, on_nonfinite == "skip"
        self._pending: deque[tuple[int, Metrics, int]] = deque()
        self._timed_steps, self._seconds, self._started = 0, 0.0, time.perf_counter()

    def add(self, step: int, metrics: Metrics, count: int = 1) -> None:
        """Adds the metrics of the `count` steps up to `step`, which may still run; stacked if `count` > 1.

        Raises:
            RunStopped: if the metrics of an earlier step are not finite and are not to be skipped.
        """
        self._pending.append((step, metrics, count))
        if len(self._pending) > 2:
            self._fetch()

    def drain(self) -> None:
        """Waits for all added steps, then stops the clock until `resume`."""
        while self._pending:
            self._fetch()
        self._seconds += time.perf_counter() - self._started

    def resume(self) -> None:
        """Starts the clock again after `drain`."""
        self._started = time.perf_counter()

    def _fetch(self) -> None:
        last, device_metrics, count = self._pending.popleft()
        metrics = jax.device_get(device_metrics)
        nonfinite = metrics.pop(NONFINITE, np.zeros((count, 0), bool)).reshape(count, -1)
        stacked = {name: np.atleast_1d(value) for name, value in metrics.items()}
        self._timed_steps += count
        now = time.perf_counter()
        speed = self._timed_steps / (self._seconds + now - self._started)
        for i, step in enumerate(range(last - count + 1, last + 1)):
            values = {name: float(value[i]) for name, value in stacked.items()}
            bad_parameters = [self._parameter_names[p] for p in np.flatnonzero(nonfinite[i]).tolist()]
            fault = _fault(values, bad_parameters, nonfinite.shape[1])
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
                self._timed_steps, self._seconds, self._started = 0, 0.0, now


def _fault(values: dict[str, float], bad_parameters: Sequence[str], parameter_count: int) -> str | None:
    """The metrics of a step that are not finite, and the parameters whose gradients are not; None if all are."""
    faults = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad_parameters:
        which = "all" if len(bad_parameters) == parameter_count else f"{len(bad_parameters)} of {parameter_count}"
        faults.append(f"the gradients of {which} parameters are not finite ({first_few(bad_parameters)})")
    return "; ".join(faults) or None
