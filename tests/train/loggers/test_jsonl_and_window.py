"""Means between lines, and a metrics file that never loses, doubles or tears a line."""

import math
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.loggers.jsonl import JsonLines, Window
from train.process.errors import RunStopped, UserError
from train.run.files import read_lines
from train.task import NONFINITE


def windows(values, every, start=0, stop=None, sums=None, count=0):
    """The window after steps start+1..stop of a run as long as `values`, and the lines it gave."""
    lines = []
    window = Window(every, len(values), lambda step, means, speed: lines.append((step, means["x"])), sums or {}, count)
    for step in range(start, len(values) if stop is None else stop):
        window.add(step + 1, {"x": values[step]})
    return window, lines


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.integers(1, 7))
def test_each_line_is_the_mean_of_the_steps_since_the_last(values, every):
    window, lines = windows(values, every)
    window.drain()
    steps = sorted({*range(every, len(values) + 1, every), len(values)})
    expected = [(b, sum(values[a:b]) / (b - a)) for a, b in zip([0, *steps], steps, strict=False)]
    assert [step for step, _ in lines] == steps
    for (_, mean), (_, mean_) in zip(lines, expected, strict=True):
        assert math.isclose(mean, mean_, rel_tol=1e-9, abs_tol=1e-9)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30), st.integers(1, 7), st.data())
def test_a_window_taken_up_again_gives_bit_equal_lines(values, every, data):
    cut = data.draw(st.integers(1, len(values) - 1))
    whole, lines = windows(values, every)
    whole.drain()
    first, before = windows(values, every, stop=cut)
    first.drain()
    second, after = windows(values, every, start=cut, sums=first.sums, count=first.count)
    second.drain()
    assert before + after == lines


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_stops_the_run_naming_metric_and_step(bad):
    window, _ = windows([1.0, 2.0, bad], 10)
    with pytest.raises(RunStopped, match=f"^step 3: x is {bad}; go on without such steps by --run.on-nonfinite skip"):
        window.drain()


def test_a_file_taken_up_at_a_step_drops_later_and_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path, 0) as lines:
        for step in (1, 2, 3):
            lines.write(step=step, loss=1 / step)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    with JsonLines(path, 2) as lines:
        lines.write(step=3, loss=0.5)
    assert path.read_text() == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "loss": 0.5}\n'


def test_the_parameters_whose_gradients_are_not_finite_are_named():
    window = Window(10, 10, lambda *_: None, {}, 0, ["a/kernel", "b/bias", "c/kernel"])
    window.add(7, {"x": 1.0, NONFINITE: np.array([False, True, True])})
    with pytest.raises(
        RunStopped, match=r"^step 7: the gradients of 2 of 3 parameters are not \(b/bias, c/kernel\); go"
    ):
        window.drain()


def test_skipped_steps_are_counted_and_are_in_no_mean():
    lines = []
    window = Window(3, 6, lambda step, means, _: lines.append((step, means)), {}, 0, ["w"], "skip")
    good, bad = np.array([False]), np.array([True])
    for step, (x, broken) in enumerate(
        [(1.0, good), (9.0, bad), (2.0, good), (9.0, bad), (math.nan, good), (9.0, bad)], 1
    ):
        window.add(step, {"x": x, NONFINITE: broken})
    window.drain()
    assert lines == [(3, {"x": 1.5, "skipped": 1}), (6, {"skipped": 3})]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"split": "test"}', '{"step": "3"}', '{"step": true}', "\x00", "[" * 10**5]
)
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: wanted a JSON object with a step"):
        read_lines(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_lines_or_are_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        path.write_bytes(content)
        try:
            lines = read_lines(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert len(lines) == content.count(b"\n") and all(isinstance(line["step"], int) for line in lines)


def test_what_a_full_disk_does_not_take_is_written_when_there_is_room(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with JsonLines(tmp_path / "metrics.jsonl", 0) as lines:
        lines.write(step=1, x=1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))  # in the middle of the second line
        try:
            lines.write(step=2, x=2.0)
            lines.write(step=3, x=3.0)
            with pytest.raises(OSError):
                lines.sync()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        lines.sync()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
