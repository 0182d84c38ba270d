"""The LSTM, equal to torch.nn.LSTM.

Hochreiter & Schmidhuber 1997, "Long Short-Term Memory", with the forget gate of Gers et al. 2000, "Learning to Forget".

Axis names: B batch, T time, I input width, H hidden width, P output width (H, or proj_size).
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from w2jax.recurrent import Lengths, Recurrent, on_several_devices, project_gates, uniform_init


class LSTM(Recurrent):
    """A multi-layer LSTM, with gates in the order i, f, g, o, as in torch:

        i, f, g, o = x W_ih + b_ih + h W_hh + b_hh,
        c ← σ(f) c + σ(i) tanh(g),  h ← σ(o) tanh(c)

    With `proj_size`, h ← σ(o) tanh(c) W_hr (Sak et al. 2014, arXiv 1402.1128).

    Parameters of a layer and direction: `input_kernel` [I, 4, H], `hidden_kernel` [P, 4, H], `input_bias` and
    `hidden_bias` [4, H], `projection_kernel` [H, P].
    """

    proj_size: int = 0  # P; 0: no projection

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T I"],
        initial_state: tuple[Float[Array, "L ... P"], Float[Array, "L ... H"]] | None = None,
        lengths: Lengths | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "*batch T O"], tuple[Float[Array, "L ... P"], Float[Array, "L ... H"]]]:
        """Read sequences.

        `jax.vmap` and reverse-mode gradients of any order work, forward over reverse (`jax.hessian`) too. Forward mode
        alone (`jax.jvp`) does not, and JAX says so: the backward pass is a `custom_vjp`.

        Args:
            x: [B, T, I], or one sequence [T, I].
            initial_state: (h, c), each [layers · directions, B, ·], by layer, forward before backward; zeros when None.
            lengths: [B] integers from 1 to T, as torch's packed sequences: outputs behind a sequence's end are 0, its
                final state is that at its end, and the backward direction starts there. Inside jit they cannot be
                checked: 0 leaves the initial state and outputs 0, more than T counts as T.
            train: dropout is on, drawn from the "dropout" rng.

        Returns:
            (out [B, T, P · directions] of the last layer, (h, c) like `initial_state`).

        Raises:
            ValueError: if an option is outside its range, or lengths or states do not fit the input.
        """
        if not 0 <= self.proj_size < max(self.hidden_size, 1):
            raise ValueError(f"proj_size must be from 0 to below hidden_size {self.hidden_size}, got {self.proj_size}")

        def make_layer(name: str, reverse: bool):
            layer = LSTMLayer(self.hidden_size, self.bias, self.proj_size, reverse, name=name)
            return lambda x, states, valid: layer(x, states[0], states[1], valid)

        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        out, (h, c) = self.run_layers(make_layer, widths, x, initial_state, lengths, train)
        return out, (h, c)


class LSTMLayer(nn.Module):
    """One layer in one direction, time first."""

    hidden_size: int  # H
    bias: bool  # on the input's and on the hidden state's product
    proj_size: int  # P; 0: no projection
    reverse: bool  # reads from the end

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T B I"],
        h: Float[Array, "B P"],
        c: Float[Array, "B H"],
        valid: Bool[Array, "T B 1"] | None,
    ) -> tuple[Float[Array, "T B P"], tuple[Float[Array, "B P"], Float[Array, "B H"]]]:
        """(outputs, (last h, last c)), from the states h and c; steps that are not `valid` leave them and put out 0."""
        hidden, init = self.hidden_size, uniform_init(self.hidden_size)
        input_kernel = self.param("input_kernel", init, (x.shape[-1], 4, hidden))
        hidden_kernel = self.param("hidden_kernel", init, (self.proj_size or hidden, 4, hidden))
        projection = self.param("projection_kernel", init, (hidden, self.proj_size)) if self.proj_size else None
        bias = None
        if self.bias:
            bias = self.param("input_bias", init, (4, hidden)) + self.param("hidden_bias", init, (4, hidden))
        kernels = input_kernel.astype(x.dtype), hidden_kernel.astype(x.dtype), bias
        projection = None if projection is None else projection.astype(x.dtype)
        out, h, c = lstm_scan(self.reverse, x, kernels, projection, h, c, valid)
        return out, (h, c)


# Of the input and of the hidden state, and the sum of both biases.
Kernels = tuple[Float[Array, "I 4 H"], Float[Array, "P 4 H"], Float[Array, "4 H"] | None]


def _scan(
    reverse: bool,
    x: Float[Array, "T B I"],
    kernels: Kernels,
    projection: Float[Array, "H P"] | None,
    h: Float[Array, "B P"],
    c: Float[Array, "B H"],
    valid: Bool[Array, "T B 1"] | None,
) -> tuple[Float[Array, "T B P"], Float[Array, "B P"], Float[Array, "B H"]]:
    """(outputs, last h, last c): the input's part of all gates in one product, the hidden state's in one a step.

    Steps that are not valid leave the state as it is and put out 0.
    """
    return _forward(reverse, x, kernels, projection, h, c, valid)[0]


def _forward(reverse, x, kernels, projection, h, c, valid):
    input_kernel, kernel, bias = kernels
    exact = jnp.promote_types(x.dtype, jnp.float32)

    def step(carry, inputs):
        h, c = carry
        gates, now = inputs
        gates = gates.astype(exact) + jnp.einsum("bp,pgh->bgh", h, kernel, preferred_element_type=exact)
        activated = _activate(gates if bias is None else gates + bias)  # The bias here: before, it would be a pass.
        i, f, g, o = activated
        new_c = f * c + i * g
        new_h = _project(o * jnp.tanh(new_c), projection, h.dtype)
        out = new_h
        if now is not None:
            out = jnp.where(now, new_h, 0)
            new_h, new_c = jnp.where(now, new_h, h), jnp.where(now, new_c, c)
        return (new_h, new_c), (out, [a.astype(h.dtype) for a in activated], c)

    gates = project_gates(x, input_kernel, None)
    (last_h, last_c), (out, activated, cs) = jax.lax.scan(step, (h, c.astype(exact)), (gates, valid), reverse=reverse)
    return (out, last_h, last_c.astype(c.dtype)), (x, kernels, projection, h, valid, out, activated, cs)


def _backward(reverse, residuals, cotangents):
    """The gradient of each step's gates by a scan against time; then each kernel's gradient in one product."""
    x, (input_kernel, kernel, bias), projection, h, valid, out, activated, cs = residuals
    d_out, d_last_h, d_last_c = cotangents
    exact = cs.dtype
    backward_kernel = rearrange(kernel, "p g h -> g h p")  # once, or each step of the scan would turn it round

    steps, batch, hidden = cs.shape

    def step(carry, inputs):
        d_h_after, d_c_after, d_gates = carry
        t, d_out, now, activated, c = inputs
        i, f, g, o = (a.astype(exact) for a in activated)
        tanh_c = jnp.tanh(f * c + i * g)
        d_h = d_m = d_h_after + d_out
        if projection is not None:
            d_h = d_h.astype(kernel.dtype)
            d_m = jnp.dot(d_h, projection.T, preferred_element_type=exact)
        d_c = d_c_after + d_m * o * (1 - tanh_c**2)
        pieces = [d_c * g * i * (1 - i), d_c * c * f * (1 - f), d_c * i * (1 - g**2), d_m * tanh_c * o * (1 - o)]
        d_c = d_c * f
        if now is not None:
            pieces = [jnp.where(now, piece, 0) for piece in pieces]
            d_h = jnp.where(now, d_h, 0)
        # Each is written where it is to lie: XLA computes a stack of them twice, on CPU one element after the other.
        for gate, piece in enumerate(pieces):
            piece = rearrange(piece.astype(kernel.dtype), "b h -> 1 b 1 h")
            d_gates = jax.lax.dynamic_update_slice(d_gates, piece, (t, 0, gate, 0))
        d_now = jax.lax.dynamic_index_in_dim(d_gates, t, keepdims=False)
        d_h_before = jnp.einsum("bgh,ghp->bp", d_now, backward_kernel, preferred_element_type=exact)
        if now is not None:
            d_h_before, d_c = jnp.where(now, d_h_before, d_h_after), jnp.where(now, d_c, d_c_after)
        return (d_h_before, d_c, d_gates), None if projection is None else d_h

    carry = (d_last_h.astype(exact), d_last_c.astype(exact), jnp.zeros((steps, batch, 4, hidden), kernel.dtype))
    inputs = jnp.arange(steps), d_out, valid, activated, cs
    (d_h0, d_c0, d_gates), d_hs = jax.lax.scan(step, carry, inputs, reverse=not reverse)

    before = _shift(out, h, reverse)
    if valid is not None:  # where the step before is no part of the sequence, the state is still the initial one
        before = jnp.where(_shift(valid, jnp.zeros_like(valid[0]), reverse), before, h)
    d_bias = None if bias is None else jnp.sum(d_gates, (0, 1), exact).astype(bias.dtype)
    d_kernels = _sum_of_products(x, d_gates), _sum_of_products(before, d_gates), d_bias
    d_x = jnp.einsum("tbgh,igh->tbi", d_gates, input_kernel)
    d_projection = None
    if projection is not None:
        i, f, g, o = (a.astype(exact) for a in activated)
        m = (o * jnp.tanh(f * cs + i * g)).astype(projection.dtype)
        d_projection = _sum_of_products(m, d_hs)
    return d_x, d_kernels, d_projection, d_h0.astype(h.dtype), d_c0.astype(h.dtype), None


def _sum_of_products(a, b):
    """Σ over time and batch of aᵀ b."""
    if on_several_devices():
        return jax.lax.dot_general(a, b, (((0, 1), (0, 1)), ((), ())))
    a, b = rearrange(a, "t b x -> (t b) x"), rearrange(b, "t b ... -> (t b) ...")
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def _activate(gates):
    """(i, f, g, o). On CPU XLA takes far longer for the sigmoid of each gate by itself (benchmarks/README.md)."""
    sigmoids = nn.sigmoid(gates)
    i, f, o = (sigmoids[..., gate, :] for gate in (0, 1, 3))
    return i, f, jnp.tanh(gates[..., 2, :]), o


def _project(m, projection, dtype):
    if projection is None:
        return m.astype(dtype)
    return jnp.dot(m.astype(dtype), projection, preferred_element_type=m.dtype).astype(dtype)


def _shift(x: Array, first: Array, reverse: bool) -> Array:
    """What was one step before, `first` before the first."""
    return jnp.concatenate([x[1:], first[None]] if reverse else [first[None], x[:-1]])


lstm_scan = jax.custom_vjp(_scan, nondiff_argnums=(0,))
lstm_scan.defvjp(_forward, _backward)
