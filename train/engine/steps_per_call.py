"""Chooses the number of training steps in a call of the device, if `--run.steps-per-call` is auto."""

import math
from typing import NamedTuple

import jax
import numpy as np

from configs.base import Config
from train.data import Source
from train.data.source import InMemorySource
from train.engine.program import Program
from train.process.distributed import in_every_process
from w2jax.text import format_bytes

MOST = 50
"""A signal and the metrics wait for the end of a call."""
LARGEST_MODEL = 5_000_000
"""Parameters. A step of a larger model takes so long that starting it hardly counts."""
SHARE = 0.1
"""Largest part of a device's memory for the training split. The rest is for the state and the activations."""


class StepsPerCall(NamedTuple):
    """The number of training steps in a call of the device."""

    number: int
    note: str | None = None
    """Says what `auto` chose and why; None if this is single steps, or not auto."""


def choose(config: Config, source: Source, program: Program, has_features: bool) -> StepsPerCall:
    """Resolves `--run.steps-per-call`. All processes of a run choose the same number.

    `has_features` says that the steps read features of the images, which are always in memory.
    """
    run, device = config.run, program.mesh.local_devices[0]
    if run.steps_per_call != "auto":
        return StepsPerCall(run.steps_per_call)
    number = several_steps(
        device.platform,
        data_bytes(program, len(source)) if has_features or isinstance(source, InMemorySource) else None,
        (device.memory_stats() or {}).get("bytes_limit"),
        sum(math.prod(x.shape) for x in jax.tree.leaves(program.state_shapes.params)),
        run.steps,
        run.log_every,
    )
    if not in_every_process(number > 1):  # --data.memory-limit may differ between processes.
        return StepsPerCall(1)
    size = format_bytes(data_bytes(program, len(source)))
    note = f"each call of the device runs {number} steps, on a training split stored there ({size}). "
    return StepsPerCall(number, f"{note}One step in each call: --run.steps-per-call 1")


def several_steps(
    platform: str, data: int | None, memory: int | None, parameters: int, steps: int, log_every: int
) -> int:
    """Returns what `auto` means: 1 if several steps in a call do not fit or hardly save time.

    Args:
        platform: of the device, such as cpu.
        data: size of the training split in bytes; None: it is streamed.
        memory: size of the device's memory in bytes; None: not known.
        parameters: number of the model's parameters.
        steps: number of steps in the run.
        log_every: number of steps between two training rows. A call is not longer, so that no row is late.
    """
    if platform == "cpu" or data is None or memory is None or data > SHARE * memory or parameters > LARGEST_MODEL:
        return 1
    return min(MOST, steps, log_every)


def data_bytes(program: Program, examples: int) -> int:
    """Returns the size of a training split on a device."""
    shapes = [x for name, x in program.batch_shapes.items() if name != "index"]
    return examples * sum(math.prod(x.shape[1:]) * np.dtype(x.dtype).itemsize for x in shapes)
