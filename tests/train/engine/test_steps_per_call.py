"""`--run.steps-per-call auto` runs several steps per call only where that fits and saves time."""

import dataclasses
import shutil
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from configs.base import Mesh
from configs.vit import PRESETS
from train.engine.loop import fit
from train.engine.setup import set_up
from train.engine.steps_per_call import choose, data_bytes, several_steps
from train.vit import make_task

MIB = 2**20
MNIST_ON_A_GPU = {
    "platform": "gpu", "data": 45 * MIB, "memory": 16_000 * MIB, "parameters": 138_890, "steps": 2000, "log_every": 100
}  # fmt: skip


def config(folder, **changes):
    tiny = PRESETS["tiny"].config
    run = dataclasses.replace(tiny.run, dir=str(folder), batch_size=8, steps=5, log_every=3, eval_every=5, save_every=2)
    data = dataclasses.replace(tiny.data, train_split="train[:64]", test_split="test[:16]")
    return dataclasses.replace(tiny, run=dataclasses.replace(run, **changes), data=data, mesh=Mesh(1, 1, 1))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 50),
        ({"platform": "tpu"}, 50),
        ({"log_every": 20}, 20),
        ({"steps": 7}, 7),
        ({"data": 1600 * MIB}, 50),
        ({"parameters": 5_000_000}, 50),
        ({"platform": "cpu"}, 1),
        ({"data": None}, 1),
        ({"memory": None}, 1),
        ({"data": 1601 * MIB}, 1),
        ({"parameters": 5_000_001}, 1),
    ],
)
def test_auto_is_several_steps_for_a_small_model_with_data_on_an_accelerator(changes, expected):
    assert several_steps(**MNIST_ON_A_GPU | changes) == expected


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return set_up(config(tmp_path_factory.mktemp("runs") / "run"), make_task)[0]


def on_a_gpu(setup) -> Any:
    """The program of a setup, on a device that says it is a GPU with 16 GiB of memory."""
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 2**34})
    shapes = {name: getattr(setup.program, name) for name in ("state_shapes", "batch_shapes")}
    return SimpleNamespace(mesh=SimpleNamespace(local_devices=[gpu]), **shapes)


def test_auto_is_single_steps_on_a_cpu_without_a_note(setup):
    assert setup.steps_per_call == (1, None)


def test_auto_on_a_gpu_says_how_many_steps_and_why(setup):
    number, note = choose(setup.config, setup.source, on_a_gpu(setup), has_features=False)
    assert number == 3  # --run.log-every
    assert note.startswith("each call of the device runs 3 steps, on a training split stored there (49.2 KiB).")


def test_a_streamed_split_gives_single_steps_but_its_features_do_not(setup):
    streamed = dataclasses.replace(setup.config.data, memory_limit=0, workers=0)
    source = set_up(dataclasses.replace(setup.config, data=streamed), make_task)[0].source
    assert choose(setup.config, source, on_a_gpu(setup), has_features=False) == (1, None)
    assert choose(setup.config, source, on_a_gpu(setup), has_features=True).number == 3


def test_a_number_is_taken_as_it_is(setup):
    run = dataclasses.replace(setup.config.run, steps_per_call=7)
    assert choose(dataclasses.replace(setup.config, run=run), setup.source, setup.program, False) == (7, None)


def test_the_size_of_the_data_is_that_of_the_arrays_on_the_device(setup):
    arrays = setup.source.gather(np.arange(64))
    assert data_bytes(setup.program, 64) == sum(x.nbytes for x in arrays.values())


@pytest.mark.slow
def test_a_run_that_began_with_auto_on_a_cpu_resumes_with_several_steps_per_call(tmp_path):
    """As on an accelerator, where `auto` means several steps."""
    whole = config(tmp_path / "whole")
    expected = fit(whole, make_task)
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    for step in ("4", "5"):
        shutil.rmtree(tmp_path / "moved" / "checkpoints" / step)
    found = fit(config(tmp_path / "moved", steps_per_call=3), make_task)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "moved")]
    assert rows[0] == rows[1]
