"""Three implementations of attention: the plain formula, blocks with an online softmax, and cuDNN.

All three return the same output, up to rounding. `scaled_dot_product_attention` checks the arguments and calls them:

- `query` [..., T, K], `key` [..., S, K] and `value` [..., S, V].
- `mask` and `bias`: broadcastable to [..., T, S], or None.
- `offset`: query t attends to keys up to t + offset. None: to all keys.
- `lengths` [..., 1, 1]: number of valid keys. None: all keys are valid.
- `factor`: multiplies the logits.
- `dropout`: rate on the weights, drawn from `dropout_key`. Without a key there is no dropout.
"""

import math
from collections.abc import Mapping
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

Offset = int | Int[Array, "..."] | None

QUERY_BLOCK, KEY_BLOCK = 512, 512  # queries and keys in a block of `chunked_attention`
LOWEST = float(jnp.finfo(jnp.float32).min)  # used instead of −inf, because −inf − (−inf) is NaN


def xla_attention(
    query: Float[Array, "*batch_q T K"],
    key: Float[Array, "*batch_k S K"],
    value: Float[Array, "*batch_k S V"],
    mask: Bool[Array, "..."] | None,
    bias: Float[Array, "..."] | None,
    offset: Offset,
    lengths: Int[Array, "..."] | None,
    factor: float,
    dropout: float,
    dropout_key: Key[Array, ""] | None,
) -> tuple[Float[Array, "*batch T V"], Float[Array, "*batch T S"]]:
    """Compute softmax(Q Kᵀ · factor + bias) V with all logits [..., T, S] in memory: return (output, weights)."""
    rows, columns = jnp.arange(query.shape[-2])[:, None], jnp.arange(key.shape[-2])
    conditions = _conditions(mask, bias, offset, lengths, rows, columns)
    visible = reduce(jnp.logical_and, conditions) if conditions else None
    nan_rows = None
    if visible is not None:
        key, value, finite = _without_nan(key, value)
        nan_rows = (visible & ~finite[..., None, :]).any(-1, keepdims=True)

    exact = _exact_dtype(query, key, value)
    logits = jnp.einsum("...tk,...sk->...ts", query * factor, key, preferred_element_type=exact)
    logits = logits if bias is None else logits + bias
    if visible is None:
        weights = nn.softmax(logits)
    else:  # with LOWEST the softmax of a fully masked row is finite; the outer `where` sets its weights to exactly 0
        weights = jnp.where(visible, nn.softmax(jnp.where(visible, logits, LOWEST)), 0)
    dropped = weights if dropout_key is None else _dropout(dropout_key, dropout, weights)
    output = jnp.einsum("...ts,...sv->...tv", dropped.astype(value.dtype), value)
    if nan_rows is not None:
        output, weights = jnp.where(nan_rows, jnp.nan, output), jnp.where(nan_rows, jnp.nan, weights)
    return output, weights


def chunked_attention(
    query: Float[Array, "*batch_q T K"],
    key: Float[Array, "*batch_k S K"],
    value: Float[Array, "*batch_k S V"],
    mask: Bool[Array, "..."] | None,
    bias: Float[Array, "..."] | None,
    offset: Offset,
    lengths: Int[Array, "..."] | None,
    factor: float,
    dropout: float,
    dropout_key: Key[Array, ""] | None,
) -> Float[Array, "*batch T V"]:
    """Compute the output in a loop over blocks of queries, with an inner loop over blocks of keys.

    The inner loop carries the state of an online softmax: (largest logit so far, sum of exponentials, weighted sum of
    values). Both sums are relative to the largest logit (Milakov & Gimelshein 2018, "Online normalizer calculation for
    softmax" <https://arxiv.org/abs/1805.02867>).
    """
    key, value, finite = _without_nan(key, value)
    arrays = {"query": query * factor, "key": key, "value": value, "bias": bias}
    fixed = {"mask": mask, "lengths": lengths, "offset": offset, "finite": finite, "dropout_key": dropout_key}
    output, _, nan_rows = _attend_by_blocks(dropout, arrays, fixed)
    return jnp.where(nan_rows, jnp.nan, output)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend_by_blocks(dropout, arrays, fixed):
    """Return (output, logarithm of the sum of the exponentials of each query's logits, queries that attend to NaN).

    `arrays` has the scaled queries, the keys, the values and the bias, which are differentiated, and `fixed` the rest.
    """
    dtype, exact = arrays["value"].dtype, _exact_dtype(*(arrays[name] for name in ("query", "key", "value")))

    def add_block(state, x, visible, keep):
        top, total, output, nan_rows = state
        logits = jnp.where(visible, _logits(x["query"], x["key"], x["bias"], exact), LOWEST)
        new_top = jnp.maximum(top, logits.max(-1, keepdims=True))
        weights, shrink = jnp.where(visible, jnp.exp(logits - new_top), 0), jnp.exp(top - new_top)
        added = jnp.einsum("...ts,...vs->...tv", keep(weights).astype(dtype), x["value"], preferred_element_type=exact)
        nan_rows = nan_rows | (visible & ~x["finite"]).any(-1, keepdims=True)
        return new_top, total * shrink + weights.sum(-1, keepdims=True), output * shrink + added, nan_rows

    width = arrays["value"].shape[-1]
    start = ((1, LOWEST, exact), (1, 0, exact), (width, 0, exact), (1, False, bool))
    top, total, output, nan_rows = _over_blocks(add_block, start, arrays, {}, fixed, dropout)
    total = jnp.where(total == 0, 1, total)
    return (output / total).astype(dtype), top + jnp.log(total), nan_rows


@_attend_by_blocks.defjvp
def _attend_by_blocks_jvp(dropout, primals, tangents):
    """Compute the weights P of each block again instead of storing them. Keys are s; D is the dropout factor:

        d output = Σ_s D P (dL V + dV) − output · Σ_s P dL,  where dL are the derivatives of the logits

    (Rabe & Staats 2021, "Self-attention Does Not Need O(n²) Memory" <https://arxiv.org/abs/2112.05682>). The gradient
    is the transpose of this sum, so it computes each block of weights once, as in FlashAttention (Dao et al. 2022
    <https://arxiv.org/abs/2205.14135>).
    """
    (arrays, fixed), (changes, _) = primals, tangents
    output, log_total, nan_rows = _attend_by_blocks(dropout, arrays, fixed)
    dtype, exact = output.dtype, log_total.dtype

    def add_block(state, x, visible, keep):
        d_output, d_log_total = state
        logits = jnp.where(visible, _logits(x["query"], x["key"], x["bias"], exact), LOWEST)
        weights = jnp.where(visible, jnp.exp(logits - x["log_total"]), 0)
        d_logits = _logits(x["d_query"], x["key"], x["d_bias"], exact) + _logits(x["query"], x["d_key"], None, exact)
        change, dropped = weights * jnp.where(visible, d_logits, 0), keep(weights).astype(dtype)
        product = partial(jnp.einsum, "...ts,...vs->...tv", preferred_element_type=exact)
        added = product(keep(change).astype(dtype), x["value"]) + product(dropped, x["d_value"])
        return d_output + added, d_log_total + change.sum(-1, keepdims=True)

    def sums(changes):
        moving = {f"d_{name}": x for name, x in changes.items()} | {"log_total": log_total}
        return _over_blocks(add_block, start, arrays, moving, fixed, dropout)

    start = ((output.shape[-1], 0, exact), (1, 0, exact))
    # `sums` is linear, so this is sums(changes). JAX 0.7 can only transpose a scan that comes from `jvp`.
    _, (d_output, d_log_total) = jax.jvp(sums, (jax.tree.map(jnp.zeros_like, changes),), (changes,))
    d_output = (d_output - output * d_log_total).astype(dtype)
    return (output, log_total, nan_rows), (d_output, d_log_total, np.zeros(nan_rows.shape, jax.dtypes.float0))


def _logits(query, key, bias, exact):
    logits = jnp.einsum("...tk,...ks->...ts", query, key, preferred_element_type=exact)
    return logits if bias is None else logits + bias.astype(exact)


def _over_blocks(add_block, start, arrays, moving, fixed, dropout) -> tuple[Array, ...]:
    """Add all blocks of keys to a state of each query: return the states after the last block, each [..., T, width].

    `add_block(state, arrays of the block, visible, keep)` returns the new state. `keep(weights)` applies the dropout of
    the block. `start` has the width, the value and the dtype of each part of the state. Blocks without a visible
    key are skipped.
    """
    x = {**arrays, **moving, "mask": fixed["mask"], "finite": fixed["finite"][..., None, :]}
    queries, keys = x["query"].shape[-2], x["key"].shape[-2]
    known = [arrays[name] for name in ("query", "key", "value", "bias")] + [fixed["mask"], fixed["lengths"]]
    batch = jnp.broadcast_shapes(*(jnp.shape(array)[:-2] for array in known if array is not None))
    row_size, column_size = min(QUERY_BLOCK, queries), min(KEY_BLOCK, keys)
    row_count, column_count = -(-queries // row_size), -(-keys // column_size)
    padded = keys % column_size > 0  # in the last block
    lengths = keys if padded and fixed["lengths"] is None else fixed["lengths"]
    of_keys = {name: jnp.swapaxes(x.pop(name), -1, -2) for name in ("key", "value", "d_key", "d_value") if name in x}
    of_keys["finite"] = x.pop("finite")
    by_column, for_all_columns = _blocks(of_keys, -1, column_size)
    by_row, for_all_rows = _blocks(x, -2, row_size)

    # prevent_cse is not needed in a loop, because XLA cannot merge the recomputation with the forward pass there.
    @partial(jax.checkpoint, prevent_cse=False)
    def of_rows(block):
        i, own = block
        own = for_all_rows | own
        both = {name: own.pop(name) for name in ("mask", "bias", "d_bias") if name in own}
        rows = i * row_size + jnp.arange(row_size)[:, None]
        own_by_column, own_for_all_columns = _blocks(both, -1, column_size)

        @partial(jax.checkpoint, prevent_cse=False)
        def step(state, block):
            j, of_column = block
            x = {**own, **for_all_columns, **own_for_all_columns, **of_column}
            columns = j * column_size + jnp.arange(column_size)
            conditions = _conditions(x["mask"], x["bias"], fixed["offset"], lengths, rows, columns)

            def keep(weights):
                if fixed["dropout_key"] is None:
                    return weights
                own_key = jax.random.fold_in(jax.random.fold_in(fixed["dropout_key"], i), j)
                return _dropout(own_key, dropout, weights)

            if not conditions:
                return add_block(state, x, jnp.array(True), keep), None
            visible = reduce(jnp.logical_and, conditions)
            added = partial(add_block, x=x, visible=visible, keep=keep)
            return jax.lax.cond(visible.any(), added, lambda state: state, state), None

        first = tuple(jnp.full((*batch, row_size, width), value, dtype) for width, value, dtype in start)
        return jax.lax.scan(step, first, (jnp.arange(column_count), {**by_column, **own_by_column}))[0]

    def joined(blocks):
        return jnp.moveaxis(blocks, 0, -3).reshape(*batch, -1, blocks.shape[-1])[..., :queries, :]

    return tuple(map(joined, jax.lax.map(of_rows, (jnp.arange(row_count), by_row))))


def cudnn_attention(
    query: Float[Array, "*batch_q T K"],
    key: Float[Array, "*batch_k S K"],
    value: Float[Array, "*batch_k S V"],
    mask: Bool[Array, "..."] | None,
    offset: Offset,
    lengths: Int[Array, "..."] | None,
    factor: float,
    unsupported: dict[str, bool],
) -> Float[Array, "*batch T V"]:
    """Compute the output with the cuDNN kernel of `jax.nn.dot_product_attention`.

    It is untested on hardware: no GPU was available to us. `python -m benchmarks.accelerator` tests it on a GPU.

    `unsupported` maps the description of a feature that cuDNN lacks to True if the caller uses this feature.

    Raises:
        ValueError: the kernel does not support the shapes, the dtype, the backend or a feature.
    """
    *lead, queries, width = query.shape
    keys, kinds = key.shape[-2], {x.dtype.name for x in (query, key, value)}
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if query.ndim == key.ndim == value.ndim == 4:  # add an axis of groups, with one query head per key head
        query, key, value = (x[:, :, None] for x in (query, key, value))
        mask, lengths = (x if x is None or x.ndim < 3 else x[..., None, :, :] for x in (mask, lengths))
    fitting = (*query.shape[:2], 1, keys, width)
    fit = query.ndim == 5 and key.shape == value.shape == fitting
    half = kinds in ({"float16"}, {"bfloat16"})
    unsupported = unsupported | {
        f"the shapes {shapes}, only [B, H, T, K], [B, H, S, K], [B, H, S, K]": not fit,
        f"the dtype {', '.join(sorted(kinds))}, only float16 or bfloat16": not half,
        f"the head width {width}, only multiples of 8 up to 256": width % 8 > 0 or width > 256,
        f"a mask over an odd number of queries or keys, got {queries} and {keys}": mask is not None
        and (queries % 2 > 0 or keys % 2 > 0),
        "key_lengths that differ between heads": lengths is not None and math.prod(lengths.shape[-4:]) > 1,
        f"the backend {jax.default_backend()!r}, only 'gpu'": jax.default_backend() != "gpu",
    }
    for what, used in unsupported.items():
        if used:
            raise ValueError(f"implementation 'cudnn' does not support {what}. Use implementation='auto'")

    # XLA fuses this with the reductions over the keys below, so no array [..., T, S] is stored.
    conditions = _conditions(mask, None, offset, lengths, jnp.arange(queries)[:, None], jnp.arange(keys))
    rows = None
    if conditions:
        visible = reduce(jnp.logical_and, conditions)
        key, value, finite = _without_nan(key, value)
        rows = visible.any(-1, keepdims=True), (visible & ~finite[..., None, :]).any(-1, keepdims=True)
    if mask is not None:
        mask = mask.reshape((1,) * (5 - mask.ndim) + mask.shape)
        heads = (1, 1) if mask.shape[1] == mask.shape[2] == 1 else query.shape[1:3]
        mask = jnp.broadcast_to(mask, (mask.shape[0], *heads, queries, keys))
        mask = rearrange(mask, "b h g t s -> b (h g) t s")
    if lengths is not None:
        # The kernel would divide by 0 without any key. Rows without a visible key are set to 0 below.
        lengths = jnp.broadcast_to(jnp.maximum(lengths, 1).reshape(-1), query.shape[0]).astype(jnp.int32)
    output = jax.nn.dot_product_attention(
        rearrange(query, "b h g t k -> b t (h g) k"),
        rearrange(key, "b h 1 s k -> b s h k"),
        rearrange(value, "b h 1 s k -> b s h k"),
        mask=mask,
        scale=factor,
        is_causal=offset is not None,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    output = rearrange(output, "b t (h g) v -> b h g t v", h=fitting[1])
    if rows is not None:
        any_visible, nan_rows = rows
        output = jnp.where(nan_rows, jnp.nan, jnp.where(any_visible, output, 0))
    return output.reshape(*lead, queries, width)


def _conditions(mask, bias, offset, lengths, rows, columns) -> list[Array]:
    """Return masks that must all be True where a query (index in `rows` [T, 1]) attends to a key (in `columns` [S])."""
    conditions = []
    if mask is not None:
        conditions.append(mask)
    if bias is not None:
        conditions.append(bias != -jnp.inf)
    if lengths is not None:
        conditions.append(columns < lengths)
    if offset is not None:
        conditions.append(columns <= rows + offset)
    return conditions


def _without_nan(key, value) -> tuple[Array, Array, Array]:
    """Replace keys and values by 0 at each position where one of them has NaN or infinity: (key, value, finite).

    This is necessary because 0 · NaN is NaN, forward and backward: a masked NaN would still reach the products. The
    callers write NaN to the output of every query that attends to such a position.
    """
    finite = jnp.isfinite(key).all(-1) & jnp.isfinite(value).all(-1)
    return jnp.where(finite[..., None], key, 0), jnp.where(finite[..., None], value, 0), finite


def _exact_dtype(query, key, value):
    """Return the dtype of logits and sums: float32, or the dtype of the inputs if that is wider."""
    return jnp.promote_types(jnp.result_type(query, key, value), jnp.float32)


def _dropout(key, rate: float, weights):
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, weights.shape), weights / (1.0 - rate), 0)


def _blocks(
    arrays: Mapping[str, Array | None], axis: int, size: int
) -> tuple[dict[str, Array], dict[str, Array | None]]:
    """Split arrays into blocks of `size` along `axis`: return (split arrays, arrays that broadcast along `axis`).

    The blocks become the first axis. The last block is padded with zeros.
    """
    split, whole = {}, {}
    for name, x in arrays.items():
        if x is None or x.ndim < -axis or x.shape[axis] == 1:
            whole[name] = x
            continue
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, -x.shape[axis] % size)
        x = jnp.pad(x, padding)
        before, after = x.shape[: x.ndim + axis], x.shape[x.ndim + axis + 1 :]
        split[name] = jnp.moveaxis(x.reshape(*before, -1, size, *after), axis - 1, 0)
    return split, whole
