"""Standardization with a hand-written derivative equals the plain formula with JAX's derivative."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from w2jax.kernels.layer_norm import standardize, standardize_reference

close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
X, V = (jnp.asarray(np.random.default_rng(seed).normal(3.0, 2.0, (2, 3, 7)), jnp.float32) for seed in range(2))


def test_values_and_derivatives_are_those_of_the_plain_formula():
    """In forward and reverse mode."""

    def values_and_derivatives(f):
        f = partial(f, eps=1e-2)
        value, pull_back = jax.vjp(f, X)
        return value, pull_back(V), jax.jvp(f, (X,), (V,))

    fast, plain = map(values_and_derivatives, (standardize, standardize_reference))
    jax.tree.map(close, fast, plain)


def test_second_derivatives_are_those_of_the_plain_formula():
    fast, plain = (
        jax.hessian(lambda x, f=f: (f(x, 1e-2) ** 3).sum())(X[0, :1]) for f in (standardize, standardize_reference)
    )
    close(fast, plain)
