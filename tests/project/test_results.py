"""docs/results.md and docs/aae.md show exactly what the JSON files of the results say."""

import json
import re
from dataclasses import replace
from importlib import import_module

import pytest

from benchmarks.pages import with_table
from benchmarks.results import tables
from benchmarks.results.measure import measure
from benchmarks.results.rows import ACCURACY, AUTOENCODERS, CLASSIFIERS, ERROR, IN_TORCH, ROWS, SQUARED, Row
from train.config.cli import parse

RUN = {
    "seed": 0,
    "metrics": {"accuracy": 0.5, "reconstruction": 0.25},
    "data": "mnist",
    "images": {"train": 300, "test": 10},
    "steps": 45,
    "batch_size": 20,
    "wall_seconds": 100.0,
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
    "cpu_seconds": 150.0,
    "peak_mib": 1234,
    "alone": True,
    "machine": "2 cores of a processor",
    "date": "2026-01-02",
    "commit": "abc1234",
}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MEASURED", tmp_path)
    return tmp_path


def presets(row: Row):
    return import_module(f"configs.{task_and_options(row)[0]}").PRESETS


def task_and_options(row: Row) -> tuple[str, list[str]]:
    program, *options = row.command.split()
    if row not in IN_TORCH:
        return program.removeprefix("train."), options
    task, *options = options
    return task, [option for option in options if option not in ("--weights", "ours")]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_pages_show_the_records():
    for page, text in tables.pages_with_tables().items():
        assert page.read_text() == text, "run python -m benchmarks.results --tables"


def test_every_record_belongs_to_a_row():
    for path in tables.MEASURED.glob("*.json"):
        runs = json.loads(path.read_text())
        assert path.stem in ROWS and runs
        assert len({run["seed"] for run in runs}) == len(runs)
        for run in runs:
            assert ROWS[path.stem].metric.name in run["metrics"] and run.keys() >= RUN.keys() - {
                "data",
                "images",
                "batch_size",
            }


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_every_row_has_a_command_that_the_program_accepts(row):
    task, options = task_and_options(row)
    assert parse(task, presets(row), options).run.seed == 0


@pytest.mark.parametrize("row", [*CLASSIFIERS, *AUTOENCODERS], ids=lambda row: row.name)
def test_the_short_help_of_a_preset_agrees_with_the_records(row):
    _, options = task_and_options(row)
    runs = tables.read_runs(row.name)
    claim = re.search(r"(\d[\d.]*) %", presets(row)[options[0]].about)
    if claim and runs and len(options) == 1:
        values = [tables.shown_value(row.metric, run) for run in runs]
        assert float(claim[1]) == pytest.approx(sum(values) / len(values), abs=0.5 if "." not in claim[1] else 0.15)


def test_a_line_has_the_mean_the_spread_and_the_goal(measured):
    row = Row("vit-mnist", "train.vit mnist", ACCURACY, goal=60)
    for seed, accuracy, seconds in ((2, 0.7, 61.0), (0, 0.5, 65.0), (1, 0.54, 3601.0)):
        tables.store_run(row.name, RUN | {"seed": seed, "metrics": {"accuracy": accuracy}, "wall_seconds": seconds})
    assert [run["seed"] for run in tables.read_runs(row.name)] == [0, 1, 2]
    _, _, line = tables.results_table([row, Row("vit-best", "train.vit best", ACCURACY)]).splitlines()
    assert cells(line) == [
        *("`python -m train.vit mnist`", "MNIST, 3 epochs", "test accuracy, %", "50.00, 54.00, 70.00"),
        *("58.00 ± 10.58", "**60**", "", "65 s (61 s to 60 min)", "1,234 MiB"),
    ]
    better = replace(row, goal=57, metric=ERROR)  # The errors are 50, 46 and 30 %.
    assert cells(tables.results_table([better]).splitlines()[2])[3:6] == ["50.00, 46.00, 30.00", "42.00 ± 10.58", "57"]


def test_a_new_record_replaces_that_of_its_seed_and_a_busy_machine_is_marked(measured):
    row = Row("aae-mnist", "train.aae mnist", SQUARED)
    for error, alone in ((0.125, True), (0.0625, False)):
        tables.store_run(row.name, RUN | {"metrics": {"reconstruction": error}, "alone": alone})
    assert cells(tables.results_table([row]).splitlines()[2])[3:8] == ["0.0625", "", "", "", "100 s *"]


def test_the_comparison_with_torch_shows_the_difference_and_its_standard_error(measured):
    for name, accuracies in (("vit-sample", (0.5, 0.54, 0.7)), ("torch-vit-sample", (0.6, 0.62, 0.7))):
        for seed, accuracy in enumerate(accuracies):
            tables.store_run(name, RUN | {"seed": seed, "metrics": {"accuracy": accuracy}})
    _, _, line = tables.torch_table().splitlines()
    # Variances 112 and 28 of the two means of three: the root of 112/3 + 28/3 is 6.83.
    assert cells(line)[2:6] == ["58.00 ± 10.58", "64.00 ± 5.29", "-6.00", "6.83"]


@pytest.mark.slow
def test_a_row_runs_its_command_and_records_the_last_metrics(tmp_path):
    options = "--run.steps 3 --run.batch-size 8 --data.train-split train[:40] --data.test-split test[:24]"
    row = Row("lstm-tiny", f"train.lstm tiny --model.hidden-size 5 {options}", ACCURACY)
    record = measure(row, 7, tmp_path)
    last = json.loads((tmp_path / "lstm-tiny-7" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["metrics"] == {name: value for name, value in last.items() if name not in ("step", "split")}
    assert (record["seed"], record["images"], record["steps"]) == (7, {"train": 40, "test": 24}, 3)
    assert record.keys() == RUN.keys() and 0 < record["wall_seconds"] < 600 and record["cpu_seconds"] > 1
    again = measure(row, 7, tmp_path)  # The run is finished.
    assert (again["metrics"], again["cpu_seconds"]) == (record["metrics"], None)


def test_a_page_without_the_marks_is_refused():
    with pytest.raises(ValueError, match=r"^the page must have the marks of the table x once\. Add <!-- start of"):
        with_table("no marks", "x", "| |")
