"""Layers of Transformers: the MLP, and the encoder and decoder blocks with their residual branches.

Axis names: B batch, N tokens, S source length, T target length, D width, H heads.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from w2jax.attention import MultiHeadAttention
from w2jax.layer_norm import LayerNorm, RMSNorm
from w2jax.masks import check_lengths, check_masks
from w2jax.module import check_sizes, compute_dtype, submodule

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "swiglu"]
"""Name of an activation function of `Mlp`.

- "gelu": exact GELU, as in torch and timm (Hendrycks & Gimpel 2016 <https://arxiv.org/abs/1606.08415>).
- "gelu_tanh": tanh approximation of GELU, as in Google's ViTs.
- "quick_gelu": x · σ(1.702 x), as in CLIP.
- "relu": ReLU.
- "swiglu": silu(a) · b, where a and b are the two halves of the first layer's outputs. The first layer then has
  2 · `mlp_dim` outputs (Shazeer 2020, "GLU Variants Improve Transformer" <https://arxiv.org/abs/2002.05202>).
"""

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "swiglu": lambda x: nn.silu(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :],
}


class Mlp(nn.Module):
    """A network of two linear layers with an activation between them; the output has the width of the input.

    Vaswani et al. 2017, section 3.3 <https://arxiv.org/abs/1706.03762>.

    Raises:
        ValueError: the activation is unknown.
    """

    mlp_dim: int  # Hidden width, after the activation.
    dropout: float = 0.0  # Dropout rate after the activation and on the output.
    activation: Activation = "gelu"  # Activation function between the two layers.
    use_bias: bool = True  # Biases in both layers, and in the LayerNorm.
    sub_norm: bool = False  # LayerNorm after the activation.
    norm_eps: float = 1e-6  # Epsilon of the LayerNorm, added to the variance.
    rms_norm: bool = False  # RMSNorm instead of the LayerNorm.
    dtype: str = "float32"  # Data type of activations and matrix products; parameters stay float32.

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"], train: bool = False) -> Float[Array, "*batch D"]:
        """Apply the MLP to each vector. With `train`, dropout needs the rng "dropout"."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'activation must be one of {", ".join(ACTIVATIONS)}, got "{self.activation}"')
        check_sizes(mlp_dim=self.mlp_dim)
        kernel_init = nn.initializers.xavier_uniform()
        dense = {"use_bias": self.use_bias, "kernel_init": kernel_init, "dtype": compute_dtype(self.dtype)}
        width = x.shape[-1]
        x = nn.Dense(self.mlp_dim * (2 if self.activation == "swiglu" else 1), name="fc1", **dense)(x)
        x = ACTIVATIONS[self.activation](x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        if self.sub_norm:
            x = layer_norm(self, "norm")(x)
        x = nn.Dense(width, name="fc2", **dense)(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class LayerScale(nn.Module):
    """LayerScale: multiply each channel by a learned factor γ.

    Touvron et al. 2021, "Going deeper with Image Transformers" <https://arxiv.org/abs/2103.17239>.
    """

    initial: float  # Initial value of every factor.

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Multiply each channel by its factor."""
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * gamma.astype(x.dtype)


class DropPath(nn.Module):
    """Stochastic depth: set a residual branch to 0 for random examples, and scale up the others to keep the mean.

    Huang et al. 2016, "Deep Networks with Stochastic Depth" <https://arxiv.org/abs/1603.09382>.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], rate: Shaped[Array, ""]) -> Float[Array, "B N D"]:
        """Drop each example of x with the probability `rate`, which must be below 1. Needs the rng "dropout"."""
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, (x.shape[0], 1, 1))
        return jnp.where(keep, x / (1.0 - rate).astype(x.dtype), 0)


class EncoderBlock(nn.Module):
    """An encoder block: self-attention and an MLP, each a residual branch with a LayerNorm.

    With `pre_norm` (equations 2 and 3 of the ViT paper <https://arxiv.org/abs/2010.11929>):

        z' = MSA(LN(z)) + z
        z = MLP(LN(z')) + z'

    Without `pre_norm` (section 3.1 of "Attention Is All You Need" <https://arxiv.org/abs/1706.03762>):

        z' = LN(MSA(z) + z)
        z = LN(MLP(z') + z')

    With `res_post_norm` (figure 1 of "Swin Transformer V2" <https://arxiv.org/abs/2111.09883>):

        z' = LN(MSA(z)) + z
        z = LN(MLP(z')) + z'

    `sub_norm` adds the norms of section 2.1 of "Foundation Transformers" <https://arxiv.org/abs/2210.06423>, which
    BEiT-3 has.

    Raises:
        ValueError: the options do not fit each other, or the mask is not bool.
    """

    num_heads: int  # H, number of attention heads; must divide D.
    mlp_dim: int  # Hidden width of the MLP.
    dropout: float = 0.0  # Dropout rate on the attention output and in the MLP.
    attention_dropout: float = 0.0  # Dropout rate on the attention weights.
    attention_scale: float | None = None  # Factor of the attention logits; None: 1/√(head width).
    qkv_bias: bool = True  # Biases of queries, keys and values, if use_bias.
    qk_norm: bool = False  # LayerNorm on queries and keys.
    layer_scale: float | None = None  # Initial factor of LayerScale on each residual branch; None: no LayerScale.
    pre_norm: bool = True  # LayerNorm before each residual branch; False: after each residual sum.
    res_post_norm: bool = False  # LayerNorm on the output of each residual branch, before the sum; no other norms.
    residual_from_norm: bool = False  # Add the attention output to LN(z) instead of z.
    sub_norm: bool = False  # LayerNorms also before the last layers of the attention and of the MLP.
    activation: Activation = "gelu"  # Activation function of the MLP.
    norm_eps: float = 1e-6  # Epsilon of every LayerNorm, added to the variance.
    rms_norm: bool = False  # RMSNorm instead of every LayerNorm.
    use_bias: bool = True  # Biases in the linear layers and in the LayerNorms.
    dtype: str = "float32"  # Data type of activations and matrix products; parameters stay float32.

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        drop_path: Shaped[Array, ""] | None = None,
        mask: Bool[Array, "..."] | None = None,
        lengths: Int[Array, " B"] | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B H N N"] | None]:
        """Apply the block.

        Args:
            x: tokens.
            drop_path: stochastic depth rate of this block, used only with `train`. None: no stochastic depth.
            mask: True where a token may attend to another; broadcastable to [B, H, N, N].
            lengths: number of valid tokens of each example; later tokens are padding and no token attends to them.
            train: use dropout and stochastic depth, drawn from the rng "dropout".
            return_attention: also return the attention weights.

        Returns:
            (tokens, attention weights or None).
        """
        if self.residual_from_norm and not self.pre_norm:
            raise ValueError("pre_norm must be True if residual_from_norm is True, got False")
        if self.res_post_norm and (self.residual_from_norm or not self.pre_norm or self.layer_scale is not None):
            raise ValueError(
                "res_post_norm needs pre_norm True, residual_from_norm False and layer_scale None, got pre_norm "
                f"{self.pre_norm}, residual_from_norm {self.residual_from_norm} and layer_scale {self.layer_scale}"
            )
        check_masks(mask=mask)
        check_lengths(lengths=lengths)
        norms = [layer_norm(self, f"norm{i}") for i in (1, 2)]

        def branch(y, i: int):
            if self.res_post_norm:
                y = norms[i - 1](y)
            if self.layer_scale is not None:
                y = LayerScale(self.layer_scale, name=f"scale{i}")(y)
            return DropPath()(y, drop_path) if train and drop_path is not None else y

        def attend(y):
            options = {"dropout": self.attention_dropout, "scale": self.attention_scale}
            attention = submodule(MultiHeadAttention, self, **options, name="attention")
            y, weights = attention(y, mask=mask, key_lengths=lengths, train=train, return_weights=return_attention)
            return branch(nn.Dropout(self.dropout)(y, deterministic=not train), 1), weights

        def feed_forward(y):
            return branch(submodule(Mlp, self, name="mlp")(y, train=train), 2), None

        outer = [lambda y: y] * 2 if self.res_post_norm else norms
        x, weights = _residual(x, attend, outer[0], self.pre_norm, self.residual_from_norm)
        x, _ = _residual(x, feed_forward, outer[1], self.pre_norm)
        return x, weights


class DecoderBlock(nn.Module):
    """A decoder block: self-attention, cross-attention to the encoder's memory, and an MLP.

    Each is a residual branch with a LayerNorm: after the residual sum, or before the branch with `pre_norm` (section
    3.1 of "Attention Is All You Need" <https://arxiv.org/abs/1706.03762>).

    Raises:
        ValueError: the memory is None and `cache` is False, or a mask is not bool.
    """

    num_heads: int  # H, number of attention heads; must divide D.
    mlp_dim: int  # Hidden width of the MLP.
    dropout: float = 0.0  # Dropout rate on both attention outputs and in the MLP.
    attention_dropout: float = 0.0  # Dropout rate on the attention weights.
    pre_norm: bool = False  # LayerNorm before each residual branch; False: after each residual sum.
    activation: Activation = "relu"  # Activation function of the MLP.
    norm_eps: float = 1e-5  # Epsilon of every LayerNorm, added to the variance.
    use_bias: bool = True  # Biases in the linear layers and in the LayerNorms.
    dtype: str = "float32"  # Data type of activations and matrix products; parameters stay float32.

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"] | None,
        mask: Bool[Array, "..."] | None = None,
        memory_mask: Bool[Array, "..."] | None = None,
        lengths: Int[Array, " B"] | None = None,
        memory_lengths: Int[Array, " B"] | None = None,
        causal: bool = True,
        cache: bool = False,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B H T _"], Float[Array, "B H T _"]] | None]:
        """Apply the block: return (tokens, (weights on the target, weights on the memory) or None).

        The arguments are those of `Transformer.decode` with shorter names: `target_lengths` is `lengths` here, and
        `source_lengths` is `memory_lengths`.
        """
        if memory is None and not cache:
            raise ValueError(
                "memory must be the encoder's output, got None. Pass it; only with cache=True may later parts omit it"
            )

        check_masks(mask=mask, memory_mask=memory_mask)
        check_lengths(lengths=lengths, memory_lengths=memory_lengths)

        def attention(name: str):
            return submodule(MultiHeadAttention, self, dropout=self.attention_dropout, name=name)

        def dropout(y):
            return nn.Dropout(self.dropout)(y, deterministic=not train)

        def attend_to_target(y):
            y, weights = attention("self_attention")(
                y,
                mask=mask,
                key_lengths=lengths,
                causal=causal,
                decode="append" if cache else None,
                train=train,
                return_weights=return_attention,
            )
            return dropout(y), weights

        def attend_to_memory(y):
            attend = attention("cross_attention")
            visible = memory_mask
            if memory_lengths is not None:
                size = attend.get_variable("cache", "key").shape[2] if memory is None else memory.shape[1]
                visible = is_valid(memory_lengths, size)[:, None, None]
                visible = visible if memory_mask is None else visible & memory_mask
            decode = None if not cache else "reuse" if memory is None else "append"
            y, weights = attend(y, memory, mask=visible, decode=decode, train=train, return_weights=return_attention)
            return dropout(y), weights

        def feed_forward(y):
            return submodule(Mlp, self, name="mlp")(y, train=train), None

        norms = [layer_norm(self, f"norm{i}") for i in (1, 2, 3)]
        x, on_target = _residual(x, attend_to_target, norms[0], self.pre_norm)
        x, on_memory = _residual(x, attend_to_memory, norms[1], self.pre_norm)
        x, _ = _residual(x, feed_forward, norms[2], self.pre_norm)
        return x, (on_target, on_memory) if return_attention else None


def _residual(x, layer: Callable, norm: Callable, pre_norm: bool, from_norm: bool = False) -> tuple[Array, Any]:
    """Apply a residual branch: return (x + layer(norm(x)), attention weights).

    Without `pre_norm` the result is norm(x + layer(x)); with `from_norm` it is norm(x) + layer(norm(x)). `layer`
    returns (output, attention weights).
    """
    y = norm(x) if pre_norm else x
    if from_norm:
        x = y
    y, weights = layer(y)
    return (x + y if pre_norm else norm(x + y)), weights


def layer_norm(module: nn.Module, name: str | None = None, **own: Any) -> LayerNorm | RMSNorm:
    """Create a LayerNorm with the options of `module`, or an RMSNorm if it has the option `rms_norm`."""
    norm = RMSNorm if getattr(module, "rms_norm", False) else LayerNorm
    return submodule(norm, module, eps=module.norm_eps, name=name, **own)


def is_valid(lengths: Int[Array, " B"], size: int) -> Bool[Array, "B {size}"]:
    """Return a mask [B, size]: True for the first `lengths` positions, False for the padding after them."""
    return jnp.arange(size) < lengths[:, None]
