"""Scaled dot-product attention and multi-head attention.

Vaswani et al. 2017, "Attention Is All You Need", section 3.2 <https://arxiv.org/abs/1706.03762>.

Axis names: B batch, T query length, S key length, K key width of a head, V value width of a head, H heads, D model
width, L length of the cache, I input width.
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
from w2jax.layer_norm import LayerNorm, RMSNorm
from w2jax.masks import check_bias, check_lengths, check_masks
from w2jax.module import Inputs, Size, abstract, check_sizes, compute_dtype

Causal = bool | Literal["top_left", "bottom_right"]
Implementation = Literal["auto", "xla", "chunked", "cudnn"]

CHUNK_ABOVE_BYTES = 2**30  # "auto" switches to "chunked" if the float32 logits [..., T, S] need more memory than this


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
    """Compute scaled dot-product attention, softmax(Q Kᵀ · scale + bias) V (equation 1 of the paper).

    The leading axes (batch, heads) are broadcast. T may differ from S, and V from K.

    With "xla" and "chunked", `jax.vmap` and derivatives of any order work, in forward and reverse mode.

    Args:
        query: queries Q [..., T, K].
        key: keys K [..., S, K].
        value: values V [..., S, V].
        mask: True where a query may attend to a key; broadcastable to [..., T, S]. If all keys are masked for a query,
            its output, weights and gradients are 0. A masked key never changes the output or the gradients, even if it
            is NaN.
        bias: added to the logits; broadcastable to [..., T, S]. −inf masks a key.
        causal: True or "top_left": query t attends to keys 0 to t, as in torch and jax.nn. "bottom_right": the last
            query is aligned with the last valid key, as in FlashAttention. So query t attends to keys up to t + S − T,
            or up to t + key_lengths − T.
        scale: factor of the logits. None: 1/√K, as in the paper.
        dropout: dropout rate on the weights.
        dropout_key: typed random key for dropout.
        return_weights: return the attention weights before dropout; if False, return None instead.
        key_lengths: number of valid keys; later keys are masked. Broadcastable to the leading axes: [B] for queries
            [B, T, K], [B, 1] for queries [B, H, T, K].
        implementation: which algorithm to use.

            - "xla" computes all logits [..., T, S] at once.
            - "chunked" computes the logits block by block, forward and backward, so memory is linear in T and S. The
              result is the same up to rounding; dropout draws other random bits. It cannot return weights.
            - "cudnn" is the fused kernel of jax.nn. It is untested on hardware: no GPU was available to us. It needs an
              NVIDIA GPU, float16 or bfloat16, inputs [B, H, ·, K] and V = K. It supports no weights, no dropout, no
              bias and no "bottom_right". JAX raises an error for other limits of the GPU.
            - "auto" is "chunked" if `return_weights` is False and the logits need more than `CHUNK_ABOVE_BYTES`
              (1 GiB), else "xla". A symbolic size of `jax.export` counts as 1.

    Returns:
        (output [..., T, V], weights [..., T, S] or None). The softmax is computed in float32, or in
        float64 for float64 inputs.

    Raises:
        ValueError: widths or lengths do not match, `dropout_key` is missing, the implementation is unknown or does not
            support an argument, or a mask, a bias or lengths have the wrong dtype.
    """
    check_masks(bias_name="bias", mask=mask)
    check_bias(bias)
    check_lengths(key_lengths=key_lengths)
    queries, keys = query.shape[-2], key.shape[-2]
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must have the same width, got query {query.shape} and key {key.shape}")
    if keys != value.shape[-2]:
        raise ValueError(f"key and value must have the same length, got key {key.shape} and value {value.shape}")
    for name, x in (("mask", mask), ("bias", bias)):
        if x is not None and any(x.shape[i] not in (1, n) for i, n in ((-1, keys), (-2, queries)) if x.ndim >= -i):
            raise ValueError(
                f"{name} must broadcast to [..., {queries}, {keys}] (queries, keys), got the shape {x.shape}"
            )
    if causal not in (False, True, "top_left", "bottom_right"):
        raise ValueError(f"causal must be False, True, 'top_left' or 'bottom_right', got {causal!r}")
    if implementation not in get_args(Implementation):
        known = ", ".join(map(repr, get_args(Implementation)))
        raise ValueError(f"implementation must be one of {known}, got {implementation!r}")
    if dropout > 0.0 and dropout_key is None:
        raise ValueError(f"dropout_key must be a random key if dropout is above 0, got None and dropout {dropout}")
    if implementation == "chunked" and return_weights:
        raise ValueError(
            "implementation 'chunked' cannot return the weights. Pass return_weights=False or implementation='xla'"
        )

    if implementation == "auto":
        batch = jnp.broadcast_shapes(query.shape[:-2], key.shape[:-2])
        concrete_sizes = [size for size in (*batch, queries, keys) if isinstance(size, int)]
        small = 4 * math.prod(concrete_sizes) <= CHUNK_ABOVE_BYTES
        implementation = "xla" if return_weights or small else "chunked"
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    lengths = None if key_lengths is None else jnp.minimum(key_lengths, keys)[..., None, None]
    dropout_key = dropout_key if dropout > 0.0 else None
    offset = None  # query t attends to keys up to t + offset
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
    """Project the input for all heads, x W + b, in one matrix product (Q W^Q, K W^K or V W^V in section 3.2.2).

    Parameters: `kernel` [I, H, K] and `bias` [H, K], as in flax.linen.DenseGeneral. As in torch, Glorot initialization
    uses the total width of all heads.
    """

    num_heads: int  # H, number of heads.
    width: int  # K, width of each head.
    use_bias: bool  # Add a learned bias.
    dtype: str  # Data type of activations and matrix products; parameters stay float32.

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B H T K"]:
        """Project each position to all heads."""
        shape = x.shape[-1], self.num_heads, self.width
        kernel = self.param("kernel", _glorot_of_all_heads, shape)
        # For "bti,ihk->bhtk", einsum would transpose the kernel, which takes up to a quarter of the time on a CPU.
        x = jnp.einsum("bti,ihk->bthk", x.astype(self.dtype), kernel.astype(self.dtype))
        x = rearrange(x, "b t h k -> b h t k")
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, shape[1:]).astype(self.dtype)[:, None]
        return x


def _glorot_of_all_heads(key: Key[Array, ""], shape: tuple[int, int, int]) -> Float[Array, "I H K"]:
    flat = nn.initializers.xavier_uniform()(key, (shape[0], shape[1] * shape[2]))
    return rearrange(flat, "i (h k) -> i h k", h=shape[1])


class MultiHeadAttention(nn.Module):
    """Multi-head attention: MultiHead(Q, K, V) = Concat(head_1 … head_H) W^O (section 3.2.2 of the paper).

    If you pass only `query`, it is self-attention, else cross-attention. With `num_kv_heads` it is grouped-query
    attention (Ainslie et al. 2023 <https://arxiv.org/abs/2305.13245>), and with `num_kv_heads=1` multi-query attention
    (Shazeer 2019 <https://arxiv.org/abs/1911.02150>).

    Parameters: kernels `query`, `key`, `value` [I, H, K] and `out` [H, K, D]. With `use_bias` each has a bias; `query`,
    `key` and `value` have a bias only if `qkv_bias` is True too.

    With `decode`, keys and values are stored in the collection "cache" (Hkv is the number of key/value heads): `key`
    [B, Hkv, L, K], `value` [B, Hkv, L, V], and `index`, the number of positions written. First,
    `init(rng, x, decode="append")` creates an empty cache; its length L is the number of keys in this call. Then each
    `apply(variables, x, decode="append", mutable=["cache"])` appends the keys and values of its input.
    """

    num_heads: int  # H, number of query heads; must divide embed_dim, qk_dim and v_dim.
    embed_dim: int | None = None  # D, output width; None: the width of the query.
    qk_dim: int | None = None  # Width of queries and keys, all heads together; None: embed_dim.
    v_dim: int | None = None  # Width of values, all heads together; None: embed_dim.
    num_kv_heads: int | None = None  # Number of key/value heads; query heads share them in groups; None: num_heads.
    dropout: float = 0.0  # Dropout rate on the attention weights.
    use_bias: bool = True  # Biases in the four projections; False: no biases.
    qkv_bias: bool = True  # Biases of queries, keys and values, if use_bias; False: only the output has a bias.
    qk_norm: bool = False  # LayerNorm on the queries and keys of each head (section 2 of arXiv:2302.05442).
    sub_norm: bool = False  # LayerNorm on the heads' outputs, all heads together, before the output projection.
    norm_eps: float = 1e-6  # Epsilon of the LayerNorms, added to the variance.
    rms_norm: bool = False  # RMSNorm instead of these LayerNorms.
    scale: float | None = None  # Factor of the logits; None: 1/√(head width).
    implementation: Implementation = "auto"  # See scaled_dot_product_attention; "cudnn" is untested on hardware.
    dtype: str = "float32"  # Data type of activations and matrix products; parameters stay float32.

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
        """Attend from `query` to `key` and `value`.

        Args:
            query: input of the query projection.
            key: input of the key projection. None: `query`.
            value: input of the value projection. None: `key`.
            mask: True where a query may attend to a key; broadcastable to [B, H, T, S], or with `decode` to
                [B, H, T, L].
            bias: added to the logits; broadcastable like `mask`.
            causal: as in `scaled_dot_product_attention`. With `decode`, True means "bottom_right": the last query is
                aligned with the last position written. So decoding in parts gives the output of one causal pass.
            train: use dropout on the weights, drawn from the rng "dropout".
            return_weights: return the attention weights; if False, return None instead.
            key_lengths: number of valid keys of each example.
            decode: "append" appends the keys and values of this call (one position or many) to the cache, and attends
                to the whole cache. "reuse" attends to the cache without writing to it and projects only the query: use
                it for cross-attention from the second call on. None: no cache.

        Returns:
            (output, weights or None). Under `jit`, where no error can be raised, the output is NaN after the cache has
            overflowed.

        Raises:
            ValueError: a width is not divisible by the number of heads, an argument does not fit `decode`, a mask, a
                bias or lengths have the wrong dtype, or (outside `jit`) the cache overflows.
        """
        if decode is not None:
            self._check_decode(decode, query, key, value, causal, key_lengths)
            causal = "bottom_right" if causal else False
        embed_dim = query.shape[-1] if self.embed_dim is None else self.embed_dim
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        check_sizes(num_heads=self.num_heads, num_kv_heads=kv_heads, embed_dim=embed_dim)
        check_sizes(qk_dim=self.qk_dim, v_dim=self.v_dim)
        if self.num_heads % kv_heads:
            raise ValueError(
                f"num_heads must be divisible by num_kv_heads, got num_heads {self.num_heads} and "
                f"num_kv_heads {kv_heads}"
            )
        qk_width = self._head_width("qk_dim", self.qk_dim, embed_dim)
        v_width = self._head_width("v_dim", self.v_dim, embed_dim)
        dtype = compute_dtype(self.dtype)

        def heads(x, count: int, width: int, name: str):
            return HeadProjection(count, width, self.use_bias and self.qkv_bias, self.dtype, name=name)(x)

        norm = RMSNorm if self.rms_norm else LayerNorm
        q = heads(query, self.num_heads, qk_width, "query")
        if self.qk_norm:
            q = norm(self.norm_eps, dtype=self.dtype, name="query_norm")(q)
        written = None
        if decode == "reuse":
            k, v, written = (self.get_variable("cache", name) for name in ("key", "value", "index"))
        else:
            key = query if key is None else key
            k = heads(key, kv_heads, qk_width, "key")
            v = heads(key if value is None else value, kv_heads, v_width, "value")
            if self.qk_norm:
                k = norm(self.norm_eps, dtype=self.dtype, name="key_norm")(k)
            if decode == "append":
                k, v, written = self._appended(k, v)
        if written is not None:
            key_lengths = jnp.full(query.shape[0], written)

        grouped = kv_heads < self.num_heads  # an axis of groups of size 1 would make the ViT's step 15 % slower on CPU

        def by_group(x):
            """Reshape [..., H, T, S] to [..., Hkv, G, T, S]: the G heads of a group share keys without copies."""
            if x is None or x.ndim < 3:
                return x
            if x.shape[-3] not in (1, self.num_heads):
                raise ValueError(
                    f"axis -3 of mask and bias must have size {self.num_heads} (heads) or 1, got the shape {x.shape}"
                )
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
        if self.sub_norm:
            joined = norm(self.norm_eps, dtype=self.dtype, name="norm")(rearrange(attended, "b t h v -> b t (h v)"))
            attended = joined.reshape(attended.shape)
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
        """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns."""
        width = self.embed_dim or size("query/kernel", 0, self.num_heads)
        query, key, value = (abstract(1, 1, size(f"{name}/kernel", 0, width)) for name in ("query", "key", "value"))
        return query, key, value

    def _check_decode(self, decode: str, query, key, value, causal: Causal, key_lengths) -> None:
        if causal == "top_left":
            raise ValueError(
                "causal must be False, True or 'bottom_right' with decode, got 'top_left', which masks the cache"
            )
        if key_lengths is not None:
            raise ValueError("key_lengths must be None with decode, got an array. Mask keys with `mask`")
        if decode == "reuse" and not (key is None and value is None):
            raise ValueError(
                "key and value must be None with decode='reuse', which only reads the cache, got an array. "
                "Use decode='append' to write them"
            )
        if self.is_initializing():
            if decode == "reuse":
                raise ValueError(
                    "init needs keys to create a cache, got decode='reuse'. Call init with decode='append'"
                )
            return
        writable = decode == "reuse" or self.is_mutable_collection("cache")
        if not self.has_variable("cache", "key") or not writable:
            raise ValueError(
                f"decode={decode!r} needs the collection 'cache', writable for 'append'. Call init with "
                "decode='append' and keys of the full length; then pass its 'cache' to apply, with mutable=['cache']"
            )
        batch = self.get_variable("cache", "key").shape[0]
        if query.shape[0] != batch:
            raise ValueError(
                f"the batch size must be {batch}, as in the cache, got {query.shape[0]}. "
                "Create a cache for this batch size with init"
            )

    def _appended(self, key: Array, value: Array) -> tuple[Array, Array, Array]:
        """Append `key` and `value` to the cache: return its (keys, values, number of positions written).

        During `init`, create an empty cache.
        """
        # `self.variable` would raise a name collision, because submodules are called `key` and `value` too.
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
                f"the cache must have at least {written + new} positions ({written} written, {new} new), got {length}. "
                "Create a longer cache with init"
            )
        keys = jax.lax.dynamic_update_slice_in_dim(keys, key, start, axis=2)
        values = jax.lax.dynamic_update_slice_in_dim(values, value, start, axis=2)
        for name, x in (("key", keys), ("value", values), ("index", start + new)):
            self.put_variable("cache", name, x)
        return keys, values, start + new

    def _head_width(self, name: str, width: int | None, embed_dim: int) -> int:
        name, width = ("embed_dim", embed_dim) if width is None else (name, width)
        if width % self.num_heads:
            raise ValueError(
                f"{name} must be divisible by num_heads, got {name} {width} and num_heads {self.num_heads}"
            )
        return width // self.num_heads
