"""The recurrence of the LSTM over time: the plain equations, and a version with a hand-written gradient.

Axis names: T time, B batch, H hidden width, P output width (H without a projection). The axis of size 4 is the gates
i, f, g, o.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

Result = tuple[Float[Array, "T B P"], Float[Array, "B P"], Float[Array, "B H"]]


def lstm_scan_reference(
    input_gates: Float[Array, "T B 4 H"],
    hidden_kernel: Float[Array, "P 4 H"],
    projection: Float[Array, "H P"] | None,
    h: Float[Array, "B P"],
    c: Float[Array, "B H"],
    valid: Bool[Array, "T B 1"] | None,
    reverse: bool,
) -> Result:
    """Run the LSTM over all steps, with the plain equations.

    At each step t: i, f, g, o = input_gates[t] + h W; c ← σ(f) c + σ(i) tanh(g); h ← σ(o) tanh(c).

    Args:
        input_gates: the input's part of all gates, with the biases.
        hidden_kernel: W.
        projection: matrix that projects σ(o) tanh(c) to h. None: no projection.
        h: initial output.
        c: initial cell state. Between the steps c is float32 or wider.
        valid: False for padding steps: they do not change h and c, and their output is 0. None: all steps are valid.
        reverse: process the steps from the last to the first.

    Returns:
        (h of each step, final h, final c).
    """

    def step(state, inputs):
        state, out, _ = _step(hidden_kernel, projection, state, inputs)
        return state, out

    exact = jnp.promote_types(c.dtype, jnp.float32)
    (last_h, last_c), out = jax.lax.scan(step, (h, c.astype(exact)), (input_gates, valid), reverse=reverse)
    return out, last_h, last_c.astype(c.dtype)


def _step(kernel, projection, state, inputs):
    """Compute one step: return (next h, next c), the output, and the activated gates [i, f, g, o]."""
    (h, c), (gates, valid) = state, inputs
    gates = gates.astype(c.dtype) + jnp.einsum("bp,pgh->bgh", h, kernel, preferred_element_type=c.dtype)
    sigmoids = nn.sigmoid(gates)  # g's is unused, but on CPU XLA is much slower for three gates than for all four
    i, f, g, o = sigmoids[:, 0], sigmoids[:, 1], jnp.tanh(gates[:, 2]), sigmoids[:, 3]
    new_c = f * c + i * g
    new_h = _project(o * jnp.tanh(new_c), projection, h.dtype)
    if valid is None:
        return (new_h, new_c), new_h, [i, f, g, o]
    return (jnp.where(valid, new_h, h), jnp.where(valid, new_c, c)), jnp.where(valid, new_h, 0), [i, f, g, o]


def _project(m, projection, dtype):
    if projection is None:
        return m.astype(dtype)
    return jnp.dot(m.astype(dtype), projection, preferred_element_type=m.dtype).astype(dtype)


def _forward(input_gates, hidden_kernel, projection, h, c, valid, reverse):
    def step(state, inputs):
        new_state, out, activated = _step(hidden_kernel, projection, state, inputs)
        return new_state, (out, [gate.astype(h.dtype) for gate in activated], state[1])

    exact = jnp.promote_types(c.dtype, jnp.float32)
    (last_h, last_c), (out, activated, cs) = jax.lax.scan(
        step, (h, c.astype(exact)), (input_gates, valid), reverse=reverse
    )
    return (out, last_h, last_c.astype(c.dtype)), (hidden_kernel, projection, h, valid, out, activated, cs)


def _backward(reverse, residuals, cotangents):
    """Compute the gradients of the gates in a backward scan; then each kernel's gradient in one matrix product."""
    kernel, projection, h, valid, out, activated, cs = residuals
    d_out, d_last_h, d_last_c = cotangents
    exact = cs.dtype  # cs: the cell state before each step
    transposed_kernel = rearrange(kernel, "p g h -> g h p")  # transposed here, not again in each step of the scan
    steps, batch, hidden = cs.shape

    def step(carry, inputs):
        d_h_after, d_c_after, d_gates = carry
        t, d_out, valid, activated, c = inputs
        i, f, g, o = (gate.astype(exact) for gate in activated)
        tanh_c = jnp.tanh(f * c + i * g)
        d_h = d_m = d_h_after + d_out  # m = o tanh(c), the input of the projection
        if projection is not None:
            d_h = d_h.astype(kernel.dtype)
            d_m = jnp.dot(d_h, projection.T, preferred_element_type=exact)
        d_c = d_c_after + d_m * o * (1 - tanh_c**2)
        by_gate = [d_c * g * i * (1 - i), d_c * c * f * (1 - f), d_c * i * (1 - g**2), d_m * tanh_c * o * (1 - o)]
        d_c = d_c * f
        if valid is not None:
            by_gate = [jnp.where(valid, d_gate, 0) for d_gate in by_gate]
            d_h = jnp.where(valid, d_h, 0)
        # Each gate is written to its place. With jnp.stack XLA would compute it twice, on CPU element by element.
        for gate, d_gate in enumerate(by_gate):
            d_gate = rearrange(d_gate.astype(kernel.dtype), "b h -> 1 b 1 h")
            d_gates = jax.lax.dynamic_update_slice(d_gates, d_gate, (t, 0, gate, 0))
        d_gates_now = jax.lax.dynamic_index_in_dim(d_gates, t, keepdims=False)
        d_h_before = jnp.einsum("bgh,ghp->bp", d_gates_now, transposed_kernel, preferred_element_type=exact)
        if valid is not None:
            d_h_before, d_c = jnp.where(valid, d_h_before, d_h_after), jnp.where(valid, d_c, d_c_after)
        return (d_h_before, d_c, d_gates), None if projection is None else d_h

    carry = d_last_h.astype(exact), d_last_c.astype(exact), jnp.zeros((steps, batch, 4, hidden), kernel.dtype)
    inputs = jnp.arange(steps), d_out, valid, activated, cs
    (d_h, d_c, d_gates), d_hs = jax.lax.scan(step, carry, inputs, reverse=not reverse)

    hs = _one_step_before(out, h, reverse)
    if valid is not None:  # after an invalid step, h is still the initial h
        hs = jnp.where(_one_step_before(valid, jnp.zeros_like(valid[0]), reverse), hs, h)
    d_kernel = jnp.einsum("tbp,tbgh->pgh", hs, d_gates)
    d_projection = None
    if projection is not None:
        i, f, g, o = (gate.astype(exact) for gate in activated)
        m = (o * jnp.tanh(f * cs + i * g)).astype(projection.dtype)
        d_projection = jnp.einsum("tbh,tbp->hp", m, d_hs)
    return d_gates, d_kernel, d_projection, d_h.astype(h.dtype), d_c.astype(h.dtype), None


def _one_step_before(x: Array, initial: Array, reverse: bool) -> Array:
    """Return x of the previous step for each step of the scan; for the first step, return `initial`."""
    return jnp.concatenate([x[1:], initial[None]] if reverse else [initial[None], x[:-1]])


lstm_scan: Callable[..., Result] = jax.custom_vjp(lstm_scan_reference, nondiff_argnums=(6,))
"""Compute `lstm_scan_reference` with a hand-written gradient.

JAX's automatic gradient adds to the gradients of the kernels at every step. Here the backward scan only collects the
gradients of the gates. After the scan, one matrix product computes the gradient of each kernel. A training step of the
LSTM classifier then takes less than half the CPU time (benchmarks/README.md).
"""
lstm_scan.defvjp(_forward, _backward)
