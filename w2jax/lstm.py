"""The LSTM, equal to torch.nn.LSTM.

Hochreiter & Schmidhuber 1997, "Long Short-Term Memory", with the forget gate of Gers et al. 2000, "Learning to Forget".

Axis names: B batch, T time, I input width, H hidden width, P output width (H, or proj_size), L layers times directions,
O output width times directions.
"""

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from w2jax.kernels.lstm import lstm_scan
from w2jax.module import submodule
from w2jax.recurrent import Lengths, Recurrent, project_input, uniform_init


class LSTM(Recurrent):
    """A multi-layer LSTM, with gates in the order i, f, g, o, as in torch:

        i = σ(x W_ii + b_ii + h W_hi + b_hi)
        f = σ(x W_if + b_if + h W_hf + b_hf)
        g = tanh(x W_ig + b_ig + h W_hg + b_hg)
        o = σ(x W_io + b_io + h W_ho + b_ho)
        c ← f c + i g
        h ← o tanh(c)

    With `proj_size`, h ← (o tanh(c)) W_hr (Sak et al. 2014, arXiv 1402.1128).

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
        alone (`jax.jvp`) raises a TypeError: the backward pass is a `custom_vjp`.

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
            layer = submodule(LSTMLayer, self, reverse=reverse, name=name)
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
        """(outputs, (last h, last c)), from the states h and c; steps that are not `valid` leave them and output 0."""
        hidden, init = self.hidden_size, uniform_init(self.hidden_size)
        input_kernel = self.param("input_kernel", init, (x.shape[-1], 4, hidden))
        hidden_kernel = self.param("hidden_kernel", init, (self.proj_size or hidden, 4, hidden))
        projection, bias = None, None
        if self.proj_size:
            projection = self.param("projection_kernel", init, (hidden, self.proj_size)).astype(x.dtype)
        if self.bias:
            bias = self.param("input_bias", init, (4, hidden)) + self.param("hidden_bias", init, (4, hidden))
        gates = project_input(x, input_kernel, bias)
        # Six equations a step: `lstm_scan_reference` in kernels/lstm.py has them plainly.
        out, h, c = lstm_scan(gates, hidden_kernel.astype(x.dtype), projection, h, c, valid, self.reverse)
        return out, (h, c)
