"""Classifiers of sequences, by attention and by an LSTM, such as an image read as a sequence of its rows.

Axis names: B batch, T steps, I width of a step, D model width, H heads, V classes.
"""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from w2jax.blocks import EncoderBlock
from w2jax.layer_norm import LayerNorm
from w2jax.lstm import LSTM
from w2jax.module import Inputs, Size, abstract, check_rates, submodule
from w2jax.recurrent import uniform_init
from w2jax.transformer import TransformerEncoder


class AttentionClassifier(nn.Module):
    """Embed each step → add its position → encoder → LayerNorm → mean over the steps → head.

    The encoder is the ViT's: each block is multi-head attention and an MLP. The number of steps is that of the
    sequences at `init`. Without the positions, the order of the steps would not matter.
    """

    num_classes: int  # V, width of the logits
    embed_dim: int  # D
    depth: int  # number of encoder blocks
    num_heads: int  # H; must divide embed_dim
    mlp_dim: int  # hidden width of each block's MLP
    dropout: float = 0.0  # on embeddings, attention output and MLP
    attention_dropout: float = 0.0  # on the attention weights
    drop_path: float = 0.0  # stochastic depth: rate of the last block, 0 at the first
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T I"], train: bool = False, return_attention: bool = False
    ) -> tuple[Float[Array, "B V"], list[Float[Array, "B H T T"]] | None]:
        """Logits, and with `return_attention` each block's attention map; with `train`, needs the rng "dropout" if any
        dropout is on.

        Raises:
            ValueError: if embed_dim is not divisible by num_heads, or a rate is outside [0, 1).
        """
        check_rates(dropout=self.dropout, attention_dropout=self.attention_dropout, drop_path=self.drop_path)
        dtype = jnp.dtype(self.dtype)
        x = nn.Dense(self.embed_dim, dtype=dtype, name="embed")(x)
        positions = self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = nn.Dropout(self.dropout)(x + positions.astype(x.dtype), deterministic=not train)
        block = submodule(EncoderBlock, self, parent=None)
        encoder = submodule(TransformerEncoder, self, block=block, name="encoder")
        x, attentions = encoder(x, train=train, return_attention=return_attention)
        x = submodule(LayerNorm, self, eps=1e-6, name="norm")(x).mean(axis=1)
        x = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=dtype, name="head")(x)
        return x.astype(jnp.float32), attentions

    def example_inputs(self, size: Size) -> Inputs:
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes."""
        return (abstract(1, size("positions", 1, 1), size("embed/kernel", 0, 1)),)


class LSTMClassifier(nn.Module):
    """An LSTM reads the sequence; a linear layer maps its last output to logits.

    Initialised like torch.nn.LSTM and torch.nn.Linear. The same linear layer on an earlier output gives the logits of
    the sequence up to that step.
    """

    num_classes: int  # V, width of the logits
    hidden_size: int  # of each LSTM layer
    num_layers: int = 1  # LSTM layers, one on top of the other
    dropout: float = 0.0  # on the output of every layer but the last
    proj_size: int = 0  # width that each layer's output is projected to; 0: no projection
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; parameters are float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T I"], train: bool = False, return_steps: bool = False
    ) -> tuple[Float[Array, "B V"], Float[Array, "B T V"] | None]:
        """Logits, and with `return_steps` those after each step; with `train`, needs the rng "dropout" if it is on.

        Raises:
            ValueError: if an option is outside its range.
        """
        out, _ = submodule(LSTM, self, name="lstm")(x, train=train)
        init = uniform_init(out.shape[-1])
        head = nn.Dense(self.num_classes, kernel_init=init, bias_init=init, dtype=jnp.dtype(self.dtype), name="head")
        if not return_steps:
            return head(out[:, -1]).astype(jnp.float32), None
        steps = head(out).astype(jnp.float32)
        return steps[:, -1], steps

    def example_inputs(self, size: Size) -> Inputs:
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes."""
        return (abstract(1, 1, size("lstm/forward_0/input_kernel", 0, 1)),)
