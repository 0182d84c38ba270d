"""Computes the features of a linear probe once.

If only the heads of a classifier train, and nothing changes its images or its outputs at random, the layers before the
heads give the same outputs in every step. Then each step reads these features instead of images.
"""

import math
from contextlib import closing
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError

from configs.base import Config
from train.config.tree import flat_config
from train.data import Source, eval_batches
from train.data.source import FeatureSource
from train.engine.freeze import split
from train.engine.program import Program
from train.process.distributed import in_every_process
from train.task import Features, State, Task, named_leaves
from w2jax.convert.state_dict import HEADS
from w2jax.text import format_bytes

_RANDOM = ("data.crop", "model.dropout", "model.attention_dropout", "model.drop_path")


class Plan(NamedTuple):
    """Whether a run computes features once."""

    feature: jax.ShapeDtypeStruct | None = None
    """Shape and dtype of the features of an image, [K, D]. None: each step computes all layers."""
    note: str | None = None
    """What the run does and why, in one line. None if more than the heads trains."""


def plan(config: Config, task: Task, source: Source, test_source: Source) -> Plan:
    """Decides whether a run computes features once. All processes of a run decide alike.

    Raises:
        ValueError, UserError: as `task.init`.
    """
    options, features = flat_config(config), task.features
    frozen = options.get("optim.freeze")
    if features is None or not frozen:
        return Plan()
    state = jax.eval_shape(task.init)
    trained, _ = split(state.params, frozen)
    if any(name.split("/")[0] not in HEADS for name in named_leaves(trained)):
        return Plan()
    every_step = "only the head trains, but each step computes all layers"
    if random := [name for name, value in options.items() if value and _is_random(name)]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in random)
        advice = "Without these options, as in the preset probe, features are computed once"
        return Plan(note=f"{every_step}, because of {flags}. {advice}")
    try:
        images = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.uint8)
        feature = jax.eval_shape(lambda state, images: features(state, images)[0], state, images)
    except InvalidRngError:
        return Plan(note=f"{every_step}, because the model draws random numbers")
    sizes = [len(part) * math.prod(feature.shape) * feature.dtype.itemsize for part in (source, test_source)]
    limit = config.data.memory_limit
    if not in_every_process(max(sizes) <= limit * 2**20):  # The limit may differ between processes.
        needed = format_bytes(max(sizes))
        return Plan(note=f"{every_step}, because their outputs need {needed}, above --data.memory-limit {limit} (MiB)")
    counts = f"{len(source):,} train and {len(test_source):,} test images"
    return Plan(feature, f"only the head trains: the features of {counts} are computed once, at the start")


def computed(program: Program, features: Features, source: Source, state: State, size: int, workers: int) -> Source:
    """Computes the features of a split, `size` images at a time. Every process gets all of them.

    The other arguments are as for `train.data.eval_batches`.
    """
    compute = program.jit(lambda state, batch: (features(state, batch["image"]), batch["label"]), program.replicated)
    rows = program.rows(size)
    with closing(eval_batches(source, size, rows, workers)) as feed:
        parts = [jax.device_get(compute(state, program.place(batch, rows, size))) for batch in feed]
    found, labels = (np.concatenate(arrays)[: len(source)] for arrays in zip(*parts, strict=True))
    common = {name: getattr(source, name) for name in Source.__dataclass_fields__}
    return FeatureSource(**common, features=found, labels=labels)


def _is_random(name: str) -> bool:
    """Returns whether an option that is on makes an image or the outputs of the model random."""
    return name in _RANDOM or (name.startswith("augment.") and name != "augment.magnitude")
