"""The code that LSTM, GRU and RNN share: layers, directions, sequence lengths and states, as in torch.nn.

Axis names: B batch, T time, I input width, H hidden width, G gates. Internally time is the first axis, because
`jax.lax.scan` iterates over the first axis.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import pack, rearrange, unpack
from flax import linen as nn
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from w2jax.module import MAX_LAYERS, Dtype, Inputs, Size, abstract, check_mesh, check_sizes, compute_dtype

Lengths = Int[Array, "..."] | np.ndarray | Sequence[int]
States = tuple[Array, ...]
Shape = tuple[Any, ...]  # ints, or symbolic sizes under `jax.export`
# (x [T, B, I], states [B, ·], valid [T, B, 1] or None) -> (out [T, B, H], final states)
Layer = Callable[[Array, States, Array | None], tuple[Array, States]]


class Recurrent(nn.Module):
    """Base class of LSTM, GRU and RNN: the shared options, and the loop over layers and directions.

    Parameters are grouped by layer and direction: `forward_0`, `backward_0`, `forward_1`, ….

    Raises:
        ValueError: an option is outside its range, or the lengths or the initial states do not fit the input.
    """

    hidden_size: int  # H, width of the hidden state.
    num_layers: int = 1  # Number of stacked layers.
    bias: bool = True  # Two biases, as in torch: b_ih for the input and b_hh for the hidden state.
    dropout: float = 0.0  # Dropout rate on the output of every layer except the last.
    bidirectional: bool = False  # Also run each layer backwards, with other parameters, and concatenate the outputs.
    time_major: bool = False  # Input and output are [T, B, ·] instead of [B, T, ·].
    dtype: Dtype = "float32"  # Data type of the matrix products; the rest uses float32 or wider.

    def run_layers(
        self,
        make_layer: Callable[[str, bool], Layer],
        widths: Sequence[int],
        x: Array,
        initial: States | None,
        lengths: Lengths | None,
        train: bool,
    ) -> tuple[Array, States]:
        """Run all layers and directions. The shapes are given in the `__call__` of each module.

        Args:
            make_layer: function (name, reverse) → layer; `reverse` is True for the backward direction.
            widths: widths of the states; the first state is also the output of a step.
            x: input.
            initial: initial states. None: zeros.
            lengths: number of valid steps of each sequence. None: no padding.
            train: use dropout.

        Returns:
            (output of the last layer, final states).
        """
        self._check(x.shape)
        check_mesh(x)
        x, (batch,) = pack([x.astype(compute_dtype(self.dtype))], "t * i" if self.time_major else "* t i")
        x = x if self.time_major else rearrange(x, "b t i -> t b i")
        directions = ("forward", "backward")[: 1 + self.bidirectional]
        states = self._initial_states(initial, widths, len(directions), tuple(batch))
        valid = None if lengths is None else _valid_steps(lengths, x.shape[0], tuple(batch))
        if valid is not None:
            x = jnp.where(valid, x, 0)  # 0 · NaN is NaN: NaN in the padding would make the gradients NaN

        final_states = []
        for layer in range(self.num_layers):
            outputs = []
            for i, direction in enumerate(directions, layer * len(directions)):
                run = make_layer(f"{direction}_{layer}", direction == "backward")
                out, last = run(x, tuple(state[i] for state in states), valid)
                outputs.append(out)
                final_states.append(last)
            x = jnp.concatenate(outputs, axis=-1)
            if layer < self.num_layers - 1:
                x = nn.Dropout(self.dropout)(x, deterministic=not train)

        x = x if self.time_major else rearrange(x, "t b h -> b t h")
        (x,) = unpack(x, [batch], "t * h" if self.time_major else "* t h")
        stacked = [jnp.stack(state) for state in zip(*final_states, strict=True)]
        return x, tuple(unpack(state, [batch], "l * h")[0] for state in stacked)

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        return (abstract(1, 1, size("forward_0/input_kernel", 0, 1)),)

    def _initial_states(self, initial: States | None, widths: Sequence[int], directions: int, batch: Shape) -> States:
        """Return the initial states, each [layers · directions, B, width]."""
        shapes = [(self.num_layers * directions, *batch, width) for width in widths]
        if initial is None:
            initial = tuple(jnp.zeros(shape) for shape in shapes)
        if [state.shape for state in initial] != shapes:
            raise ValueError(
                f"initial states must have the shapes {shapes} (layers · directions, batch, width), "
                f"got {[state.shape for state in initial]}"
            )
        return tuple(pack([state.astype(self.dtype)], "l * h")[0] for state in initial)

    def _check(self, shape: Shape) -> None:
        if len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(
                "the input must be [B, T, I], [T, B, I] (with time_major) or [T, I], without empty axes, "
                f"got the shape {shape}"
            )
        check_sizes(hidden_size=self.hidden_size)
        check_sizes(at_most=MAX_LAYERS, num_layers=self.num_layers)
        if not 0.0 <= self.dropout <= 1.0:
            raise ValueError(f"dropout must be from 0 to 1, got {self.dropout}")


def _valid_steps(lengths: Lengths, steps: int, batch: Shape) -> Bool[Array, "T B 1"]:
    """Return a mask [T, B, 1] that is True for the valid steps of each sequence."""
    concrete = not isinstance(lengths, Tracer)
    lengths = np.asarray(lengths) if concrete else lengths
    if lengths.shape != batch or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"lengths must be integers of shape {batch} (batch), got {lengths.dtype} of shape {lengths.shape}"
        )
    if concrete and not ((lengths >= 1) & (lengths <= steps)).all():
        raise ValueError(f"lengths must be from 1 to {steps} (steps of the input), got {lengths.tolist()}")
    return rearrange(jnp.arange(steps)[:, None] < lengths.reshape(-1), "t b -> t b 1")


def project_input(
    x: Float[Array, "T B I"], kernel: Float[Array, "I G H"], bias: Float[Array, "G H"] | None
) -> Float[Array, "T B G H"]:
    """Compute the input's part of all gates, x W + b, for all steps in one matrix product. The result has x's dtype."""
    gates = jnp.einsum("tbi,igh->tbgh", x, kernel.astype(x.dtype))
    if bias is None:
        return gates
    return (gates.astype(bias.dtype) + bias).astype(x.dtype)  # sums the gradient of the bias in float32


def uniform_init(hidden_size: int) -> nn.initializers.Initializer:
    """Return the initializer U(−1/√H, 1/√H) of torch's recurrent layers, where H is `hidden_size`."""
    bound = hidden_size**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
