"""Scaled dot-product and multi-head attention (Vaswani et al. 2017, "Attention Is All You Need", section 3.2).

Axis names: B batch, T query length, S key length, K key width of a head, V its value width, H heads, D model width,
L length of the cache.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from w2jax.kernels.attention import chunked_attention, cudnn_attention, xla_attention
from w2jax.layer_norm import LayerNorm
from w2jax.module import Inputs, Size, abstract

Causal = bool | Literal["top_left", "bottom_right"]
Implementation = Literal["auto", "xla", "chunked", "cudnn"]

CHUNK_ABOVE_BYTES = 2**30  # "auto" works in blocks when the float32 logits [..., T, S] would take more than this


def scaled_dot_product_attention(
    query: Float[Array, "*batch_q T K"],
    key: Float[Array, "*batch_k S K"],
    value: Float[Array, "*batch_k S V"],
    mask: Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    causal: Causal = False,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
    return_weights: bool = True,
    key_lengths: Int[Array, "..."] | None = None,
    implementation: Implementation = "auto",
) -> tuple[Float[Array, "*batch T V"], Float[Array, "*batch T S"] | None]:
    """softmax(Q Kᵀ · scale + bias) V, equation 1 of the paper.

    Any leading axes (batch, heads) broadcast; the value width may differ from the key width, T from S.

    Args:
        query: Q.
        key: K.
        value: V.
        mask: True = attend; broadcastable to [..., T, S]. A query that may attend to no key has output 0, weights 0
            and gradients 0. A hidden key never affects the query's output or gradients, even if it is NaN.
        bias: added to the logits; broadcastable to [..., T, S]; −inf masks.
        causal: True or "top_left": query t attends to keys 0..t (aligned at the first key, as torch and jax.nn do).
            "bottom_right": the last query is aligned with the last valid key, so query t attends to keys up to
            t + S − T, or t + key_lengths − T (as FlashAttention does).
        scale: 1/√K when None, the paper's.
        dropout: rate on the weights.
        dropout_key: typed key that dropout draws from.
        return_weights: False returns None in their place. Weights are those before dropout.
        key_lengths: the number of valid keys, those behind are masked; broadcastable to the leading axes [...]:
            [B] for queries [B, T, K], [B, 1] for [B, H, T, K].
        implementation: "xla" computes all logits [..., T, S] at once. "chunked" computes one block of them at a time,
            forward and backward: memory linear in T and S, the same result up to rounding (with dropout, other random
            bits), no weights. "cudnn" is jax.nn's fused kernel: an NVIDIA GPU, float16 or bfloat16, [B, H, T, K],
            V = K, no weights, dropout, bias or "bottom_right"; jax raises for further limits of the GPU.
            "auto" is "chunked" if `return_weights` is False and the logits exceed `CHUNK_ABOVE_BYTES`, else "xla";
            a size that `jax.export` leaves open counts as 1.

    Returns:
        (output, weights); the softmax is computed in float32 whatever the input's dtype.

    With "xla" and "chunked", `jax.vmap` and derivatives of any order work, in forward and reverse mode.

    Raises:
        ValueError: if widths or lengths disagree, dropout has no dropout_key, or the implementation is unknown or does
            not support an argument.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key need one width, got query {query.shape} and key {key.shape}")
    if keys != value.shape[-2]:
        raise ValueError(f"key and value need one length, got key {key.shape} and value {value.shape}")
    for name, x in (("mask", mask), ("bias", bias)):
        if x is not None and any(x.shape[i] not in (1, n) for i, n in ((-1, keys), (-2, queries)) if x.ndim >= -i):
            raise ValueError(f"{name} must broadcast to [..., {queries}, {keys}], got {x.shape}")
    if causal not in (False, True, "top_left", "bottom_right"):
        raise ValueError(f"causal must be False, True, 'top_left' or 'bottom_right', got {causal!r}")
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation must be one of {get_args(Implementation)}, got {implementation!r}")
    if dropout > 0.0 and dropout_key is None:
        raise ValueError(f"attention dropout {dropout} needs a dropout_key, got None")
    if implementation == "chunked" and return_weights:
        raise ValueError("implementation 'chunked' never holds the weights: pass return_weights=False, or use 'xla'")

    if implementation == "auto":
        batch = jnp.broadcast_shapes(query.shape[:-2], key.shape[:-2])
        concrete_sizes = [size for size in (*batch, queries, keys) if isinstance(size, int)]
        small = 4 * math.prod(concrete_sizes) <= CHUNK_ABOVE_BYTES
        implementation = "xla" if return_weights or small else "chunked"
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    lengths = None if key_lengths is None else jnp.minimum(key_lengths, keys)[..., None, None]
    offset = None  # of the last key that the first query sees
    if causal:
        offset = (keys if lengths is None else lengths) - queries if causal == "bottom_right" else 0

    if implementation == "cudnn":
        unsupported = {
            "the weights": return_weights,
            "dropout": dropout > 0.0,
            "a bias": bias is not None,
            "causal='bottom_right'": causal == "bottom_right",
        }
        return cudnn_attention(query, key, value, mask, offset, lengths, factor, unsupported), None
    if implementation == "chunked":
        return chunked_attention(query, key, value, mask, bias, offset, lengths, factor, dropout, dropout_key), None
    output, weights = xla_attention(query, key, value, mask, bias, offset, lengths, factor, dropout, dropout_key)
    return output, weights if return_weights else None


class HeadProjection(nn.Module):
    """x W + b for each head: Q W^Q, K W^K, V W^V of equation 5 in one product each.

    Parameters: `kernel` [I, H, K] and `bias` [H, K], as in flax.linen.DenseGeneral. Glorot's initial values count the
    widths of all heads, as torch's do.
    """

    num_heads: int  # H
    width: int  # K
    use_bias: bool  # adds b
    dtype: str  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B H T K"]:
        """The projection of each position."""
        shape = x.shape[-1], self.num_heads, self.width

        def init(key: Key[Array, ""], shape: tuple[int, int, int]) -> Float[Array, "I H K"]:
            flat = nn.initializers.xavier_uniform()(key, (shape[0], shape[1] * shape[2]))
            return rearrange(flat, "i (h k) -> i h k", h=shape[1])

        kernel = self.param("kernel", init, shape)
        x = jnp.einsum("bti,ihk->bhtk", x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, shape[1:]).astype(self.dtype)[:, None]
        return x


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1 … head_H) W^O, section 3.2.2 of the paper.

    With `num_kv_heads` it is grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), with `num_kv_heads` 1
    multi-query attention (Shazeer 2019, arXiv 1911.02150).

    Self-attention when only `query` is given, cross-attention otherwise. Parameters: kernels `query`, `key`, `value`
    [input width, H, K] and `out` [H, K, D], each with a bias if `use_bias`, the first three only with `qkv_bias` too.

    With `decode`, keys and values are stored in the collection "cache": `key` [B, Hkv, L, K], `value` [B, Hkv, L, V],
    and `index`, the number of positions written. `init(rng, x, decode="append")` creates it empty, with the length L of
    the keys in that call; every `apply(variables, x, decode="append", mutable=["cache"])` appends its own.
    """

    num_heads: int  # H; must divide the widths
    embed_dim: int | None = None  # output width; the query's width when None
    qk_dim: int | None = None  # query and key width over all heads; embed_dim when None
    v_dim: int | None = None  # value width over all heads; embed_dim when None
    num_kv_heads: int | None = None  # key/value heads, each shared by a group of query heads; num_heads when None
    dropout: float = 0.0  # on the attention weights
    use_bias: bool = True  # of the four projections
    qkv_bias: bool = True  # with use_bias: False leaves the bias of the output alone
    qk_norm: bool = False  # LayerNorm over each head's queries and keys (Dehghani et al. 2023, section 2)
    norm_eps: float = 1e-6  # of the LayerNorms of qk_norm
    scale: float | None = None  # of the logits; 1/√(head width) when None
    implementation: Implementation = "auto"  # of scaled_dot_product_attention
    dtype: str = "float32"  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "B T Iq"],
        key: Float[Array, "B S Ik"] | None = None,
        value: Float[Array, "B S Iv"] | None = None,
        mask: Bool[Array, "..."] | None = None,
        bias: Float[Array, "..."] | None = None,
        causal: Causal = False,
        train: bool = False,
        return_weights: bool = False,
        key_lengths: Int[Array, "B"] | None = None,
        decode: Literal["append", "reuse"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H T S_or_L"] | None]:
        """Attend from `query` to `key`/`value` (by default `query`, and `value` = `key`).

        Args:
            query: Q before its projection.
            key: K before its projection.
            value: V before its projection.
            mask: broadcastable to [B, H, T, S], or [B, H, T, L] with `decode`; True = attend.
            bias: added to the logits; broadcastable as the mask.
            causal: as in `scaled_dot_product_attention`. With `decode`, True is "bottom_right": the last query is
                aligned with the last position written, so decoding in parts equals one causal pass.
            train: dropout on the weights is on, drawn from the rng "dropout".
            return_weights: False returns None in their place.
            key_lengths: the number of valid keys of each example.
            decode: "append" appends these keys and values, of one position or many, to the cache and attends to all
                of it. "reuse" attends to the cache as it is and projects only the query, for cross-attention after its
                first call.

        Returns:
            (output, weights). Once the cache has overflowed under `jit`, which cannot raise, the output is NaN.

        Raises:
            ValueError: if heads do not divide a width, or an argument does not fit `decode`; outside `jit` also if the
                cache overflows.
        """
        if decode is not None:
            self._check_decode(decode, query, key, value, causal, key_lengths)
            causal = "bottom_right" if causal else False
        embed_dim = query.shape[-1] if self.embed_dim is None else self.embed_dim
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        if self.num_heads % kv_heads:
            raise ValueError(f"num_heads must be divisible by num_kv_heads, got {self.num_heads} and {kv_heads}")
        qk_width = self._head_width("qk_dim", self.qk_dim, embed_dim)
        v_width = self._head_width("v_dim", self.v_dim, embed_dim)
        dtype = jnp.dtype(self.dtype)

        def heads(x, count: int, width: int, name: str):
            return HeadProjection(count, width, self.use_bias and self.qkv_bias, self.dtype, name=name)(x)

        q = heads(query, self.num_heads, qk_width, "query")
        if self.qk_norm:
            q = LayerNorm(self.norm_eps, dtype=self.dtype, name="query_norm")(q)
        written = None
        if decode == "reuse":
            k, v, written = (self.get_variable("cache", name) for name in ("key", "value", "index"))
        else:
            key = query if key is None else key
            k = heads(key, kv_heads, qk_width, "key")
            v = heads(key if value is None else value, kv_heads, v_width, "value")
            if self.qk_norm:
                k = LayerNorm(self.norm_eps, dtype=self.dtype, name="key_norm")(k)
            if decode == "append":
                k, v, written = self._appended(k, v)
        if written is not None:
            key_lengths = jnp.full(query.shape[0], written)

        grouped = kv_heads < self.num_heads  # else no axis of groups: it takes the ViT's step 15 % more on CPU

        def by_group(x):
            """[..., H, T, S] → [..., Hkv, G, T, S], so that the G heads of a group share keys without copies."""
            if x is None or x.ndim < 3:
                return x
            if x.shape[-3] not in (1, self.num_heads):
                raise ValueError(f"mask and bias need {self.num_heads} heads or 1 at axis -3, got {x.shape}")
            if not grouped:
                return x
            return x[..., None, :, :] if x.shape[-3] == 1 else rearrange(x, "... (h g) t s -> ... h g t s", h=kv_heads)

        if key_lengths is not None:
            key_lengths = key_lengths[:, None, None] if grouped else key_lengths[:, None]
        dropout = self.dropout if train else 0.0
        attended, weights = scaled_dot_product_attention(
            rearrange(q, "b (h g) t k -> b h g t k", h=kv_heads) if grouped else q,
            k[:, :, None] if grouped else k,
            v[:, :, None] if grouped else v,
            mask=by_group(mask),
            bias=by_group(bias),
            causal=causal,
            scale=self.scale,
            dropout=dropout,
            dropout_key=self.make_rng("dropout") if dropout > 0.0 else None,
            return_weights=return_weights,
            key_lengths=key_lengths,
            implementation=self.implementation,
        )
        if written is not None:
            attended = jnp.where(written <= k.shape[2], attended, jnp.nan)
        if grouped:
            attended = rearrange(attended, "b h g t v -> b (h g) t v")
            weights = None if weights is None else rearrange(weights, "b h g t s -> b (h g) t s")
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

    def example_inputs(self, size: Size) -> Inputs:
        """The smallest inputs for which `init` makes the right parameters; `size` gives a checkpoint's sizes."""
        width = self.embed_dim or size("query/kernel", 0, self.num_heads)
        query, key, value = (abstract(1, 1, size(f"{name}/kernel", 0, width)) for name in ("query", "key", "value"))
        return query, key, value

    def _check_decode(self, decode: str, query, key, value, causal: Causal, key_lengths) -> None:
        if causal == "top_left":
            raise ValueError("causal='top_left' would hide what is in the cache: decode needs True or 'bottom_right'")
        if key_lengths is not None:
            raise ValueError("with decode the cache knows its length: hide keys by `mask` instead of `key_lengths`")
        if decode == "reuse" and not (key is None and value is None):
            raise ValueError("decode='reuse' attends to the cache, it takes no key or value; decode='append' does")
        if self.is_initializing():
            if decode == "reuse":
                raise ValueError("decode='reuse' has no keys to size a cache by: init with decode='append'")
            return
        writable = decode == "reuse" or self.is_mutable_collection("cache")
        if not self.has_variable("cache", "key") or not writable:
            raise ValueError(
                f"decode={decode!r} needs a cache: init with decode='append' and a key of the full length, then apply "
                "with that collection 'cache' and mutable=['cache']"
            )
        batch = self.get_variable("cache", "key").shape[0]
        if query.shape[0] != batch:
            raise ValueError(f"the cache is for a batch of {batch}, got {query.shape[0]}: init one for this batch")

    def _appended(self, key: Array, value: Array) -> tuple[Array, Array, Array]:
        """(keys, values, number of positions written) of the cache after `key` and `value`; `init` writes nothing."""
        # Submodules have the names `key` and `value` too, so `self.variable` would collide.
        if self.is_initializing():
            for name, x in (("key", key), ("value", value)):
                self.put_variable("cache", name, jnp.zeros_like(x))
            self.put_variable("cache", "index", jnp.zeros((), jnp.int32))
            return key, value, jnp.asarray(key.shape[2])
        keys, values, start = (jnp.asarray(self.get_variable("cache", name)) for name in ("key", "value", "index"))
        new, length = key.shape[2], keys.shape[2]
        written = 0 if isinstance(start, Tracer) else int(start)
        if written + new > length:
            raise ValueError(
                f"the cache holds {length} positions, {written} are written, {new} more do not fit: init a longer one"
            )
        keys = jax.lax.dynamic_update_slice_in_dim(keys, key, start, axis=2)
        values = jax.lax.dynamic_update_slice_in_dim(values, value, start, axis=2)
        for name, x in (("key", keys), ("value", values), ("index", start + new)):
            self.put_variable("cache", name, x)
        return keys, values, start + new

    def _head_width(self, name: str, width: int | None, embed_dim: int) -> int:
        name, width = ("embed_dim", embed_dim) if width is None else (name, width)
        if width % self.num_heads:
            raise ValueError(f"{name} must be divisible by num_heads, got {width} and {self.num_heads}")
        return width // self.num_heads
