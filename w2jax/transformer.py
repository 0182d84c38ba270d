"""The pre-norm Transformer encoder of the Vision Transformer (Dosovitskiy et al. 2021, section 3.1)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from w2jax.attention import MultiHeadAttention


class Mlp(nn.Module):
    """Dense → GELU → Dense, back to the input's width."""

    mlp_dim: int
    dropout: float = 0.0
    gelu: Literal["erf", "tanh"] = "erf"  # exact (torch, timm) or the tanh approximation (Google)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"], train: bool = False) -> Float[Array, "*batch D"]:
        dense = {"kernel_init": nn.initializers.xavier_uniform(), "dtype": jnp.dtype(self.dtype)}
        width = x.shape[-1]
        x = nn.Dense(self.mlp_dim, name="fc1", **dense)(x)
        x = nn.gelu(x, approximate=self.gelu == "tanh")
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = nn.Dense(width, name="fc2", **dense)(x)
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class LayerScale(nn.Module):
    """x · γ, one learned factor a channel (Touvron et al. 2021, "Going deeper with Image Transformers")."""

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * gamma.astype(x.dtype)


class DropPath(nn.Module):
    """Drops a residual branch for whole examples (Huang et al. 2016, "Stochastic Depth"), scaled to keep its mean."""

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], rate: Shaped[Array, ""]) -> Float[Array, "B N D"]:
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, (x.shape[0], 1, 1))
        return jnp.where(keep, x / (1.0 - rate).astype(x.dtype), 0)


class EncoderBlock(nn.Module):
    """z' = MSA(LN(z)) + z, then z = MLP(LN(z')) + z' (equations 2 and 3 of the ViT paper)."""

    num_heads: int
    mlp_dim: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention_scale: float | None = None
    qk_norm: bool = False
    layer_scale: float | None = None
    residual_from_norm: bool = False
    gelu: Literal["erf", "tanh"] = "erf"
    norm_eps: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        drop_path: Shaped[Array, ""] | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B H N N"] | None]:
        """One block; `drop_path` is this block's rate (None: never), used only when `train`."""

        def branch(y, scale_name: str):
            if self.layer_scale is not None:
                y = LayerScale(self.layer_scale, name=scale_name)(y)
            return DropPath()(y, drop_path) if train and drop_path is not None else y

        norm = {"epsilon": self.norm_eps, "use_fast_variance": False, "dtype": jnp.dtype(self.dtype)}
        y = nn.LayerNorm(**norm, name="norm1")(x)
        if self.residual_from_norm:
            x = y
        attention = MultiHeadAttention(
            self.num_heads,
            dropout=self.attention_dropout,
            qk_norm=self.qk_norm,
            norm_eps=self.norm_eps,
            scale=self.attention_scale,
            dtype=self.dtype,
            name="attention",
        )
        y, weights = attention(y, train=train, return_weights=return_attention)
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        x = x + branch(y, "scale1")
        y = nn.LayerNorm(**norm, name="norm2")(x)
        y = Mlp(self.mlp_dim, self.dropout, self.gelu, self.dtype, name="mlp")(y, train=train)
        return x + branch(y, "scale2"), weights


class Encoder(nn.Module):
    """`depth` copies of `block`, each with parameters of its own.

    Parameters lie under `block_0` … `block_{depth-1}`, or, with `scan`, under `blocks` with the depth as first axis:
    the same values, one compiled block. The rate of DropPath grows linearly from 0 at the first block to `drop_path`.
    """

    block: EncoderBlock
    depth: int
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], train: bool = False, return_attention: bool = False
    ) -> tuple[Float[Array, "B N D"], list[Float[Array, "B H N N"]] | None]:
        rates = jnp.linspace(0.0, self.drop_path, self.depth) if self.drop_path > 0.0 else None

        def run(block, x, rate):
            return block(x, rate, train=train, return_attention=return_attention)

        if self.remat:
            run = nn.remat(run)
        if self.scan:
            layers = nn.scan(
                run, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.depth
            )
            x, weights = layers(self.block.copy(name="blocks"), x, rates)
            return x, None if weights is None else list(weights)
        attentions = []
        for i in range(self.depth):
            x, weights = run(self.block.copy(name=f"block_{i}"), x, None if rates is None else rates[i])
            attentions.append(weights)
        return x, attentions if return_attention else None
