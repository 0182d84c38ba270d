"""The LSTM recurrence with a hand-written gradient equals the plain equations with JAX's gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2jax.kernels.lstm import lstm_scan, lstm_scan_reference

T, B, H, P = 5, 3, 7, 6
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [None, [5, 1, 3]])
@pytest.mark.parametrize("projected", [False, True])
def test_values_and_gradients_are_those_of_the_plain_equations(projected, lengths, reverse):
    width = P if projected else H
    valid = None if lengths is None else (jnp.arange(T)[:, None] < jnp.array(lengths))[..., None]
    inputs = normal(0, T, B, 4, H), normal(1, width, 4, H), normal(2, H, P), normal(3, B, width), normal(4, B, H)

    def values_and_gradients(scan):
        def run(input_gates, kernel, projection, h, c):
            return scan(input_gates, kernel, projection if projected else None, h, c, valid, reverse)

        values, pull_back = jax.vjp(run, *inputs)
        return values, pull_back(tuple(normal(10 + i, *value.shape) for i, value in enumerate(values)))

    fast, plain = (jax.jit(partial(values_and_gradients, scan))() for scan in (lstm_scan, lstm_scan_reference))
    jax.tree.map(close, fast, plain)
