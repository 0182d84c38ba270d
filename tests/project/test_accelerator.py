"""python -m benchmarks.accelerator records every failure, keeps to its time, and notices wrong results."""

import json
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accelerator import __main__ as program
from benchmarks.accelerator import attention, steps, values
from benchmarks.accelerator.parts import PARTS, jobs
from benchmarks.accelerator.record import TIME_BUDGET, Recorder, Row, Setting, Skipped, Wrong, read_rows
from benchmarks.accelerator.table import markdown
from benchmarks.step import Step

ROOT = Path(__file__).parents[2]
CPU = Setting("cpu", "cpu", 1, quick=True, torch=True, torch_cuda=False, is_nvidia=False)
ENVIRONMENT = {
    **{"platform": "cpu", "kind": "cpu", "count": 1, "torch_cuda": False, "is_nvidia": False},
    **{"driver": [], "cuda": [], "date": "2026-11-29", "versions": {"jax": "0.10", "torch": None}},
}


@pytest.mark.slow
def test_a_quick_run_on_a_cpu_executes_every_part(tmp_path):
    path = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.accelerator", "--quick", "--json", path]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    results = json.loads(path.read_text())
    assert list(results["parts"]) == list(PARTS) and results["environment"]["versions"]["jax"] == jax.__version__
    for name, part in results["parts"].items():
        assert part["status"] == "ok", name
        assert all(row["status"] == "ok" or row["reason"] for row in part["rows"])
    rows = [row for part in results["parts"].values() for row in part["rows"] if row["status"] == "ok"]
    assert len(rows) >= 10 and all(row["figures"] for row in rows)
    for row in rows:
        assert row["row"] in found.stdout
    page = tmp_path / "scale.md"
    page.write_text(program.PAGE.read_text())
    for _ in range(2):  # The second time replaces the tables of the first.
        program.write_page([path, path], page)
    assert markdown(results) in found.stdout and page.read_text().count(markdown(results)) == 2
    assert "no measurements yet" not in page.read_text()


def test_rows_after_a_failure_are_measured_and_rows_after_the_budget_are_not(tmp_path, capsys):
    recorder = Recorder("values", tmp_path / "rows", 60.0)
    recorder.row("broken", lambda: {"x": [][0]})
    recorder.row("impossible", partial(_raise, Skipped("needs a moon")))
    recorder.row("good", lambda: {"x": 2.5, "unknown": None})
    late = Recorder("values", tmp_path / "rows", 0.0)
    late.row("the first of a part", lambda: {"x": 1})
    late.row("late", lambda: pytest.fail("it must not start"))
    broken, impossible, good, first, late = read_rows(tmp_path / "rows")
    assert (broken.status, broken.reason) == ("failed", "IndexError: list index out of range")
    assert "[][0]" in broken.traceback
    assert (impossible.status, impossible.reason) == ("skipped", "needs a moon")
    assert (good.status, good.figures, first.status) == ("ok", {"x": 2.5}, "ok")
    assert (late.status, late.reason) == ("skipped", TIME_BUDGET)
    assert len(capsys.readouterr().out.splitlines()) == 5


def _raise(error):
    raise error


def test_a_part_that_fails_does_not_stop_the_others_and_gives_exit_status_1(tmp_path, monkeypatch, capsys):
    def run_job(part, job, *_):
        row = (
            Row(job, "failed", "boom", traceback="line 1") if part == "values" else Row(job, "ok", figures={"ms": 1.5})
        )
        return [row]

    monkeypatch.setattr(program, "describe", lambda: ENVIRONMENT)
    monkeypatch.setattr(program, "run_job", run_job)
    assert program.run(["values", "attention"], True, 1.0, tmp_path / "found.json") == 1
    parts = json.loads((tmp_path / "found.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {"values": "failed", "attention": "ok"}
    assert parts["values"]["reason"] == "boom" and parts["values"]["rows"][0]["traceback"] == "line 1"
    assert "values: failed, attention: ok" in capsys.readouterr().out
    assert program.run(["attention"], True, 1.0, None) == 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo trouble >&2; exit 3", "ended with status 3"), ("exec sleep 30", "did not end within"), ("", "no result")],
)
def test_a_process_that_crashes_hangs_or_reports_nothing_is_a_failure(script, reason, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    recorder = Recorder("values", tmp_path / "rows", 9.0)
    assert program.run_job("values", "values", CPU, 0.3, 0.5, tmp_path, recorder) == []
    (row,) = read_rows(tmp_path / "rows")
    assert row.status == "failed" and reason in row.reason and ("trouble" in row.traceback) == ("trouble" in script)


def test_a_part_without_its_wheels_or_without_time_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(program, "missing", lambda wheels: ["tyro"] if "tyro" in wheels else [])
    part = program.run_part("resume", CPU, 5.0, 60.0)
    assert (part["status"], part["reason"]) == ("skipped", "needs wheels that are not installed: tyro")
    monkeypatch.setattr(program, "run_job", lambda part, job, *_: [Row(job, "ok")])
    part = program.run_part("steps", CPU, 0.0, 60.0)  # The first process of a part runs.
    assert part["status"] == "ok" and [row["row"] for row in part["rows"]] == jobs("steps", CPU)
    assert [row["reason"] for row in part["rows"]] == ["", *[TIME_BUDGET] * (len(jobs("steps", CPU)) - 1)]
    part = program.run_part("steps", CPU, -60.0, 0.0)  # Earlier parts have hung.
    assert part["status"] == "skipped" and {row["reason"] for row in part["rows"]} == {TIME_BUDGET}


def without_mask(query, key, value, mask, key_lengths, causal):
    return attention.attend_by("xla", query, key, value, None, None, False)


def with_another_scale(query, key, value, mask, key_lengths, causal):
    return attention.attend_by("xla", 1.01 * query, key, value, mask, key_lengths, causal)


def that_spreads_nan(query, key, value, mask, key_lengths, causal):
    weights = jax.nn.softmax(jnp.where(mask, query @ key.swapaxes(-1, -2) / np.sqrt(attention.K), -1e30))
    return jnp.where(mask, weights, 0) @ value


def without_zeros(query, key, value, mask, key_lengths, causal):
    out = attention.attend_by("xla", query, key, value, mask, key_lengths, causal)
    return jnp.where(mask.any(-1, keepdims=True), out, 1e-9)


@pytest.mark.parametrize(
    ("attend", "case", "message"),
    [
        (without_mask, "causal", "differ by"),
        (with_another_scale, "no mask", "differ by"),
        (that_spreads_nan, "mask", "a NaN in a masked key must not change"),
        (without_zeros, "mask", "queries without any key must give 0"),
    ],
)
def test_wrong_attention_is_noticed(attend, case, message):
    right = attention.check(partial(attention.attend_by, "xla"), case, "float32", 6, 10)
    assert right["output"] < right["bound"] and right["gradients"] < right["bound"]
    with pytest.raises(Wrong, match=message):
        attention.check(attend, case, "float32", 6, 10)


@pytest.mark.parametrize("case", ["mask", "grouped heads"])
def test_the_cases_respect_the_limits_of_cudnn(case, monkeypatch):
    """XLA replaces the kernel, so that no GPU is necessary."""
    kernel = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *x, **o: kernel(*x, **{**o, "implementation": "xla"}))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = attention.check(partial(attention.attend_by, "cudnn"), case, "bfloat16", 6, 10)
    assert found["gradients"] < found["bound"]


@pytest.mark.parametrize("wrong", ["output", "kernel"])
def test_wrong_values_and_gradients_are_noticed(wrong):
    right = {"output": np.array([1.0, 2.0]), "input": np.array([3.0]), "kernel": np.array([4.0, 5.0])}
    found = values.check(right, right, (1e-4, 1e-4))
    assert found["values"] == found["gradients"] == 0
    for error in (0.01, np.nan):
        with pytest.raises(Wrong, match="output differ" if wrong == "output" else "gradients differ"):
            values.check({**right, wrong: right[wrong] + error}, right, (1e-4, 1e-4))


@pytest.mark.parametrize("name", values.MODELS)
def test_the_models_have_the_values_of_torch(name):
    found = values.compare(*values.MODELS[name], "highest", (values.HIGHEST, values.HIGHEST), torch=True)
    assert found["gradients"] < 1e-5 and found["reference"] == "torch on the CPU"


def test_the_cpu_is_the_reference_without_torch():
    found = values.compare("aae", "discriminate", "highest", (values.HIGHEST, values.HIGHEST), torch=False)
    assert found["gradients"] < 1e-5 and found["reference"] == "JAX on the CPU"


@pytest.mark.slow
def test_a_wrong_loss_on_several_devices_is_noticed(monkeypatch):
    found = values.check_mesh("fsdp", CPU)
    assert found["values"] <= found["bound"]
    step = Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda self: _with_wrong_loss(step, self))
    with pytest.raises(Wrong, match="the losses differ"):
        values.check_mesh("data", CPU)


def _with_wrong_loss(step, self):
    seconds = step(self)
    self.metrics = {"loss": self.metrics["loss"] * len(self.metrics["loss"].sharding.device_set)}
    return seconds


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # torch says this on Python 3.13.0
def test_a_torch_step_is_timed_and_a_full_memory_is_a_result():
    for mode in ("train", "inference"):
        make = partial(steps.make_torch, "vit_tiny", "bfloat16", mode, device="cpu", backend="eager")
        found = steps.measure(make, 2, "bfloat16", CPU, [0])
        assert found["ms"] > 0 and found["examples/s"] == pytest.approx(2e3 / found["ms"])
    full = partial(_raise_for, RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"))
    assert steps.measure(full, 2, "float32", CPU, [0]) == {"memory full": True}
    with pytest.raises(ZeroDivisionError):
        steps.measure(partial(_raise_for, ZeroDivisionError()), 2, "float32", CPU, [0])


def _raise_for(error, size):
    raise error


def test_the_utilization_is_relative_to_the_peak_of_all_devices():
    tpus = Setting("tpu", "TPU v5 lite", 4, quick=True, torch=False, torch_cuda=False, is_nvidia=False)
    step, peaks = (lambda: None, 197e12, 4, lambda: 3 * 2**30), [0]
    first, same = (steps.measure(lambda size: step, size, "bfloat16", tpus, peaks) for size in (8, 32))
    assert first["MFU"] == pytest.approx(first["TFLOP/s"] / (4 * 197))
    assert first["peak GiB"] == 3.0 and same["peak GiB"] is None  # An earlier row has reached this peak.
    assert steps.peak_of("NVIDIA H200", "float32") < steps.peak_of("NVIDIA H200", "bfloat16")
    assert steps.peak_of("a new device", "float32") is None


def test_the_table_has_every_figure_of_the_json_file():
    rows = [
        Row("first", "ok", figures={"ms": 0.01234, "examples/s": 98765.4}),
        Row("second | third", "skipped", "needs a moon"),
        Row("fourth", "failed", "boom", figures={"same bits": False}),
    ]
    parts = {"steps": {"status": "failed", "rows": [asdict(row) for row in rows]}}
    machine, table = markdown({"environment": ENVIRONMENT, "parts": parts}).split("\n\n")
    assert machine == "1 × cpu. 2026-11-29; jax 0.10."
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    assert cells[0] == ["steps", "ms", "examples/s", "same bits", "status"]
    assert cells[2:] == [
        ["first", "0.0123", "98,765", "", "ok"],
        ["second \\| third", "", "", "", "skipped: needs a moon"],
        ["fourth", "", "", "no", "failed: boom"],
    ]
