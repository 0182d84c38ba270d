"""Early stopping with `--run.patience`: the step at which a run ends, resuming, and what a run folder shows."""

import dataclasses
import shutil
import signal
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import interrupted_at, lines, small, with_run

from train.engine.loop import fit
from train.process.errors import Interrupted, UserError
from train.run.choose import choose_checkpoint
from train.run.patience import is_over
from train.run.record import read_record
from train.vit import make_task

# The accuracy after 2, 4 … steps. The best is after 6 steps: the same score later is no better.
SCORES = (0.25, 0.5, 0.75, 0.5, 0.75, 0.25, 1.0, 0.5)


def make(config, source, mode="max"):
    """Returns the task of the ViT, with the test accuracy from SCORES, and a metric that only the last step has."""
    task = make_task(config, source)

    def evaluate(state, batch):
        scores = jnp.asarray(SCORES if mode == "max" else [-score for score in SCORES])
        return task.evaluate(state, batch) | {"accuracy": jnp.full(batch["label"].shape, scores[state.step // 2 - 1])}

    return dataclasses.replace(
        task, evaluate=evaluate, best_mode=mode, final_metrics=lambda state, _: {"final": float(state.step)}
    )


def config(folder, patience=None, **options):
    rows = {"steps": 16, "log_every": 3, "eval_every": 2, "save_every": 5}
    return with_run(small(folder), folder, **(rows | {"patience": patience} | options))


def evaluated(run):
    return [line["step"] for line in lines(run) if line["split"] == "test"]


def states_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    run = config(tmp_path_factory.mktemp("patience") / "run", 2)
    return run, fit(run, make)


def test_a_run_ends_after_that_many_evaluations_without_a_better_score(stopped, tmp_path):
    run, state = stopped
    assert (evaluated(run), int(state.step)) == ([2, 4, 6, 8, 10], 10)
    assert [line.get("final") for line in lines(run) if line["split"] == "test"] == [None] * 4 + [10.0]
    whole = config(tmp_path / "whole")
    fit(whole, make)
    ours, theirs = ([line for line in lines(x) if line["step"] < 10] for x in (run, whole))
    assert ours == theirs  # until then it is the same run
    assert evaluated(whole) == [2, 4, 6, 8, 10, 12, 14, 16]


@pytest.mark.parametrize(("patience", "last"), [(1, 8), (3, 12), (4, 16)])
def test_the_patience_counts_evaluations_and_equal_scores_are_no_better(tmp_path, patience, last):
    run = config(tmp_path / "run", patience)
    assert int(fit(run, make).step) == last
    assert evaluated(run)[-1] == last


def test_if_low_scores_are_better_the_lowest_counts(tmp_path):
    run = config(tmp_path / "run", 2, steps_per_call=3)
    assert int(fit(run, partial(make, mode="min")).step) == 10


def test_the_best_checkpoint_is_saved_although_no_checkpoint_was_due(stopped):
    folder = Path(stopped[0].run.dir)
    assert sorted(int(path.name) for path in (folder / "checkpoints").iterdir()) == [6, 8, 10]
    assert choose_checkpoint(folder, "best").step == 6


def test_the_same_command_trains_no_further_and_a_larger_patience_does(stopped, tmp_path, capsys):
    shutil.copytree(stopped[0].run.dir, tmp_path / "run")
    again = with_run(stopped[0], tmp_path / "run")
    states_equal(fit(again, make), stopped[1])
    output = capsys.readouterr().out
    assert "Training already finished at step 10" in output
    why = "Stopped early at step 10 of 16: the last 2 evaluations had no better accuracy than step 6, 0.75"
    assert why in " ".join(output.split())
    assert lines(again) == lines(stopped[0])

    more = with_run(again, tmp_path / "run", patience=4)
    whole = config(tmp_path / "whole")
    states_equal(fit(more, make), fit(whole, make))
    assert read_record(tmp_path / "run").state == "finished"


def test_a_killed_run_stops_at_the_same_step_with_the_same_bits(stopped, tmp_path, monkeypatch):
    run = config(tmp_path / "run", 2)
    with monkeypatch.context() as context:
        interrupted_at(context, ("test", 5), signal.SIGTERM)  # in the evaluation that ends the run
        with pytest.raises(Interrupted):
            fit(run, make)
    assert evaluated(run) == [2, 4, 6, 8]
    states_equal(fit(run, make), stopped[1])
    assert lines(run) == lines(stopped[0])


def test_the_list_and_the_report_show_that_a_run_stopped_early(stopped):
    record = read_record(Path(stopped[0].run.dir))
    assert (record.state, record.step, record.total_steps, record.best_score) == ("stopped early", 10, 16, 0.75)
    page = Path(stopped[0].run.dir, "report.html").read_text()
    assert "Stopped early: step 10 of 16" in page
    assert 'http-equiv="refresh"' not in page


def test_the_patience_must_be_positive(tmp_path):
    with pytest.raises(UserError, match=r"--run\.patience must be from 1 to"):
        fit(config(tmp_path / "run", 0), make)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=8), st.integers(1, 4))
def test_patience_by_its_definition(values, patience):
    scores = {3 * i: value for i, value in enumerate(values, 1)}
    first = values.index(max(values))  # No later score is better, and an equal one is not.
    over = len(values) - 1 - first >= patience
    assert is_over(scores, "max", patience) == over
    assert is_over({step: -value for step, value in scores.items()}, "min", patience) == over
    assert not is_over(scores, "max", None)
