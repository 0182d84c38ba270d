"""A train step on one batch of random images: of any config, or of a course model with any sizes on one device."""

import importlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.inputs import BATCH_SIZES, build
from configs.base import Config, Mesh, RunConfig
from train.data.source import AbstractSource, Source
from train.dryrun.flops import model_flops
from train.engine.program import Program
from train.engine.sharding import make_mesh


def blank_source(shape: tuple[int, int, int], classes: int, count: int) -> AbstractSource:
    """Returns a source of `count` black images; each of its splits is the same."""
    names = [str(label) for label in range(classes)]
    source = AbstractSource("blank", "train", shape, classes, names, open_split=lambda _: source, count=count)
    return source


class Step:
    """The train step that `python -m train.TASK` compiles for a config, with a state and a batch on the devices."""

    def __init__(self, task: str, config: Config, source: Source):
        make_task = importlib.import_module(f"train.{task}").make_task
        made = make_task(config, source)
        program, count = Program(config, made, source, make_mesh(config.mesh)), config.run.batch_size
        self.compiled = program.lowered_step.compile()
        self.flops = model_flops(config, make_task, source, program)
        """FLOPs of the matrix products of a step."""
        self._state = jax.jit(made.init, out_shardings=program.places)()
        rng, index = np.random.default_rng(0), np.arange(count, dtype=np.int32)
        images = rng.integers(0, 256, (count, *source.image_shape), np.uint8)
        batch = {"image": images, "label": index % source.num_classes, "index": index}
        self._batch = program.place(batch, index, count)
        self.metrics: Mapping[str, Any] = {}
        """The metrics of the last step."""

    def __call__(self) -> float:
        """Runs a step and returns its seconds."""
        start = time.perf_counter()
        self._state, self.metrics = self.compiled(self._state, self._batch)
        jax.block_until_ready((self._state, self.metrics))
        return time.perf_counter() - start


def course_step(task: str, sizes: Mapping[str, Any] | None = None) -> Step:
    """Returns the step of a course model, for the whole batch on one device.

    Sizes that are not passed are those of the course.

    Args:
        task: a task, such as "vit".
        sizes: "batch_size", "height" and "side" of the images in pixels (without "height" the images are square), and
            fields of the model.
    """
    sizes = {"batch_size": BATCH_SIZES[task], "side": 32 if task == "aae" else 28, **(sizes or {})}
    count, side = sizes.pop("batch_size"), sizes.pop("side")
    source = blank_source((sizes.pop("height", side), side, 1), 10, 10 * count)
    run, one_device = RunConfig(steps=10**6, batch_size=count), Mesh(1, 1, 1)
    config_type = importlib.import_module(f"configs.{task}").Config
    return Step(task, config_type(model=build(task)[0].clone(**sizes), run=run, mesh=one_device), source)
