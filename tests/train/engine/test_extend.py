"""`--run.extend` continues a run beyond its last step. Intervals may change when a run resumes."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs import lines, small, with_run

import train.loggers.window
from train.engine.loop import fit
from train.engine.program import Program
from train.process.errors import UserError
from train.vit import make_task


def assert_same_state(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def constant():
    """A config with a constant learning rate, so that a step does not depend on the number of steps."""
    config = small("", workers=0)
    optim = dataclasses.replace(config.optim, warmup_fraction=0.0, final_lr_fraction=1.0)
    return with_run(dataclasses.replace(config, optim=optim), "", log_every=2, eval_every=2, save_every=2)


@pytest.fixture(scope="module")
def short(constant, tmp_path_factory):
    config = with_run(constant, tmp_path_factory.mktemp("short") / "run", steps=4)
    fit(config, make_task)
    return config


def test_an_extended_run_is_bit_for_bit_a_longer_one(constant, short, tmp_path):
    whole = with_run(constant, tmp_path / "whole", steps=10)
    expected = fit(whole, make_task)
    shutil.copytree(short.run.dir, tmp_path / "run")
    fit(with_run(short, tmp_path / "run", steps=6, extend=True), make_task)
    extended = with_run(short, tmp_path / "run", steps=10, extend=True)
    assert_same_state(fit(extended, make_task), expected)
    assert lines(extended) == lines(whole)
    recorded = [{"steps": 4, "done": 4}, {"steps": 6, "done": 6}]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["extensions"] == recorded
    page = (tmp_path / "run" / "report.html").read_text()
    assert "This run was extended at step 4 of 4, at step 6 of 6. Commands to reproduce it:" in page
    fit(extended, make_task)  # The same command again changes nothing.
    assert json.loads((tmp_path / "run" / "config.json").read_text())["extensions"] == recorded


def test_the_learning_rate_of_an_extended_run_follows_the_longer_schedule(tmp_path):
    first = with_run(small(tmp_path / "run", workers=0), tmp_path / "run", steps=2, log_every=1)
    fit(first, make_task)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    longer = fit(with_run(first, tmp_path / "run", steps=4, extend=True), make_task)
    longest = fit(with_run(first, tmp_path / "other", steps=8, extend=True), make_task)
    assert longer is not None and longest is not None and (longer.step, longest.step) == (4, 8)
    losses = [[line["loss"] for line in lines(with_run(first, tmp_path / name))][:7] for name in ("run", "other")]
    assert losses[0][:3] == losses[1][:3] and losses[0][-1] != losses[1][-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"steps": 7},
            "run.steps was 4, now 7. To train that run up to step 7, add --run.extend. To star",
        ),
        ({"steps": 3, "extend": True}, "run.steps was 4, now 3. Pass the same options to resume that run. To start a "),
        ({"steps": 7, "seed": 1, "extend": True}, "run.seed was 0, now 1; run.steps was 4, now 7. Pass the same opti"),
    ],
    ids=("longer", "shorter", "another seed"),
)
def test_other_steps_are_refused(short, options, message):
    with pytest.raises(UserError) as error:
        fit(with_run(short, short.run.dir, **options), make_task)
    assert f"contains a run with other options: {message}" in str(error.value)


def test_a_new_folder_has_no_run_to_extend(short, tmp_path):
    with pytest.raises(
        UserError, match=r"--run\.dir must be the folder of an existing run with --run\.extend, got .*\. Pass"
    ):
        fit(with_run(short, tmp_path / "new", extend=True), make_task)
    assert not any((tmp_path / "new").iterdir())


def test_other_intervals_resume_the_same_run(constant, short, tmp_path):
    shutil.copytree(short.run.dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    changed = with_run(constant, tmp_path / "run", steps=4, log_every=1, eval_every=3, save_every=3)
    assert_same_state(fit(changed, make_task), fit(short, make_task))
    done = [(line["split"], line["step"]) for line in lines(changed)]
    assert done == [("train", 2), ("test", 2), ("train", 3), ("test", 3), ("train", 4), ("test", 4)]


def test_the_time_of_the_compilation_is_not_in_the_speed(tmp_path, monkeypatch):
    late = 0.0

    class SlowProgram(Program):
        """A program whose compilation takes 1,000 seconds by the clock of the speed."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            lowered = self.lowered_step

            def compile_slowly():
                nonlocal late
                late += 1000.0
                return lowered.compile()

            self.lowered_step = SimpleNamespace(compile=compile_slowly)

    monkeypatch.setattr("train.engine.setup.Program", SlowProgram)
    clock = train.loggers.window.time.perf_counter
    monkeypatch.setattr(train.loggers.window, "time", SimpleNamespace(perf_counter=lambda: clock() + late))
    config = small(tmp_path / "run", workers=0)
    fit(config, make_task)
    assert late == 1000.0
    slowest = min(line["examples_per_second"] for line in lines(config, "timing"))
    assert slowest > config.run.log_every * config.run.batch_size / 1000
