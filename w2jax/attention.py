"""Scaled dot-product and multi-head attention (Vaswani et al. 2017, "Attention Is All You Need", section 3.2).

Axis names: B batch, T query length, S key length, K head width, H heads, D model width.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key


def scaled_dot_product_attention(
    query: Float[Array, "*batch_q T K"],
    key: Float[Array, "*batch_k S K"],
    value: Float[Array, "*batch_k S V"],
    mask: Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
    return_weights: bool = True,
) -> tuple[Float[Array, "*batch T V"], Float[Array, "*batch T S"] | None]:
    """softmax(Q Kᵀ · scale + bias) V, equation 1 of the paper.

    Any leading axes (batch, heads) broadcast; the value width may differ from the key width, T from S.

    Args:
        query: what asks.
        key: what is asked.
        value: what is answered.
        mask: True = attend; broadcastable to [..., T, S]. A query that may attend to nothing gets output 0,
            weights 0 and gradients 0. A key that a query may not attend to never reaches it, NaN included.
        bias: added to the logits; broadcastable to [..., T, S]; −inf masks.
        causal: query t attends to keys 0..t (aligned at the first key, as torch and jax.nn do).
        scale: 1/√K when None, the paper's.
        dropout: rate on the weights.
        dropout_key: typed key that dropout draws from.
        return_weights: False returns None in their place. Weights are those before dropout.

    Returns:
        (output, weights); the softmax is computed in float32 whatever the input's dtype.

    Raises:
        ValueError: if widths or lengths disagree, or dropout is asked for without a key.
    """
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key need one width, got query {query.shape} and key {key.shape}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"key and value need one length, got key {key.shape} and value {value.shape}")

    factor: float = query.shape[-1] ** -0.5 if scale is None else scale

    def logits(key):
        products = jnp.einsum("...tk,...sk->...ts", query * factor, key, preferred_element_type=jnp.float32)
        return products if bias is None else products + bias

    poisoned = None
    mask = _combined_mask(mask, bias, causal, query.shape[-2], key.shape[-2])
    if mask is None:
        weights = nn.softmax(logits(key))
    else:
        # 0 · NaN is NaN, forward and backward, so a broken key is taken out of the products
        # and put back at the end, only into the rows that attend to it.
        finite = jnp.isfinite(key).all(-1) & jnp.isfinite(value).all(-1)
        poisoned = (mask & ~finite[..., None, :]).any(-1, keepdims=True)
        key = jnp.where(finite[..., None], key, 0)
        value = jnp.where(finite[..., None], value, 0)
        # The smallest float instead of −inf keeps a fully masked row finite; the next `where` makes it exactly 0.
        weights = nn.softmax(jnp.where(mask, logits(key), jnp.finfo(jnp.float32).min))
        weights = jnp.where(mask, weights, 0)

    used = weights
    if dropout > 0.0:
        if dropout_key is None:
            raise ValueError(f"attention dropout {dropout} needs a dropout_key, got None")
        keep = jax.random.bernoulli(dropout_key, 1.0 - dropout, weights.shape)
        used = jnp.where(keep, weights / (1.0 - dropout), 0)
    output = jnp.einsum("...ts,...sv->...tv", used.astype(value.dtype), value)
    if poisoned is not None:
        output, weights = jnp.where(poisoned, jnp.nan, output), jnp.where(poisoned, jnp.nan, weights)
    return output, weights if return_weights else None


def _combined_mask(mask, bias, causal: bool, queries: int, keys: int) -> Array | None:
    parts = []
    if mask is not None:
        parts.append(mask)
    if bias is not None:
        parts.append(bias != -jnp.inf)
    if causal:
        parts.append(jnp.tril(jnp.ones((queries, keys), bool)))
    return reduce(jnp.logical_and, parts) if parts else None


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1 … head_H) W^O, section 3.2.2 of the paper.

    Self-attention when only `query` is given, cross-attention otherwise. Parameters: `query`, `key`, `value` kernels
    [width in, H, K] and `out` [H, K, D], each with a bias unless `use_bias` is False.

    Raises:
        ValueError: if a width is not divisible by its number of heads.
    """

    num_heads: int
    embed_dim: int | None = None  # output width; the query's width when None
    qk_dim: int | None = None  # query and key width over all heads; embed_dim when None
    v_dim: int | None = None  # value width over all heads; embed_dim when None
    num_kv_heads: int | None = None  # key/value heads, each shared by a group of query heads; num_heads when None
    dropout: float = 0.0  # on the attention weights
    use_bias: bool = True
    qk_norm: bool = False  # LayerNorm over each head's queries and keys (Dehghani et al. 2023, section 2)
    norm_eps: float = 1e-6
    scale: float | None = None  # of the logits; 1/√(head width) when None
    dtype: str = "float32"  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B T Iq"],
        key: Float[Array, "B S Ik"] | None = None,
        value: Float[Array, "B S Iv"] | None = None,
        mask: Bool[Array, "..."] | None = None,
        bias: Float[Array, "..."] | None = None,
        causal: bool = False,
        train: bool = False,
        return_weights: bool = False,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H T S"] | None]:
        """Attend from `query` to `key`/`value` (by default `query`, and `value` = `key`).

        `mask` and `bias` broadcast to [B, H, T, S]; mask True = attend. With `train`, dropout draws from the
        "dropout" rng. The weights are None unless `return_weights`.
        """
        key = query if key is None else key
        value = key if value is None else value
        embed_dim = query.shape[-1] if self.embed_dim is None else self.embed_dim
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        if self.num_heads % kv_heads:
            raise ValueError(f"num_heads must be divisible by num_kv_heads, got {self.num_heads} and {kv_heads}")
        qk_width = self._head_width("qk_dim", self.qk_dim, embed_dim)
        v_width = self._head_width("v_dim", self.v_dim, embed_dim)
        dtype = jnp.dtype(self.dtype)

        def heads(x, count: int, width: int, name: str):
            kernel_init = nn.initializers.xavier_uniform()
            x = nn.DenseGeneral(
                (count, width), use_bias=self.use_bias, kernel_init=kernel_init, dtype=dtype, name=name
            )(x)
            return rearrange(x, "b t h k -> b h t k")

        q = heads(query, self.num_heads, qk_width, "query")
        k = heads(key, kv_heads, qk_width, "key")
        v = heads(value, kv_heads, v_width, "value")
        if self.qk_norm:
            norm = {"epsilon": self.norm_eps, "use_fast_variance": False, "dtype": dtype}
            q = nn.LayerNorm(**norm, name="query_norm")(q)
            k = nn.LayerNorm(**norm, name="key_norm")(k)
        if kv_heads != self.num_heads:
            k, v = (jnp.repeat(x, self.num_heads // kv_heads, axis=1) for x in (k, v))

        dropout = self.dropout if train else 0.0
        attended, weights = scaled_dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            bias=bias,
            causal=causal,
            scale=self.scale,
            dropout=dropout,
            dropout_key=self.make_rng("dropout") if dropout > 0.0 else None,
            return_weights=return_weights,
        )
        attended = rearrange(attended, "b h t v -> b t h v")
        out = nn.DenseGeneral(
            embed_dim,
            axis=(-2, -1),
            use_bias=self.use_bias,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=dtype,
            name="out",
        )
        return out(attended), weights

    def _head_width(self, name: str, width: int | None, embed_dim: int) -> int:
        name, width = ("embed_dim", embed_dim) if width is None else (name, width)
        if width % self.num_heads:
            raise ValueError(f"{name} must be divisible by num_heads, got {width} and {self.num_heads}")
        return width // self.num_heads
