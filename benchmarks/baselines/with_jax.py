"""What our side and Flax's have in common: how a function of JAX is compiled, stepped and asked for its result."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.inputs import Arrays
from benchmarks.worker import Contender

Step = Callable[[], Any]


def images(given: Arrays) -> jax.Array:
    """[B, h, w, 1] in [0, 1]."""
    return jnp.asarray(given["image"]) / 255.0


def compiled_update(update: Callable, state: Any, batch: Any) -> Callable:
    return jax.jit(update, donate_argnums=0).lower(state, batch).compile()


def stepping(compiled: Callable, state: Any, batch: Any) -> Step:
    """A function that does one step of `compiled` (state, batch -> state, metrics) and returns its metrics."""

    def step():
        nonlocal state
        state, metrics = compiled(state, batch)
        return jax.block_until_ready(metrics)

    return step


def trained(compiled: Callable, state: Any, batch: Any) -> Contender:
    """A classifier's step, whose metrics hold "loss", and its first losses."""
    step = stepping(compiled, state, batch)
    first, *later = (float(step()["loss"]) for _ in range(3))
    return Contender({"loss": first, "later": later}, step)


def attended(attend: Callable, params: Any, given: Arrays, cross: bool) -> Contender:
    """`attend` (params, query, and key if `cross` -> output, weights), forward and backward."""
    inputs = [jnp.asarray(given[name]) for name in (("query", "key") if cross else ("key",))]

    def loss(params, *inputs):
        out, weights = attend(params, *inputs)
        return jnp.square(out).mean(), (out, weights)

    compiled = jax.jit(jax.grad(loss, argnums=tuple(range(1 + len(inputs))), has_aux=True))
    (_, gradient, *_), (out, weights) = compiled(params, *inputs)
    result = {"out": out, "weights": weights, "gradient": gradient}
    return Contender(result, lambda: jax.block_until_ready(compiled(params, *inputs)))


def inferred(apply: Callable, variables: Any, x: jax.Array) -> Contender:
    """`apply` (variables, x -> logits)."""
    compiled = jax.jit(apply)
    logits = compiled(variables, x)
    return Contender({"logits": logits}, lambda: compiled(variables, x).block_until_ready())
