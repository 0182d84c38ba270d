"""Classifiers of sequences, with attention or an LSTM. An image can be a sequence of its rows.

Axis names: B batch, T steps, I width of a step, D model width, H heads, V classes.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from w2jax.blocks import EncoderBlock
from w2jax.layer_norm import LayerNorm
from w2jax.lstm import LSTM
from w2jax.module import (
    Dtype,
    Inputs,
    Size,
    abstract,
    at_least_float32,
    check_mesh,
    check_rates,
    check_sizes,
    compute_dtype,
    submodule,
)
from w2jax.recurrent import uniform_init
from w2jax.transformer import TransformerEncoder


class AttentionClassifier(nn.Module):
    """A sequence classifier: embed each step → add positions → encoder → LayerNorm → mean over steps → head.

    The encoder is the ViT's: each block has multi-head attention and an MLP. The sequences at `init` determine the
    number of steps. The positions are learned.
    """

    num_classes: int  # V, number of classes.
    embed_dim: int  # D, width of every token.
    depth: int  # Number of encoder blocks.
    num_heads: int  # H, number of attention heads; must divide embed_dim.
    mlp_dim: int  # Hidden width of the MLP in each block.
    dropout: float = 0.0  # Dropout rate on embeddings, on attention outputs and in the MLPs.
    attention_dropout: float = 0.0  # Dropout rate on the attention weights.
    drop_path: float = 0.0  # Stochastic depth rate of the last block; the rate grows linearly from 0 at the first.
    dtype: Dtype = "float32"  # Data type of activations and products; parameters stay float32.

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T I"], train: bool = False, return_attention: bool = False
    ) -> tuple[Float[Array, "B V"], list[Float[Array, "B H T T"]] | None]:
        """Classify sequences.

        Args:
            x: sequences; T must be the number of steps at `init`.
            train: use dropout and stochastic depth, drawn from the rng "dropout".
            return_attention: also return the attention weights.

        Returns:
            (logits [B, V] in float32 or wider, attention weights of each block or None).

        Raises:
            ValueError: embed_dim is not divisible by num_heads, or a rate is outside [0, 1).
        """
        check_mesh(x)
        check_sizes(embed_dim=self.embed_dim, num_classes=self.num_classes)
        check_rates(dropout=self.dropout, attention_dropout=self.attention_dropout, drop_path=self.drop_path)
        dtype = compute_dtype(self.dtype)
        x = nn.Dense(self.embed_dim, dtype=dtype, name="embed")(x)
        positions = self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = nn.Dropout(self.dropout)(x + positions.astype(x.dtype), deterministic=not train)
        block = submodule(EncoderBlock, self, parent=None)
        encoder = submodule(TransformerEncoder, self, block=block, name="encoder")
        x, attentions = encoder(x, train=train, return_attention=return_attention)
        x = submodule(LayerNorm, self, eps=1e-6, name="norm")(x).mean(axis=1)
        x = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=dtype, name="head")(x)
        return at_least_float32(x), attentions

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        return (abstract(1, size("positions", 1, 1), size("embed/kernel", 0, 1)),)


class LSTMClassifier(nn.Module):
    """A sequence classifier: an LSTM, and a linear layer (the head) that maps its last output to logits.

    The parameters are initialized as in torch.nn.LSTM and torch.nn.Linear. The head can also be applied to an earlier
    output; then it classifies the sequence up to that step.
    """

    num_classes: int  # V, number of classes.
    hidden_size: int  # Hidden width of each LSTM layer.
    num_layers: int = 1  # Number of stacked LSTM layers.
    dropout: float = 0.0  # Dropout rate on the output of every layer except the last.
    proj_size: int = 0  # Width to which the output of each layer is projected; 0: no projection.
    dtype: Dtype = "float32"  # Data type of matrix products; parameters stay float32.

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T I"], train: bool = False, return_steps: bool = False
    ) -> tuple[Float[Array, "B V"], Float[Array, "B T V"] | None]:
        """Classify sequences.

        Args:
            x: sequences.
            train: use dropout, drawn from the rng "dropout".
            return_steps: also return the logits after each step.

        Returns:
            (logits [B, V], logits after each step [B, T, V] or None), in float32 or wider.

        Raises:
            ValueError: an option is outside its range.
        """
        out, _ = submodule(LSTM, self, name="lstm")(x, train=train)
        init, dtype = uniform_init(out.shape[-1]), compute_dtype(self.dtype)
        check_sizes(num_classes=self.num_classes)
        head = nn.Dense(self.num_classes, kernel_init=init, bias_init=init, dtype=dtype, name="head")
        if not return_steps:
            return at_least_float32(head(out[:, -1])), None
        steps = at_least_float32(head(out))
        return steps[:, -1], steps

    def example_inputs(self, size: Size) -> Inputs:
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        return (abstract(1, 1, size("lstm/forward_0/input_kernel", 0, 1)),)
