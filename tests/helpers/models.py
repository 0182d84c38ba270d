"""Helpers for models: random arrays, random parameters without running `init`, a compiled `apply`, equal trees."""

from functools import partial

import jax
import numpy as np


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same_trees(a, b):
    """Asserts that two trees have the same structure, and each leaf the same dtype and values."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def random_variables(module, *inputs, seed=0):
    """Returns random variables in the module's shapes. No value is 0 or 1, so every parameter affects the output."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)

    def draw(path, leaf):
        center = 1.0 if path[-1].key in ("scale", "gamma") else 0.0
        return jax.numpy.asarray(center + 0.25 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def run(module, variables, *inputs, rngs=None, **static):
    """Runs `module.apply` under `jax.jit`."""
    return jax.jit(partial(module.apply, **static))(variables, *inputs, rngs=rngs)
