"""`--run.epochs` sets the number of steps from the training split."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from runs import lines, small, with_run

from configs.vit import PRESETS
from train.config.cli import parse
from train.dryrun.__main__ import main as dryrun
from train.engine.loop import fit
from train.engine.setup import with_steps
from train.process.errors import UserError
from train.report.reproduce import commands
from train.run.files import read_config_tree
from train.run.folder import read_config
from train.vit import make_task

OPTIONS = ["tiny", "--data.train-split", "train[:40]", "--data.test-split", "test[:24]", "--run.batch-size", "16"]
OPTIONS += ["--model.embed-dim", "8", "--model.mlp-dim", "8", "--model.depth", "1"]


@pytest.mark.parametrize(
    ("epochs", "count", "size", "steps"),
    [(3, 40, 10, 12), (3, 40, 11, 11), (0.5, 41, 10, 3), (1e-9, 40, 10, 1), (0.07, 1000, 10, 7), (2, 3, 128, 1)],
)
def test_the_steps_are_the_epochs_times_the_batches_of_an_epoch_rounded_up(epochs, count, size, steps):
    config = with_run(PRESETS["tiny"].config, "", epochs=epochs, batch_size=size)
    assert with_steps(config, count).run.steps == steps


def test_too_many_epochs_are_refused():
    with pytest.raises(UserError, match=r"^--run\.epochs must give at most 2,147,483,647 steps, got 1e\+30 epochs, w"):
        with_steps(with_run(PRESETS["tiny"].config, "", epochs=1e30, batch_size=1), 40)


def test_steps_and_epochs_exclude_each_other_on_the_command_line():
    with pytest.raises(UserError, match=r"^--run\.epochs must be left out if --run\.steps is given, got 3 and 400\. P"):
        parse("vit", PRESETS, ["tiny", "--run.epochs", "3", "--run.steps=400"])
    by_epochs = with_run(PRESETS["tiny"].config, None, epochs=2.0)
    presets = {"tiny": replace(PRESETS["tiny"], config=by_epochs)}
    assert parse("vit", presets, ["tiny"]).run.epochs == 2
    assert parse("vit", presets, ["tiny", "--run.epochs", "5"]).run.epochs == 5
    by_steps = parse("vit", presets, ["tiny", "--run.steps", "400"]).run
    assert (by_steps.epochs, by_steps.steps) == (None, 400)


def test_a_run_of_epochs_resumes_and_is_extended(tmp_path, capsys):
    options = [*OPTIONS, "--run.dir", str(tmp_path / "run")]
    fit(parse("vit", PRESETS, [*options, "--run.epochs", "1.5"]), make_task)
    config = read_config(tmp_path / "run", type(PRESETS["tiny"].config))
    assert (config.run.epochs, config.run.steps, lines(config)[-1]["step"]) == (1.5, 4, 4)
    assert "4 steps: 1.5 × 40 images / 16, rounded up" in capsys.readouterr().out
    (command,) = commands(read_config_tree(tmp_path / "run"))
    assert "--run.epochs 1.5" in command and "run.steps" not in command

    fit(parse("vit", PRESETS, shlex.split(command)[3:]), make_task)
    assert "Training already finished at step 4" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"run\.steps was 4, now 5\. To train that run up to step 5, add --run\.extend"):
        fit(parse("vit", PRESETS, [*options, "--run.epochs", "2"]), make_task)
    fit(parse("vit", PRESETS, [*options, "--run.epochs", "2", "--run.extend"]), make_task)
    assert lines(config)[-1]["step"] == 5
    assert [command.split()[-1] for command in commands(read_config_tree(tmp_path / "run"))] == ["4", "5"]


def test_a_run_of_epochs_equals_the_run_of_as_many_steps(tmp_path):
    config = with_run(small(tmp_path / "a", workers=0), tmp_path / "a", batch_size=12)
    fit(with_run(config, tmp_path / "a", steps=7), make_task)
    fit(with_run(config, tmp_path / "b", epochs=2), make_task)
    assert Path(tmp_path, "a", "metrics.jsonl").read_bytes() == Path(tmp_path, "b", "metrics.jsonl").read_bytes()


def test_mesh_show_and_the_dry_run_accept_epochs(tmp_path, capsys):
    assert fit(parse("vit", PRESETS, [*OPTIONS, "--run.epochs", "2", "--mesh.show"]), make_task) is None
    out = tmp_path / "report.json"
    assert dryrun(["vit", *OPTIONS, "--topology", "cpu:1", "--run.epochs", "2", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["batch_size"] == 16
    with pytest.raises(UserError, match=r"--run\.epochs must give at most"):
        dryrun(["vit", *OPTIONS, "--topology", "cpu:1", "--run.epochs", "1e30"])
