"""Averages the training metrics for each row of metrics.jsonl, and checks that they are finite."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from train.process.errors import RunStopped
from train.task import NONFINITE, Metrics
from w2jax.text import first_few

RESTART_REMEDY = "start a new run in another --run.dir with a lower learning rate"
FINITE_REMEDY = f"Pass --run.on-nonfinite skip to skip such steps, or {RESTART_REMEDY}"


def check_finite_metrics(step: int, metrics: dict[str, float]) -> None:
    """Raises RunStopped if a metric of the test split is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise RunStopped(f"step {step}: {name} of the test split is {value}. To continue, {RESTART_REMEDY}")


class MetricWindow:
    """Averages the metrics of the training steps.

    Calls `emit(step, means, steps per second)` every `every` steps and after the last step. Values are fetched from the
    device two steps late, so that the device is never idle.
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
        max_skipped: int | None = None,
        skipped_in_a_row: int = 0,
    ):
        """Starts measuring the time.

        Args:
            every: number of steps in a window.
            last: the last step of the run.
            emit: receives the means. With "skip", these include "skipped", the number of skipped steps.
            sums: sums of the unfinished window, from the checkpoint; {} in a new run.
            count: number of steps in `sums`.
            parameter_names: names of the parameters, in the order of the flags `NONFINITE`.
            on_nonfinite: "stop": a NaN or infinite value stops the run. "skip": that step is left out of the means.
            max_skipped: number of skipped steps in a row that stops the run. None: no limit.
            skipped_in_a_row: number of skipped steps before the first one, from the checkpoint; 0 in a new run.
        """
        self.sums, self.count, self.skipped_in_a_row = dict(sums), count, skipped_in_a_row
        self._every, self._last, self._emit = every, last, emit
        self._parameter_names, self._skips = parameter_names, on_nonfinite == "skip"
        self._max_skipped = math.inf if max_skipped is None else max_skipped
        self._pending: deque[tuple[int, Metrics, int]] = deque()
        self._timed_steps, self._seconds, self._started = 0, 0.0, time.perf_counter()

    def add(self, step: int, metrics: Metrics, count: int = 1) -> None:
        """Adds the metrics of the last `count` steps up to `step`. The device may still compute them.

        The metrics of one step may be scalars. The metrics of several steps have an axis of at least `count` rows. The
        rows after the first `count` are not used.

        Raises:
            RunStopped: if a metric or gradient of an earlier step is not finite, and `on_nonfinite` is "stop" or
                `max_skipped` steps in a row were skipped.
        """
        self._pending.append((step, metrics, count))
        if len(self._pending) > 2:
            self._fetch()

    def drain(self) -> None:
        """Waits for all added steps, then pauses the time measurement until `resume`."""
        while self._pending:
            self._fetch()
        self._seconds += time.perf_counter() - self._started

    def resume(self) -> None:
        """Continues the time measurement after `drain`."""
        self._started = time.perf_counter()

    def _fetch(self) -> None:
        last, device_metrics, count = self._pending.popleft()
        metrics = jax.device_get(device_metrics)
        nonfinite = np.atleast_2d(metrics.pop(NONFINITE, np.zeros((count, 0), bool)))
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
                self.skipped_in_a_row = 0
            elif self._skips:
                self.sums["skipped"] = self.sums.get("skipped", 0.0) + 1
                self.skipped_in_a_row += 1
                if self.skipped_in_a_row >= self._max_skipped:
                    raise RunStopped(
                        f"step {step}: {fault}. {self.skipped_in_a_row} steps in a row were skipped. The limit is "
                        f"--run.max-skipped-steps {self._max_skipped}. Set a higher limit to continue, or "
                        f"{RESTART_REMEDY}"
                    )
            else:
                raise RunStopped(f"step {step}: {fault}. {FINITE_REMEDY}")
            if step % self._every == 0 or step == self._last:
                skipped = {"skipped": self.sums.pop("skipped", 0.0)} if self._skips else {}
                means = {name: total / self.count for name, total in self.sums.items()}
                self._emit(step, means | skipped, speed)
                self.sums, self.count = {}, 0
                self._timed_steps, self._seconds, self._started = 0, 0.0, now


def _fault(values: dict[str, float], bad_parameters: Sequence[str], parameter_count: int) -> str | None:
    """Describes the metrics and gradients of a step that are not finite; None if all are finite."""
    faults = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad_parameters:
        which = "all" if len(bad_parameters) == parameter_count else f"{len(bad_parameters)} of {parameter_count}"
        faults.append(f"the gradients of {which} parameters are not finite ({first_few(bad_parameters)})")
    return "; ".join(faults) or None
