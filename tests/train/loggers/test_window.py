"""Means between the rows of a metrics file."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.loggers.window import MetricWindow
from train.process.errors import RunStopped
from train.task import NONFINITE


def windows(values, every, start=0, stop=None, sums=None, count=0):
    """Returns the window after steps start+1..stop of a run with `values`, and the rows that it gave."""
    lines = []
    window = MetricWindow(
        every, len(values), lambda step, means, speed: lines.append((step, means["x"])), sums or {}, count
    )
    for step in range(start, len(values) if stop is None else stop):
        window.add(step + 1, {"x": values[step]})
    return window, lines


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.integers(1, 7))
def test_each_row_is_the_mean_of_the_steps_since_the_last_row(values, every):
    window, lines = windows(values, every)
    window.drain()
    steps = sorted({*range(every, len(values) + 1, every), len(values)})
    expected = [(b, sum(values[a:b]) / (b - a)) for a, b in zip([0, *steps], steps, strict=False)]
    assert [step for step, _ in lines] == steps
    for (_, mean), (_, mean_) in zip(lines, expected, strict=True):
        assert math.isclose(mean, mean_, rel_tol=1e-9, abs_tol=1e-9)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30), st.integers(1, 7), st.data())
def test_a_resumed_window_gives_bit_equal_rows(values, every, data):
    cut = data.draw(st.integers(1, len(values) - 1))
    whole, lines = windows(values, every)
    whole.drain()
    first, before = windows(values, every, stop=cut)
    first.drain()
    second, after = windows(values, every, start=cut, sums=first.sums, count=first.count)
    second.drain()
    assert before + after == lines


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nonfinite_value_stops_the_run_and_names_metric_and_step(bad):
    window, _ = windows([1.0, 2.0, bad], 10)
    with pytest.raises(RunStopped, match=f"^step 3: x is {bad}\\. Pass --run.on-nonfinite skip to skip such steps"):
        window.drain()


def test_the_parameters_whose_gradients_are_not_finite_are_named():
    window = MetricWindow(10, 10, lambda *_: None, {}, 0, ["a/kernel", "b/bias", "c/kernel"])
    window.add(7, {"x": 1.0, NONFINITE: np.array([False, True, True])})
    with pytest.raises(
        RunStopped,
        match=r"^step 7: the gradients of 2 of 3 parameters are not finite \(b/bias, c/kernel\)\. "
        r"Pass --run.on-nonfinite skip",
    ):
        window.drain()


def test_skipped_steps_are_counted_and_excluded_from_means():
    lines = []
    window = MetricWindow(3, 6, lambda step, means, _: lines.append((step, means)), {}, 0, ["w"], "skip")
    good, bad = np.array([False]), np.array([True])
    for step, (x, broken) in enumerate(
        [(1.0, good), (9.0, bad), (2.0, good), (9.0, bad), (math.nan, good), (9.0, bad)], 1
    ):
        window.add(step, {"x": x, NONFINITE: broken})
    window.drain()
    assert lines == [(3, {"x": 1.5, "skipped": 1}), (6, {"skipped": 3})]


@pytest.mark.parametrize("before", [0, 2])
def test_too_many_skipped_steps_in_a_row_stop_the_run(before):
    """Steps before the window, from a checkpoint, count too. A step that is not skipped starts the count again."""
    window = MetricWindow(100, 100, lambda *_: None, {}, 0, (), "skip", 3, before)
    values = [math.nan] * (2 - before) + [1.0, math.nan, math.nan, math.inf, 1.0]
    for step, x in enumerate(values, 1):
        window.add(step, {"x": x})
    with pytest.raises(
        RunStopped,
        match=rf"^step {6 - before}: x is inf\. 3 steps in a row were skipped\. The limit is "
        r"--run\.max-skipped-steps 3\. Set a higher limit to continue, or start a new run",
    ):
        window.drain()


def test_a_window_that_continues_a_row_of_skipped_steps_stops_at_its_end():
    window = MetricWindow(100, 100, lambda *_: None, {}, 0, (), "skip", 3, 2)
    window.add(1, {"x": math.nan})
    with pytest.raises(RunStopped, match=r"^step 1: x is nan\. 3 steps in a row"):
        window.drain()


def test_without_a_limit_every_step_may_be_skipped():
    lines = []
    window = MetricWindow(1000, 1000, lambda step, means, _: lines.append((step, means)), {}, 0, (), "skip", None)
    for step in range(1, 1001):
        window.add(step, {"x": math.nan})
    window.drain()
    assert lines == [(1000, {"skipped": 1000})]
