"""`--checkpoint last|best|STEP` chooses a checkpoint of a run."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from weights import refusal

from train.engine.checkpoint import Checkpoints
from train.run.choose import Choice, choose_checkpoint
from train.run.weights import load_run
from train.task import State
from w2jax.serialize import module_to_json
from w2jax.vit import ViT

MODULE = ViT(3, 2, 4, 1, 2, 5)


def params(step):
    return MODULE.init(jax.random.key(step), jnp.zeros((1, 4, 4, 1)))["params"]


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints at steps 20, 60 and 70. Step 30 was the best, but its checkpoint is gone."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": module_to_json(MODULE)}))
    info = {"best_metric": "error", "best_mode": "min", "metric_descriptions": {}}
    (folder / "task.json").write_text(json.dumps(info))
    tested = {20: 0.25, 30: 0.125, 40: 0.5, 60: 0.75}
    with Checkpoints(folder / "checkpoints", "min") as checkpoints:
        for step in (20, 60, 70):
            scores = {str(at): score for at, score in tested.items() if at < step}
            state = State(jnp.asarray(step), params(step), None, None, None)
            checkpoints.scores.update({at: score for at, score in tested.items() if at <= step and at != 30})
            checkpoints.save(step, state, {"seconds": 1.0, "scores": scores})
    rows = [{"step": step, "split": "test", "error": score, "loss": -1.0} for step, score in tested.items()]
    rows.append({"step": 70, "split": "train", "error": 0.0, "loss": 0.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_each_name_chooses_its_checkpoint(run):
    assert choose_checkpoint(run) == choose_checkpoint(run, "last") == Choice(70, "", [])
    assert choose_checkpoint(run, "60") == Choice(60, "", [])
    lost = "step 30 scored 0.1250, which is better, but its checkpoint no longer exists"
    assert choose_checkpoint(run, "best") == Choice(20, f"best error, 0.2500; {lost}", [])


def test_the_last_evaluation_counts_although_no_checkpoint_has_its_score(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 70, "split": "test", "error": 0.0625}\n')
    assert choose_checkpoint(run, "best") == Choice(70, "best error, 0.0625", [])


def test_the_scores_of_the_checkpoint_count_more_than_the_rows(run):
    rows = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(rows.replace('"error": 0.75', '"error": 0.0'))
    assert choose_checkpoint(run, "best").step == 20


def test_the_weights_are_those_of_the_checkpoint(run):
    for name, step in (("best", 20), ("60", 60), ("last", 70)):
        found = load_run(run, checkpoint=name)
        assert (found.variables["params"]["head"]["kernel"] == params(step)["head"]["kernel"]).all()
        assert found.notes[0].startswith(f"the parameters of step {step}")


def test_a_checkpoint_that_does_not_exist_is_refused(run):
    assert refusal(lambda: choose_checkpoint(run, "bset")) == "checkpoint must be last, best or a step, got 'bset'"
    message = refusal(lambda: choose_checkpoint(run, "30"))
    assert message == f"checkpoint must be the step of a checkpoint in {run} (20, 60, 70), got 30"


def test_without_an_evaluation_no_checkpoint_is_best(run):
    (run / "metrics.jsonl").write_text('{"step": 20, "split": "train", "error": 0.5}\n')
    for step in ("60", "70"):
        (run / "checkpoints" / step).rename(run / step)
    message = refusal(lambda: choose_checkpoint(run, "best"))
    assert (
        message == f"checkpoint must be last or a step for {run}, got best, but no checkpoint was evaluated. Pass last"
    )


def test_a_damaged_checkpoint_is_skipped_only_if_it_was_not_asked_for(run):
    for step in ("20", "70"):
        next(path for path in (run / "checkpoints" / step / "state").rglob("*") if path.is_file()).write_bytes(b"")
    choice = choose_checkpoint(run)
    assert choice.step == 60 and re.match(r"step 70: state/\S+ must have \d+ bytes, got 0", *choice.skipped)
    for name, step in (("best", 20), ("70", 70)):
        message = refusal(lambda name=name: choose_checkpoint(run, name))
        assert message.startswith(f"the checkpoint of step {step} in {run} is damaged: state/")
        assert message.endswith("Choose another checkpoint")
