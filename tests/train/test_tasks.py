"""The contract of every task, found by its files: a program `train/NAME.py` with `make_task`, and a preset "tiny"."""

import dataclasses
import os
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from models import assert_same_trees
from tasks import TASKS, make_task, preset

from configs.base import Mesh
from train.data import batches, example_order, open_source
from train.engine.checkpoint import Checkpoints
from train.engine.loop import fit
from train.engine.program import Program
from train.engine.sharding import make_mesh
from train.engine.step import skip_nonfinite
from train.report.metric_descriptions import METRIC_DESCRIPTIONS
from train.task import NONFINITE


class Trained:
    """A tiny task, its data, and its step, which is compiled once."""

    def __init__(self, name):
        self.make_task, self.config = partial(make_task, name), preset(name)
        self.source = open_source(self.config.data, "train[:512]")
        self.task = self.make_task(self.config, self.source)
        self.step = jax.jit(self.task.step)
        self.start = jax.jit(self.task.init)()

    def batches(self, stop, start=0):
        return batches(self.source, 64, 0, start, stop)

    def run(self, state, stop, start=0):
        for batch in self.batches(stop, start):
            state, metrics = self.step(state, batch)
        return state, metrics


# the lstm compiles fastest
@pytest.fixture(
    scope="module", params=[pytest.param(task, marks=[] if task == "lstm" else pytest.mark.slow) for task in TASKS]
)
def trained(request):
    return Trained(request.param)


def test_the_report_describes_every_metric(trained):
    (batch,) = trained.batches(1)
    _, of_steps = jax.eval_shape(trained.task.step, trained.start, batch)
    of_examples = jax.eval_shape(trained.task.evaluate, trained.start, batch)
    assert {*of_steps, *of_examples} - {NONFINITE} <= {*METRIC_DESCRIPTIONS, *trained.task.metric_descriptions}


def test_a_task_overfits_one_batch(trained):
    (batch,) = trained.batches(1)
    state, losses = trained.start, []
    for _ in range(150):
        state, metrics = trained.step(state, batch)
        losses.append(float(metrics.get("loss", metrics.get("reconstruction"))))
    assert losses[-1] < 0.2 * losses[0]


def test_a_checkpoint_resumes_bit_for_bit(trained, tmp_path):
    """Although training reused the buffers of the saved arrays."""
    expected, expected_metrics = trained.run(trained.start, 6)
    donated = jax.jit(trained.task.step, donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = jax.tree.map(lambda x: x.copy(), trained.start)
        for step, batch in enumerate(trained.batches(6), 1):
            state, _ = donated(state, batch)
            if step == 3:
                checkpoints.save(3, state, {})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored, _ = checkpoints.restore(checkpoints.latest_step(), jax.eval_shape(trained.task.init))
    resumed, metrics = trained.run(restored, 6, start=3)
    assert_same_trees(resumed, expected)
    assert_same_trees(metrics, expected_metrics)


def test_a_nonfinite_step_is_skipped_completely(trained):
    (batch,) = trained.batches(1)
    leaves, structure = jax.tree.flatten(trained.start.params)
    poisoned = trained.start.replace(params=structure.unflatten([*leaves[:-1], leaves[-1] * np.nan]))
    after, metrics = jax.jit(skip_nonfinite(trained.task.step))(poisoned, batch)
    assert metrics[NONFINITE].shape == (len(leaves),) and metrics[NONFINITE].any()
    assert_same_trees(after, poisoned.replace(step=poisoned.step + 1))


def test_several_steps_in_one_call_equal_single_steps_bit_for_bit(trained):
    config = dataclasses.replace(trained.config, run=dataclasses.replace(trained.config.run, batch_size=64))
    program = Program(config, trained.task, trained.source, make_mesh(Mesh(1, 1, 1)))
    # With the compiler options of users: the fast compilation of the tests rounds differently inside a loop.
    usual = {"xla_backend_optimization_level": 3}
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:
        usual["xla_cpu_use_fusion_emitters"] = True
    step, steps = program.lowered_step.compile(usual), program.lower_many(3).compile(usual)
    order = example_order(len(trained.source), 64, seed=0)
    data = trained.source.gather(np.arange(len(trained.source)))
    expected, state = (jax.tree.map(lambda x: x.copy(), trained.start) for _ in range(2))
    single, several = [], []
    for batch in trained.batches(5):
        expected, metrics = step(expected, program.place(batch, program.rows(64), 64))
        single.append(metrics)
    for start, count in ((0, 3), (3, 2)):
        indices = np.array([order(start + i % count) for i in range(3)])  # indices after `count` must not be used
        state, metrics = steps(state, *jax.tree.map(program.replicate, (data, indices, np.array(count, np.int32))))
        several += [{name: value[i] for name, value in metrics.items()} for i in range(count)]
    assert_same_trees(state, expected)
    for one, other in zip(several, single, strict=True):
        assert_same_trees(one, other)


def test_evaluation_gives_one_value_per_example_independent_of_the_others(trained):
    evaluate = jax.jit(trained.task.evaluate)
    (batch,) = trained.batches(1)
    values = evaluate(trained.start, batch)
    assert trained.task.best in values
    for name, value in values.items():
        assert value.shape == (64,)
        mirrored = evaluate(trained.start, {k: x[::-1] for k, x in batch.items()})[name]
        np.testing.assert_allclose(mirrored[::-1], value, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_ends_with_the_same_state_and_metrics_file(trained, tmp_path, capsys):
    config = dataclasses.replace(
        trained.config,
        data=dataclasses.replace(trained.config.data, train_split="train[:300]", test_split="test[:150]"),
        run=dataclasses.replace(
            trained.config.run,
            steps=14,
            batch_size=64,
            log_every=4,
            eval_every=7,
            save_every=7,
            dir=str(tmp_path / "a"),
        ),
        mesh=Mesh(1, 1, 1),
    )
    whole = fit(config, trained.make_task)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "14")  # as if the run died after logging step 14, before saving
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "spl')
    resumed = fit(
        dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(tmp_path / "b"))), trained.make_task
    )
    assert_same_trees(resumed, whole)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    assert "Resumed from step 7 " in capsys.readouterr().out
    assert (tmp_path / "b" / "report.html").stat().st_size > 10_000
