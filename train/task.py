"""What a task is: pure functions. The loop knows nothing else of a task; a task knows nothing of the loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from configs.base import Optim

Batch = Mapping[str, Array]
Params = PyTree[Array]
Metrics = dict[str, Float[Array, ""]]
Loss = Callable[[Params, Batch, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]


class State(struct.PyTreeNode):
    """All that training changes, and so all that a checkpoint holds."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema: Params | None = None  # average of the parameters, if the optimizer's config asks for one

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate: the average where there is one."""
        return self.params if self.ema is None else self.ema


@dataclass(frozen=True)
class Task:
    """A model with its loss, as four pure functions that jit and shard.

    Batches hold what `train.data` gives: "image" uint8 [B, h, w, C], "label" int32 [B]; in evaluation also
    "mask" bool [B], False at examples that only fill up the batch.
    """

    init: Callable[[], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    """One optimizer step. Everything random in it follows from the seed and `state.step`."""
    evaluate: Callable[[State, Batch], dict[str, Float[Array, "B"]]]
    """One value per example and metric; the loop averages over the split."""
    figures: Callable[[State, Batch], dict[str, Any]]
    """Arrays that the report draws, by name."""
    best: str = "accuracy"
    """Metric of `evaluate`, higher is better, that the best checkpoint is kept by."""


def one_loss_init(params: Params, optimizer: optax.GradientTransformation, config: Optim) -> State:
    """The State before the first step."""
    ema = None if config.ema is None else jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)


def one_loss_step(loss: Loss, optimizer: optax.GradientTransformation, config: Optim, seed: int):
    """`step` of a task with one loss: gradient (accumulated over parts of the batch), update, average.

    `loss(params, batch, key)` returns the mean over the batch and metrics, likewise means.
    """

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        metrics, gradients = _mean_gradient(loss, state.params, batch, key, config.accumulate)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if config.ema is not None and ema is not None:
            # The early average follows closely, or it would long remember the initial parameters.
            decay = jnp.minimum(config.ema, (1.0 + state.step) / (10.0 + state.step))
            ema = optax.incremental_update(params, ema, 1.0 - decay)
        return State(state.step + 1, params, opt_state, ema), metrics

    return step


def _mean_gradient(loss: Loss, params: Params, batch: Batch, key: Key[Array, ""], parts: int):
    """(metrics with "loss", gradients), both means over `parts` equal parts of the batch."""

    def value_and_gradient(part: Batch, key: Key[Array, ""]):
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, part, key)
        return {"loss": value, **metrics}, gradients

    if parts == 1:
        return value_and_gradient(batch, key)
    # Each part takes every parts-th example, so that a batch split over devices stays where it is.
    split = jax.tree.map(lambda x: rearrange(x, "(b p) ... -> p b ...", p=parts), dict(batch))
    shapes = jax.eval_shape(value_and_gradient, jax.tree.map(lambda x: x[0], split), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, inputs):
        return jax.tree.map(jnp.add, total, value_and_gradient(*inputs)), None

    total, _ = jax.lax.scan(add, zeros, (split, jax.random.split(key, parts)))
    return jax.tree.map(lambda x: x / parts, total)
