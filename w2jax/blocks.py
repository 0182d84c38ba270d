"""Layers of Transformers: the MLP, and the blocks of encoder and decoder with their residual branches.

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
from w2jax.layer_norm import LayerNorm
from w2jax.module import submodule

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]
"""GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415): exact (torch, timm), by tanh (Google), x·σ(1.702 x) (CLIP); ReLU"""

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
}


class Mlp(nn.Module):
    """Dense → activation → Dense, back to the input's width (Vaswani et al. 2017, section 3.3).

    Raises:
        ValueError: if the activation is unknown.
    """

    mlp_dim: int  # hidden width
    dropout: float = 0.0  # behind the activation, and on the output
    activation: Activation = "gelu"  # between the two layers
    use_bias: bool = True  # in both layers
    dtype: str = "float32"  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"], train: bool = False) -> Float[Array, "*batch D"]:
        """Each vector by itself; with `train`, needs the rng "dropout" (if it is on)."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'activation must be one of {", ".join(ACTIVATIONS)}, got "{self.activation}"')
        kernel_init = nn.initializers.xavier_uniform()
        dense = {"use_bias": self.use_bias, "kernel_init": kernel_init, "dtype": jnp.dtype(self.dtype)}
        width = x.shape[-1]
        x = nn.Dense(self.mlp_dim, name="fc1", **dense)(x)
        x = ACTIVATIONS[self.activation](x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = nn.Dense(width, name="fc2", **dense)(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class LayerScale(nn.Module):
    """x · γ, one learned factor a channel.

    Touvron et al. 2021, "Going deeper with Image Transformers", arXiv 2103.17239.
    """

    initial: float  # first value of every factor

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Each channel times its factor."""
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * gamma.astype(x.dtype)


class DropPath(nn.Module):
    """Drops a residual branch for whole examples at random, and scales the rest to keep its mean.

    Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv 1603.09382.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], rate: Shaped[Array, ""]) -> Float[Array, "B N D"]:
        """Each example's x, or 0 with the probability `rate`, which is below 1; needs the rng "dropout"."""
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, (x.shape[0], 1, 1))
        return jnp.where(keep, x / (1.0 - rate).astype(x.dtype), 0)


class EncoderBlock(nn.Module):
    """z' = MSA(LN(z)) + z, then z = MLP(LN(z')) + z' (equations 2 and 3 of the ViT paper).

    With `pre_norm` False, z' = LN(MSA(z) + z), then z = LN(MLP(z') + z') (section 3.1 of "Attention Is All You Need").

    Raises:
        ValueError: if `residual_from_norm` is True and `pre_norm` False.
    """

    num_heads: int  # H; must divide D
    mlp_dim: int  # hidden width of the MLP
    dropout: float = 0.0  # on the attention's output and in the MLP
    attention_dropout: float = 0.0  # on the attention weights
    attention_scale: float | None = None  # of the logits; None: 1/√(head width)
    qkv_bias: bool = True  # biases of queries, keys and values
    qk_norm: bool = False  # LayerNorm on queries and keys
    layer_scale: float | None = None  # initial factor of each residual branch; None: no LayerScale
    pre_norm: bool = True  # norms before the branches; False: behind the sums
    residual_from_norm: bool = False  # attention's residual adds the normalised input
    activation: Activation = "gelu"  # of the MLP
    norm_eps: float = 1e-6  # of every LayerNorm
    use_bias: bool = True  # in the layers and in the norms
    dtype: str = "float32"  # of the computation; parameters are float32

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
        """One block; `drop_path` is this block's rate (None: never), used only when `train`.

        `mask`, True = attend, broadcasts to [B, H, N, N]; tokens past `lengths` are not attended to.
        """
        if self.residual_from_norm and not self.pre_norm:
            raise ValueError("residual_from_norm needs pre_norm True, got False: there is no norm before the branch")

        def branch(y, scale_name: str):
            if self.layer_scale is not None:
                y = LayerScale(self.layer_scale, name=scale_name)(y)
            return DropPath()(y, drop_path) if train and drop_path is not None else y

        def attend(y):
            options = {"dropout": self.attention_dropout, "scale": self.attention_scale}
            attention = submodule(MultiHeadAttention, self, **options, name="attention")
            y, weights = attention(y, mask=mask, key_lengths=lengths, train=train, return_weights=return_attention)
            return branch(nn.Dropout(self.dropout)(y, deterministic=not train), "scale1"), weights

        def feed_forward(y):
            return branch(submodule(Mlp, self, name="mlp")(y, train=train), "scale2"), None

        norms = [layer_norm(self, f"norm{i}") for i in (1, 2)]
        x, weights = _residual(x, attend, norms[0], self.pre_norm, self.residual_from_norm)
        x, _ = _residual(x, feed_forward, norms[1], self.pre_norm)
        return x, weights


class DecoderBlock(nn.Module):
    """Self-attention, attention to the encoder's memory, MLP: three residual branches, each with a LayerNorm behind the
    sum, or before the branch with `pre_norm` (section 3.1 of "Attention Is All You Need").

    Raises:
        ValueError: if the memory is None and not in a cache.
    """

    num_heads: int  # H; must divide D
    mlp_dim: int  # hidden width of the MLP
    dropout: float = 0.0  # on each attention's output and in the MLP
    attention_dropout: float = 0.0  # on the attention weights
    pre_norm: bool = False  # norms before the branches; False: behind the sums
    activation: Activation = "relu"  # of the MLP
    norm_eps: float = 1e-5  # of every LayerNorm
    use_bias: bool = True  # in the layers and in the norms
    dtype: str = "float32"  # of the computation; parameters are float32

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
        """One block, with `return_attention` the weights on the target and on the memory; see `Transformer.decode`."""
        if memory is None and not cache:
            raise ValueError(
                "memory must be the encoder's output, got None; only with cache=True may later parts omit it"
            )

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


def _residual(x, layer: Callable, norm: LayerNorm, pre_norm: bool, from_norm: bool = False) -> tuple[Array, Any]:
    """(x + layer(norm(x)), attention weights), or norm(x + layer(x)) if not `pre_norm`.

    `layer` returns (its output, attention weights). With `from_norm`, the sum is norm(x) + layer(norm(x)).
    """
    y = norm(x) if pre_norm else x
    if from_norm:
        x = y
    y, weights = layer(y)
    return (x + y if pre_norm else norm(x + y)), weights


def layer_norm(module, name: str | None = None) -> LayerNorm:
    """A LayerNorm with the options of `module`."""
    return submodule(LayerNorm, module, eps=module.norm_eps, name=name)


def is_valid(lengths: Int[Array, " B"], size: int) -> Bool[Array, "B {size}"]:
    """True for the first `lengths` of `size` positions, False for the padding behind them."""
    return jnp.arange(size) < lengths[:, None]
