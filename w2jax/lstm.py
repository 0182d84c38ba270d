"""The LSTM, with the same equations and the same outputs as torch.nn.LSTM.

Hochreiter & Schmidhuber 1997, "Long Short-Term Memory" <https://doi.org/10.1162/neco.1997.9.8.1735>; forget gate from
Gers et al. 2000, "Learning to Forget" <https://doi.org/10.1162/089976600300015015>.

Axis names: B batch, T time, I input width, H hidden width, P output width (proj_size, or H without a projection),
L layers times directions, O output width times directions.
"""

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from w2jax.kernels.lstm import lstm_scan
from w2jax.module import submodule
from w2jax.recurrent import Lengths, Recurrent, project_input, uniform_init


class LSTM(Recurrent):
    """A multi-layer LSTM with the equations and the gate order (i, f, g, o) of torch.nn.LSTM.

        i = σ(x W_ii + b_ii + h W_hi + b_hi)
        f = σ(x W_if + b_if + h W_hf + b_hf)
        g = tanh(x W_ig + b_ig + h W_hg + b_hg)
        o = σ(x W_io + b_io + h W_ho + b_ho)
        c ← f c + i g
        h ← o tanh(c)

    With `proj_size`, the last equation is h ← (o tanh(c)) W_hr (Sak et al. 2014 <https://arxiv.org/abs/1402.1128>).
    The equations are those of <https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html>.

    Parameters of each layer and direction: `input_kernel` [I, 4, H], `hidden_kernel` [P, 4, H], `input_bias` [4, H],
    `hidden_bias` [4, H], and with `proj_size` also `projection_kernel` [H, P].
    """

    proj_size: int = 0  # P, width to which the output of each layer is projected; 0: no projection.

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch T I"],
        initial_state: tuple[Float[Array, "L ... P"], Float[Array, "L ... H"]] | None = None,
        lengths: Lengths | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "*batch T O"], tuple[Float[Array, "L ... P"], Float[Array, "L ... H"]]]:
        """Run the LSTM over a batch of sequences.

        `jax.vmap`, reverse-mode gradients of any order and forward over reverse mode (`jax.hessian`) work. Forward
        mode alone (`jax.jvp`) raises a TypeError, because the backward pass is a `jax.custom_vjp`.

        Args:
            x: input [B, T, I] ([T, B, I] if `time_major`), or one sequence [T, I].
            initial_state: (h [L, B, P], c [L, B, H]) with L = layers · directions, ordered by layer, and in each layer
                forward before backward. None: zeros.
            lengths: number of valid steps of each sequence, integers [B] from 1 to T; later steps are padding, as in
                torch's packed sequences. Outputs on padding are 0, the final state is the state after the last valid
                step, and the backward direction starts at that step. None: no padding. Traced lengths (under `jit`)
                cannot be checked: with 0 the state stays the initial state and all outputs are 0, and a value above T
                counts as T.
            train: use dropout, drawn from the rng "dropout".

        Returns:
            (out, (h, c)): outputs of the last layer [B, T, P · directions], and the final states, with the shapes of
            `initial_state`.

        Raises:
            ValueError: an option is outside its range, or the lengths or the states do not fit the input.
        """
        if not 0 <= self.proj_size < max(self.hidden_size, 1):
            raise ValueError(
                f"proj_size must be at least 0 and below {self.hidden_size} (hidden_size), got {self.proj_size}"
            )

        def make_layer(name: str, reverse: bool):
            layer = submodule(LSTMLayer, self, reverse=reverse, name=name)
            return lambda x, states, valid: layer(x, states[0], states[1], valid)

        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        out, (h, c) = self.run_layers(make_layer, widths, x, initial_state, lengths, train)
        return out, (h, c)


class LSTMLayer(nn.Module):
    """One LSTM layer in one direction, with time as the first axis."""

    hidden_size: int  # H, width of the cell state.
    bias: bool  # Two biases: b_ih for the input and b_hh for the hidden state.
    proj_size: int  # P, width to which the output is projected; 0: no projection.
    reverse: bool  # Process the sequence from the last step to the first.

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T B I"],
        h: Float[Array, "B P"],
        c: Float[Array, "B H"],
        valid: Bool[Array, "T B 1"] | None,
    ) -> tuple[Float[Array, "T B P"], tuple[Float[Array, "B P"], Float[Array, "B H"]]]:
        """Run one layer: return (outputs, (final h, final c)).

        Args:
            x: input of the layer.
            h: initial output state.
            c: initial cell state.
            valid: False for steps that are padding: they do not change h and c, and their output is 0. None: all valid.
        """
        hidden, init = self.hidden_size, uniform_init(self.hidden_size)
        input_kernel = self.param("input_kernel", init, (x.shape[-1], 4, hidden))
        hidden_kernel = self.param("hidden_kernel", init, (self.proj_size or hidden, 4, hidden))
        projection, bias = None, None
        if self.proj_size:
            projection = self.param("projection_kernel", init, (hidden, self.proj_size)).astype(x.dtype)
        if self.bias:
            bias = self.param("input_bias", init, (4, hidden)) + self.param("hidden_bias", init, (4, hidden))
        gates = project_input(x, input_kernel, bias)
        # The six equations of a step are in `lstm_scan_reference` (kernels/lstm.py).
        out, h, c = lstm_scan(gates, hidden_kernel.astype(x.dtype), projection, h, c, valid, self.reverse)
        return out, (h, c)
