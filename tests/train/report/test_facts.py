"""The facts at the top of a report."""

import json
import re

import pytest
from pictures import a_run_folder

from train.process.errors import UserError
from train.report.page import run_page
from train.run.facts import Facts
from train.run.record import TaskInfo, read_record


@pytest.fixture
def folder(tmp_path):
    return a_run_folder(tmp_path / "run")


def test_the_facts_say_what_was_trained_where_and_for_how_long(folder):
    facts = {
        "parameters": 24714,
        "examples": {"train": 10000, "test": 2000},
        "versions": {"Python": "3.11.2", "jax": "<0.7>"},
        "started": "2025-11-29 14:31",
        "phases": {"training": 4000.4, "compilation": 31.0, "report": 2.04, "saving": 0.04},
    }
    info = TaskInfo("accuracy", "max", facts=Facts(**facts))
    (folder / "task.json").write_text(json.dumps(info.as_json()))
    assert read_record(folder).task_info == info
    rows = dict(re.findall(r"<tr><th>([^<]*)<td>([^<]*)", run_page(folder)))
    assert rows == {
        "status": "Not finished: step 4 of 400",
        "model": "ViT, 24,714 parameters",
        "data": "mnist_sample, 10,000 training and 2,000 test images",
        "started": "2025-11-29 14:31 UTC",
        "time by phase": "training 1:06:40, compilation 31 s, report 2.0 s",
        "versions": "Python 3.11.2, jax &lt;0.7&gt;",
    }


@pytest.mark.parametrize("facts", [[], {"parameters": "7"}, {"versions": {"jax": 1}}, {"other": 1}, {"phases": 3}])
def test_damaged_facts_are_one_clear_line(folder, facts):
    content = TaskInfo("accuracy", "max").as_json() | {"facts": facts}
    (folder / "task.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"task\.json is damaged\. Delete it"):
        run_page(folder)


def test_a_run_that_stopped_early_says_at_which_step(folder):
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"run": tree["run"] | {"steps": 2000, "patience": 2}}))
    lines = [{"step": step, "split": "test", "accuracy": 0.5} for step in (200, 400, 600)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "<th>status<td>Stopped early: step 600 of 2,000<" in run_page(folder)
