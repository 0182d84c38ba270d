"""The benchmarks only compare implementations with equal results, and write their figures as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cases import TOLERANCE
from benchmarks.runner import compared
from benchmarks.scaling import measure

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_case_times_all_implementations_and_writes_json(tmp_path):
    options = ["self_attention", "--processes", "1", "--turns", "2", "--seconds", "0.01", "--json", tmp_path / "out"]
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    case = json.loads((tmp_path / "out").read_text())["cases"]["self_attention"]
    assert set(case["measured"]) == {"ours", "torch", "flax"}
    for who, figures in case["measured"].items():
        assert len(figures["milliseconds"]) == 2 and min(figures["milliseconds"]) > 0 and figures["peak"] > 50
        assert who in shown
    for name, difference in case["differences"].items():
        assert 0 < difference <= TOLERANCE[name]  # Exactly 0 would mean that a library is compared with itself.


def test_results_that_differ_end_the_program():
    ours = {"out": [1.0, 2.0], "weights": [0.5, 0.25]}
    off = 2.0 * (1 + 3 * TOLERANCE["out"])
    with pytest.raises(SystemExit, match="ours and torch must give the same results: out differs"):
        compared({"ours": ours, "torch": {**ours, "out": [1.0, off]}})
    with pytest.raises(SystemExit, match="weights differs by nan"):
        compared({"ours": ours, "torch": {**ours, "weights": [0.5, float("nan")]}})
    assert compared({"ours": ours, "torch": ours}) == {"out": 0.0, "weights": 0.0}


def test_flops_and_memory_of_the_lstms_step_grow_in_proportion_to_length():
    sizes = {"height": 12, "batch_size": 6, "side": 8, "hidden_size": 32}
    small, large = measure("lstm", sizes, "height", repeat=1)
    assert 3.5 < large["flops"] / small["flops"] < 4.1
    assert large["memory"] / small["memory"] < 4.1
