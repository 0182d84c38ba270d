"""Builds the training step of a task with one loss: gradient, update, moving average."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.interpreters import partial_eval
from jaxtyping import Array, Bool, Float, Key, PyTree

from configs.base import Optim
from train.engine.freeze import merged, split
from train.task import NONFINITE, Batch, Metrics, Params, State
from w2jax.micro_batches import MICRO_BATCH, in_micro_batches, mean_over_parts, number_of_parts

Step = Callable[[State, Batch], tuple[State, Metrics]]
# (parameters, batch, key) -> (mean loss over the batch, mean metrics)
Loss = Callable[[Params, Batch, Key[Array, ""]], tuple[Float[Array, ""], Metrics]]
# (parameters, batch, key) -> means over the batch: (metrics with "loss", gradients)
Gradient = Callable[[Params, Batch, Key[Array, ""]], tuple[Metrics, Params]]
MicroBatch = int | Literal["auto"] | None


def init_state(params: Params, optimizer: optax.GradientTransformation, config: Optim) -> State:
    """Returns the State before the first step."""
    ema = None if config.ema is None else jax.tree.map(jnp.copy, params)
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(split(params, config.freeze)[0]), ema)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: Optim,
    seed: int,
    augment: Callable[[Batch, Key[Array, ""]], Batch] = lambda batch, key: batch,
    micro_batch: MicroBatch = None,
) -> Step:
    """Returns the `step` function of a task with one loss.

    Args:
        loss: `loss(params, batch, key)` returns the mean loss over the batch, and metrics, which are also means.
        optimizer: the update rule.
        config: the number of parts for gradient accumulation, the decay of the moving average, and the frozen
            parameters.
        seed: seed of all random numbers in the step.
        augment: `augment(batch, key)` changes a batch, or a part of one, before `loss` uses it.
        micro_batch: approximate number of examples that each of several CPU devices processes at a time. None: all
            examples. "auto": `MICRO_BATCH` if `loss` does not use its key, else all examples.
    """

    def gradient(params: Params, batch: Batch, key: Key[Array, ""]):
        trained, frozen = split(params, config.freeze)
        loss_of = jax.value_and_grad(lambda trained: loss(merged(trained, frozen), batch, key), has_aux=True)
        (value, metrics), gradients = loss_of(trained)
        return {"loss": value, **metrics}, gradients

    def augmented_gradient(params: Params, batch: Batch, key: Key[Array, ""]):
        augment_key, loss_key = jax.random.split(key)
        return _in_micro_batches(gradient, params, augment(batch, augment_key), loss_key, micro_batch)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        metrics, gradients = _accumulated(augmented_gradient, state.params, batch, key, config.accumulate)
        squares = squared_norms(gradients)
        metrics["grad_norm"] = jnp.sqrt(sum(jax.tree.leaves(squares)))
        trained, frozen = split(state.params, config.freeze)
        metrics[NONFINITE] = nonfinite(merged(squares, jax.tree.map(lambda _: 0.0, frozen)))
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = merged(optax.apply_updates(trained, updates), frozen)
        ema = update_ema(state, params, config.ema)
        if ema is not None:
            ema = merged(split(ema, config.freeze)[0], frozen)  # An average of equal values differs by rounding.
        return State(state.step + 1, params, opt_state, ema), metrics

    return step


def update_ema(state: State, params: Params, decay: float | None) -> Params | None:
    """Returns the moving average of the parameters after the step from `state` to `params`."""
    if decay is None or state.ema is None:
        return None
    # Early steps use a smaller decay. Otherwise the initial parameters would stay in the average for a long time.
    decay_now = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update(params, state.ema, 1.0 - decay_now)


def skip_nonfinite(step: Step) -> Step:
    """Wraps `step`: if a gradient, metric or new parameter is not finite, only the step counter changes."""

    def careful(state: State, batch: Batch) -> tuple[State, Metrics]:
        after, metrics = step(state, batch)
        broken = metrics[NONFINITE] | nonfinite_leaves(after.params)
        scalars = jnp.stack([value for name, value in metrics.items() if name != NONFINITE])
        is_finite = ~broken.any() & jnp.isfinite(scalars).all()
        result = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), after, state)
        return result.replace(step=after.step), {**metrics, NONFINITE: broken}

    return careful


def squared_norms(gradients: Params) -> PyTree[Float[Array, ""]]:
    """Returns the sum of squares of each leaf. It is not finite if a value is not finite or its square overflows."""
    return jax.tree.map(lambda x: jnp.sum(jnp.square(x)), gradients)


def nonfinite(values: PyTree[Float[Array, ""]]) -> Bool[Array, "P"]:
    """Returns, for each leaf (a scalar), whether it is NaN or infinite."""
    return ~jnp.isfinite(jnp.stack(jax.tree.leaves(values)))


def nonfinite_leaves(tree: PyTree[Array]) -> Bool[Array, "L"]:
    """Returns, for each leaf, whether one of its values is NaN or infinite."""
    return jnp.stack([~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])


def _accumulated(gradient: Gradient, params: Params, batch: Batch, key: Key[Array, ""], parts: int):
    """Computes `gradient` of a batch as the mean over `parts` equal parts of the batch."""
    if parts == 1:
        return gradient(params, batch, key)
    # Each part contains every parts-th example, so that no example moves to another device.
    split = jax.tree.map(lambda x: rearrange(x, "(b p) ... -> p b ...", p=parts), dict(batch))
    return mean_over_parts(gradient, params, split, jax.random.split(key, parts))


def _in_micro_batches(gradient: Gradient, params: Params, batch: Batch, key: Key[Array, ""], size: MicroBatch):
    """Computes `gradient` of a batch, where each of several CPU devices processes about `size` examples at a time.

    Micro-batches need a mesh (`jax.sharding.use_abstract_mesh`) whose devices all have the full parameters. On any
    other mesh, `gradient` is computed on the whole batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if size is None or mesh.size < 2 or mesh.abstract_device.device_kind != "cpu" or mesh.shape["data"] != mesh.size:
        return gradient(params, batch, key)
    gradient = jax.jit(gradient, inline=True)  # traced once, although it is used several times below
    examples = len(jax.tree.leaves(batch)[0]) // mesh.size
    target = MICRO_BATCH if size == "auto" else size
    count = number_of_parts(examples, target)
    micro = jax.tree.map(lambda x: jax.ShapeDtypeStruct((examples // count, *x.shape[1:]), x.dtype), dict(batch))
    # Each micro-batch has its own random key, so dropout would not be the same as on one device or an accelerator.
    if count == 1 or (size == "auto" and _uses_last_argument(gradient, params, micro, key)):
        return gradient(params, batch, key)
    return in_micro_batches(gradient, target, mesh)(params, dict(batch), key)


def _uses_last_argument(function: jax.stages.Wrapped, *arguments) -> bool:
    """Returns whether the result of `function` depends on its last argument, a single array."""
    jaxpr = function.trace(*arguments).jaxpr.jaxpr
    _, is_used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return is_used[-1]
