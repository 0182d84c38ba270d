"""Code that our implementation and Flax's share: compiling, stepping and results to compare."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.inputs import Arrays
from benchmarks.worker import Workload

Step = Callable[[], Any]


def images(inputs: Arrays) -> jax.Array:
    """Returns the images [B, h, w, 1] in [0, 1]."""
    return jnp.asarray(inputs["image"]) / 255.0


def compiled_update(update: Callable, state: Any, batch: Any) -> Callable:
    return jax.jit(update, donate_argnums=0).lower(state, batch).compile()


def training(
    logits_of: Callable,
    params: Any,
    x: jax.Array,
    inputs: Arrays,
    optimizer,
    in_parts: Callable = lambda gradient: gradient,
) -> tuple[Callable, Any, Any]:
    """Returns (a classifier's train step: state, batch -> state, metrics; its first state; a batch).

    `logits_of` maps (params, images or sequences x) to logits. `in_parts` changes how the gradient is computed.
    """

    def update(state, batch):
        params, opt_state = state

        def loss(params, batch):
            x, labels = batch
            return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, x), labels).mean()

        value, gradients = in_parts(jax.value_and_grad(loss))(params, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": value}

    return update, (params, optimizer.init(params)), (x, jnp.asarray(inputs["label"]))


def trained_by(update: Callable, state: Any, batch: Any) -> Workload:
    return trained(compiled_update(update, state, batch), state, batch)


def stepping(compiled: Callable, state: Any, batch: Any) -> Step:
    """Returns a function that runs one step of `compiled` (state, batch -> state, metrics) and returns its metrics."""

    def step():
        nonlocal state
        state, metrics = compiled(state, batch)
        return jax.block_until_ready(metrics)

    return step


def trained(compiled: Callable, state: Any, batch: Any) -> Workload:
    """Returns a classifier's step, whose metrics contain "loss", and its first losses."""
    step = stepping(compiled, state, batch)
    first, *later = (float(step()["loss"]) for _ in range(3))
    return Workload({"loss": first, "later": later}, step)


def attended(attend: Callable, params: Any, inputs: Arrays, cross: bool) -> Workload:
    """Returns the forward and backward pass of `attend` (params, query, key if `cross` -> output, weights)."""
    arrays = [jnp.asarray(inputs[name]) for name in (("query", "key") if cross else ("key",))]

    def loss(params, *arrays):
        out, weights = attend(params, *arrays)
        return jnp.square(out).mean(), (out, weights)

    compiled = jax.jit(jax.grad(loss, argnums=tuple(range(1 + len(arrays))), has_aux=True))
    (_, gradient, *_), (out, weights) = compiled(params, *arrays)
    result = {"out": out, "weights": weights, "gradient": gradient}
    return Workload(result, lambda: jax.block_until_ready(compiled(params, *arrays)))


def inferred(apply: Callable, variables: Any, x: jax.Array) -> Workload:
    """Returns the inference of `apply` (variables, x -> logits)."""
    compiled = jax.jit(apply)
    logits = compiled(variables, x)
    return Workload({"logits": logits}, lambda: compiled(variables, x).block_until_ready())
