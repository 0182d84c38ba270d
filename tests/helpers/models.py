"""Helpers that spare compilation: parameters without running `init`, and a compiled `apply`."""

from functools import partial

import jax
import numpy as np


def random_variables(module, *inputs, seed=0):
    """Variables of the module's shapes, every one random and none of them 0 or 1, so that each counts."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key in ("scale", "gamma") else 0.0
        return jax.numpy.asarray(centre + 0.25 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def run(module, variables, *inputs, rngs=None, **static):
    """`module.apply` compiled as a whole."""
    return jax.jit(partial(module.apply, **static))(variables, *inputs, rngs=rngs)
