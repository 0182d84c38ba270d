"""What LSTM, GRU and RNN share: layers, directions, lengths and states, as in torch.nn.

Axis names: B batch, T time, I input width, H hidden width, G gates. Inside, time is the first axis, as a scan reads it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import pack, rearrange, unpack
from flax import linen as nn
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from w2jax.module import Inputs, Size, abstract

Lengths = Int[Array, "..."] | np.ndarray | Sequence[int]
States = tuple[Array, ...]
Shape = tuple[Any, ...]  # of ints, or of sizes that `jax.export` leaves open
# (x [T, B, I], states [B, ·], valid [T, B, 1] or None) -> (out [T, B, H], final states)
Layer = Callable[[Array, States, Array | None], tuple[Array, States]]


class Recurrent(nn.Module):
    """The options that LSTM, GRU and RNN share, and the loop over layers and directions.

    Parameters are under `forward_0`, `backward_0`, `forward_1`, …: one group for each layer and direction.

    Raises:
        ValueError: if an option is outside its range, or lengths or initial states do not fit the input.
    """

    hidden_size: int  # H
    num_layers: int = 1  # one on top of the other
    bias: bool = True  # two of them, on the input's and on the hidden state's product, as in torch
    dropout: float = 0.0  # on the output of every layer but the last
    bidirectional: bool = False  # a second set of parameters reads backwards; the outputs are concatenated
    time_major: bool = False  # input and output are [T, B, ·] instead of [B, T, ·]
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; the rest is computed in float32

    def run_layers(
        self,
        make_layer: Callable[[str, bool], Layer],  # from its name and whether it reads backwards
        widths: Sequence[int],  # of the states, of which the first is the output too
        x: Array,
        initial: States | None,
        lengths: Lengths | None,
        train: bool,
    ) -> tuple[Array, States]:
        """(output, final states); for shapes see the `__call__` of each module."""
        self._check(x.shape)
        x, (batch,) = pack([x.astype(self.dtype)], "t * i" if self.time_major else "* t i")
        x = x if self.time_major else rearrange(x, "b t i -> t b i")
        directions = ("forward", "backward")[: 1 + self.bidirectional]
        states = self._initial_states(initial, widths, len(directions), tuple(batch))
        valid = None if lengths is None else _valid_steps(lengths, x.shape[0], tuple(batch))
        if valid is not None:
            x = jnp.where(valid, x, 0)  # 0 · NaN is NaN, so NaN in padding must not reach the gradient's products

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
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes."""
        return (abstract(1, 1, size("forward_0/input_kernel", 0, 1)),)

    def _initial_states(self, initial: States | None, widths: Sequence[int], directions: int, batch: Shape) -> States:
        """Each [layers · directions, B, width]."""
        shapes = [(self.num_layers * directions, *batch, width) for width in widths]
        if initial is None:
            initial = tuple(jnp.zeros(shape) for shape in shapes)
        if [state.shape for state in initial] != shapes:
            raise ValueError(
                f"initial states must be [layers · directions, batch, width], here {shapes}, "
                f"got {[state.shape for state in initial]}"
            )
        return tuple(pack([state.astype(self.dtype)], "l * h")[0] for state in initial)

    def _check(self, shape: Shape) -> None:
        if len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(
                f"the input must be [B, T, I], [T, B, I] or [T, I], each at least 1, got the shape {shape}"
            )
        if self.hidden_size < 1 or self.num_layers < 1:
            raise ValueError(
                f"hidden_size and num_layers must be at least 1, got {self.hidden_size} and {self.num_layers}"
            )
        if not 0.0 <= self.dropout <= 1.0:
            raise ValueError(f"dropout must be from 0 to 1, got {self.dropout}")


def _valid_steps(lengths: Lengths, steps: int, batch: Shape) -> Bool[Array, "T B 1"]:
    """True before each sequence's end."""
    concrete = not isinstance(lengths, Tracer)
    lengths = np.asarray(lengths) if concrete else lengths
    if lengths.shape != batch or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths must be integers of shape {batch}, got {lengths.dtype} of shape {lengths.shape}")
    if concrete and not ((lengths >= 1) & (lengths <= steps)).all():
        raise ValueError(f"lengths must be from 1 to the input's {steps}, got {lengths.tolist()}")
    return rearrange(jnp.arange(steps)[:, None] < lengths.reshape(-1), "t b -> t b 1")


def project_input(
    x: Float[Array, "T B I"], kernel: Float[Array, "I G H"], bias: Float[Array, "G H"] | None
) -> Float[Array, "T B G H"]:
    """The input's part of all gates, x W + b, of all steps in one matrix product; in the dtype of x."""
    gates = jnp.einsum("tbi,igh->tbgh", x, kernel.astype(x.dtype))
    if bias is None:
        return gates
    return (gates.astype(bias.dtype) + bias).astype(x.dtype)  # so the bias's gradient is summed in float32


def uniform_init(hidden_size: int) -> nn.initializers.Initializer:
    """U(−1/√H, 1/√H), the distribution of torch's initial recurrent parameters; H is `hidden_size`."""
    bound = hidden_size**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
