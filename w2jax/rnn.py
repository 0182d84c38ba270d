"""The simple RNN and the GRU, with the same equations and the same outputs as torch.nn.RNN and torch.nn.GRU.

RNN: Elman 1990, "Finding Structure in Time" <https://doi.org/10.1207/s15516709cog1402_1>. GRU: Cho et al. 2014,
"Learning Phrase Representations using RNN Encoder–Decoder for Statistical Machine Translation", section 2.3
<https://arxiv.org/abs/1406.1078>.

Axis names: B batch, T time, I input width, H hidden width, G gates, L layers times directions, O output width times
directions.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from w2jax.module import submodule
from w2jax.recurrent import Lengths, Recurrent, project_input, uniform_init

# (gates of the input, gates of the hidden state, both [B, G, H] and float32, h) -> next h
Cell = Callable[[Array, Array, Array], Array]


class RNN(Recurrent):
    """A multi-layer RNN with the equation of torch.nn.RNN: h ← tanh(x W_ih + b_ih + h W_hh + b_hh), or ReLU.

    See <https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html>.

    Parameters of each layer and direction: `input_kernel` [I, 1, H], `hidden_kernel` [H, 1, H], `input_bias` [1, H]
    and `hidden_bias` [1, H].
    """

    nonlinearity: Literal["tanh", "relu"] = "tanh"  # Function that computes the next hidden state: tanh or ReLU.

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T I"],
        initial_state: Float[Array, "L ... H"] | None = None,
        lengths: Lengths | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "*batch T O"], Float[Array, "L ... H"]]:
        """Run the network over a batch of sequences.

        Args:
            x: input [B, T, I] ([T, B, I] if `time_major`), or one sequence [T, I].
            initial_state: h [L, B, H] with L = layers · directions, ordered as in `LSTM`. None: zeros.
            lengths: number of valid steps of each sequence, integers [B] from 1 to T; padding is handled as in `LSTM`.
            train: use dropout, drawn from the rng "dropout".

        Returns:
            (out, h): outputs of the last layer [B, T, H · directions], and the final states [L, B, H].

        Raises:
            ValueError: an option is outside its range, or the lengths or the state do not fit the input.
        """
        activate = activation(self.nonlinearity)
        return _run(self, 1, lambda x, hidden, h: activate(x + hidden)[:, 0], x, initial_state, lengths, train)


class GRU(Recurrent):
    """A multi-layer GRU with the equations and the gate order (r, z, n) of torch.nn.GRU.

        r = σ(x W_ir + b_ir + h W_hr + b_hr)
        z = σ(x W_iz + b_iz + h W_hz + b_hz)
        n = tanh(x W_in + b_in + r (h W_hn + b_hn))
        h ← (1 − z) n + z h

    As in torch, r multiplies h W_hn + b_hn. In the paper, r multiplies h before the matrix product. The equations are
    those of <https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html>.

    Parameters of each layer and direction: `input_kernel` [I, 3, H], `hidden_kernel` [H, 3, H], `input_bias` [3, H]
    and `hidden_bias` [3, H].
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T I"],
        initial_state: Float[Array, "L ... H"] | None = None,
        lengths: Lengths | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "*batch T O"], Float[Array, "L ... H"]]:
        """Run the network over a batch of sequences.

        Args:
            x: input [B, T, I] ([T, B, I] if `time_major`), or one sequence [T, I].
            initial_state: h [L, B, H] with L = layers · directions, ordered as in `LSTM`. None: zeros.
            lengths: number of valid steps of each sequence, integers [B] from 1 to T; padding is handled as in `LSTM`.
            train: use dropout, drawn from the rng "dropout".

        Returns:
            (out, h): outputs of the last layer [B, T, H · directions], and the final states [L, B, H].

        Raises:
            ValueError: an option is outside its range, or the lengths or the state do not fit the input.
        """

        def cell(x, hidden, h):
            (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.moveaxis(gates, 1, 0) for gates in (x, hidden))
            z = nn.sigmoid(x_z + h_z)
            return (1 - z) * jnp.tanh(x_n + nn.sigmoid(x_r + h_r) * h_n) + z * h

        return _run(self, 3, cell, x, initial_state, lengths, train)


def activation(nonlinearity: str) -> Callable[[Array], Array]:
    """Return the function named "tanh" or "relu".

    Raises:
        ValueError: `nonlinearity` is neither "tanh" nor "relu".
    """
    functions = {"tanh": jnp.tanh, "relu": nn.relu}
    if nonlinearity not in functions:
        raise ValueError(f'nonlinearity must be "tanh" or "relu", got "{nonlinearity}"')
    return functions[nonlinearity]


def _run(module: Recurrent, gates: int, cell: Cell, x, initial_state, lengths, train):
    def make_layer(name: str, reverse: bool):
        layer = submodule(RecurrentLayer, module, gates=gates, cell=cell, reverse=reverse, name=name)
        return lambda x, states, valid: layer(x, states[0], valid)

    initial = None if initial_state is None else (initial_state,)
    out, (h,) = module.run_layers(make_layer, (module.hidden_size,), x, initial, lengths, train)
    return out, h


class RecurrentLayer(nn.Module):
    """One layer of an RNN or GRU in one direction, with time as the first axis."""

    hidden_size: int  # H, width of the hidden state.
    gates: int  # G, number of gates: 1 for the RNN, 3 for the GRU.
    cell: Cell  # Function that computes the next h from the input's gates, the hidden state's gates, and h.
    bias: bool  # Two biases: b_ih for the input and b_hh for the hidden state.
    reverse: bool  # Process the sequence from the last step to the first.

    @nn.compact
    def __call__(
        self, x: Float[Array, "T B I"], h: Float[Array, "B H"], valid: Bool[Array, "T B 1"] | None
    ) -> tuple[Float[Array, "T B H"], tuple[Float[Array, "B H"]]]:
        """Run one layer: return (outputs, (final h,)).

        Args:
            x: input of the layer.
            h: initial hidden state.
            valid: False for steps that are padding: they do not change h, and their output is 0. None: all are valid.
        """
        gates, dtype = (self.gates, self.hidden_size), x.dtype
        exact, init = jnp.promote_types(dtype, jnp.float32), uniform_init(self.hidden_size)
        input_kernel = self.param("input_kernel", init, (x.shape[-1], *gates))
        hidden_kernel = self.param("hidden_kernel", init, (self.hidden_size, *gates))
        input_bias, hidden_bias = None, jnp.zeros(gates)
        if self.bias:
            input_bias, hidden_bias = self.param("input_bias", init, gates), self.param("hidden_bias", init, gates)
        input_gates = project_input(x, input_kernel, input_bias)
        hidden_kernel, hidden_bias = hidden_kernel.astype(dtype), hidden_bias.astype(dtype)

        def step(h, inputs):
            x, is_valid = inputs
            hidden = jnp.einsum("bp,pgh->bgh", h, hidden_kernel, preferred_element_type=exact) + hidden_bias
            new = self.cell(x.astype(exact), hidden, h).astype(dtype)
            return (new, new) if is_valid is None else (jnp.where(is_valid, new, h), jnp.where(is_valid, new, 0))

        last, out = jax.lax.scan(step, h, (input_gates, valid), reverse=self.reverse)
        return out, (last,)
