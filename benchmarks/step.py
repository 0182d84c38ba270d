"""Our train step of any size, for the whole batch on one device."""

import importlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.inputs import BATCH_SIZES, build
from configs.base import Mesh, RunConfig
from train.data.source import AbstractSource
from train.dryrun.flops import model_flops
from train.engine.program import Program
from train.engine.sharding import make_mesh


class Step:
    """The train step of a task's model. Sizes that are not passed are those of the course.

    Args:
        task: a task, such as "vit".
        sizes: "batch_size", "height" and "side" of the images in pixels (without "height" the images are square), and
            fields of the model.
    """

    def __init__(self, task: str, sizes: Mapping[str, Any] | None = None):
        sizes = {"batch_size": BATCH_SIZES[task], "side": 32 if task == "aae" else 28, **(sizes or {})}
        count, side = sizes.pop("batch_size"), sizes.pop("side")
        shape = (sizes.pop("height", side), side, 1)
        source = AbstractSource(
            "blank", "train", shape, 10, list("0123456789"), open_split=lambda _: source, count=10 * count
        )
        config_type = importlib.import_module(f"configs.{task}").Config
        make_task = importlib.import_module(f"train.{task}").make_task
        run, one_device = RunConfig(steps=10**6, batch_size=count), Mesh(1, 1, 1)
        config = config_type(model=build(task)[0].clone(**sizes), run=run, mesh=one_device)
        made = make_task(config, source)
        program = Program(config, made, source, make_mesh(config.mesh))
        self.compiled = program.lowered_step.compile()
        self.flops = model_flops(config, make_task, source, program)
        """FLOPs of the matrix products of a step."""
        self._state = jax.jit(made.init, out_shardings=program.places)()
        rng, index = np.random.default_rng(0), np.arange(count, dtype=np.int32)
        batch = {"image": rng.integers(0, 256, (count, *shape), np.uint8), "label": index % 10, "index": index}
        self._batch = program.place(batch, index, count)

    def __call__(self) -> float:
        """Runs a step and returns its seconds."""
        start = time.perf_counter()
        self._state, metrics = self.compiled(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start
