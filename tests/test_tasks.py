"""The contract of every task, found by its files: a program `train/NAME.py` with `make_task`, a preset "tiny"."""

import dataclasses
import importlib
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.base import Mesh
from train.checkpoint import Checkpoints
from train.data import batches, open_source
from train.loop import fit
from train.sharding import batch_sharding, make_mesh, state_sharding

ROOT = Path(__file__).parent.parent
TASKS = sorted(p.stem for p in (ROOT / "configs").glob("[a-z]*.py") if p.stem != "base")


class Trained:
    """A tiny task, its data, and its step compiled once."""

    def __init__(self, name):
        self.make_task = importlib.import_module(f"train.{name}").make_task
        self.config = importlib.import_module(f"configs.{name}").PRESETS["tiny"]
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


@pytest.fixture(scope="module", params=TASKS)
def trained(request):
    return Trained(request.param)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_task_overfits_one_batch(trained):
    (batch,) = trained.batches(1)
    state, losses = trained.start, []
    for _ in range(150):
        state, metrics = trained.step(state, batch)
        losses.append(float(metrics.get("loss", metrics.get("reconstruction"))))
    assert losses[-1] < 0.2 * losses[0]


def test_a_checkpoint_goes_on_bit_for_bit_even_when_training_overwrote_its_buffers(trained, tmp_path):
    expected, expected_metrics = trained.run(trained.start, 6)
    donated = jax.jit(trained.task.step, donate_argnums=0)
    with Checkpoints(tmp_path / "checkpoints", trained.task.best, trained.task.best_mode) as checkpoints:
        state = jax.tree.map(lambda x: x.copy(), trained.start)
        for step, batch in enumerate(trained.batches(6), 1):
            state, _ = donated(state, batch)
            if step == 3:
                checkpoints.save(3, state, {"sums": {}, "count": 0, "seconds": 0.0}, None)
    with Checkpoints(tmp_path / "checkpoints", trained.task.best, trained.task.best_mode) as checkpoints:
        restored, _ = checkpoints.restore(checkpoints.latest_step(), jax.eval_shape(trained.task.init))
    resumed, metrics = trained.run(restored, 6, start=3)
    assert_same(resumed, expected)
    assert_same(metrics, expected_metrics)


@pytest.mark.parametrize(
    "sizes", [Mesh(4, 1, 1), Mesh(1, 4, 1), Mesh(1, 2, 2)], ids=lambda m: f"{m.data}x{m.fsdp}x{m.tensor}"
)
def test_four_devices_compute_what_one_computes(trained, sizes):
    _, one = trained.run(trained.start, 4)
    mesh = make_mesh(sizes)
    shardings = state_sharding(mesh, trained.start)
    step = jax.jit(trained.task.step, out_shardings=(shardings, None), donate_argnums=0)
    state = jax.jit(trained.task.init, out_shardings=shardings)()
    for batch in trained.batches(4):
        state, four = step(state, jax.device_put(batch, batch_sharding(mesh)))
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {4}
    assert one.keys() == four.keys()
    for name in one:
        np.testing.assert_allclose(four[name], one[name], rtol=1e-4, err_msg=name)


def test_evaluation_gives_one_value_per_example_and_ignores_its_neighbours(trained):
    evaluate = jax.jit(trained.task.evaluate)
    (batch,) = trained.batches(1)
    values = evaluate(trained.start, batch)
    assert trained.task.best in values
    for name, value in values.items():
        assert value.shape == (64,)
        mirrored = evaluate(trained.start, {k: x[::-1] for k, x in batch.items()})[name]
        np.testing.assert_allclose(mirrored[::-1], value, rtol=1e-5, atol=1e-5)


def test_an_interrupted_run_ends_with_the_same_state_and_the_same_metrics_file(trained, tmp_path, capsys):
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
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "14")  # as if it had died after step 14's lines, before its save
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "spl')
    resumed = fit(
        dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(tmp_path / "b"))), trained.make_task
    )
    assert_same(resumed, whole)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()
    assert "goes on at step 7" in capsys.readouterr().out
    assert (tmp_path / "b" / "report.html").stat().st_size > 10_000
