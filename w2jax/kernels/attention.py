"""Three implementations of attention: the plain formula, blocks with an online softmax, and cuDNN.

All three return the same output, up to rounding. `scaled_dot_product_attention` checks the arguments and calls them:

- `query` [..., T, K], `key` [..., S, K] and `value` [..., S, V].
- `mask` and `bias`: broadcastable to [..., T, S], or None.
- `offset`: query t attends to keys up to t + offset. None: to all keys.
- `lengths` [..., 1, 1]: number of valid keys. None: all keys are valid.
- `factor`: multiplies the logits.
- `dropout`: rate on the weights, drawn from `dropout_key`.
"""

import math
from collections.abc import Mapping
from functools import partial, reduce

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array

QUERY_BLOCK, KEY_BLOCK = 512, 512  # queries and keys in a block of `chunked_attention`
LOWEST = float(jnp.finfo(jnp.float32).min)  # used instead of −inf, because −inf − (−inf) is NaN


def xla_attention(query, key, value, mask, bias, offset, lengths, factor, dropout, dropout_key):
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
    dropped = _dropout(dropout_key, dropout, weights) if dropout > 0.0 else weights
    output = jnp.einsum("...ts,...sv->...tv", dropped.astype(value.dtype), value)
    if nan_rows is not None:
        output, weights = jnp.where(nan_rows, jnp.nan, output), jnp.where(nan_rows, jnp.nan, weights)
    return output, weights


def chunked_attention(query, key, value, mask, bias, offset, lengths, factor, dropout, dropout_key):
    """Compute the output in a loop over blocks of queries, with an inner loop over blocks of keys.

    The inner loop carries the state of an online softmax: (largest logit so far, sum of exponentials, weighted sum of
    values). Both sums are relative to the largest logit (Milakov & Gimelshein 2018, "Online normalizer calculation for
    softmax" <https://arxiv.org/abs/1805.02867>). The backward pass recomputes each block instead of storing it (Rabe &
    Staats 2021, "Self-attention Does Not Need O(n²) Memory" <https://arxiv.org/abs/2112.05682>).
    """
    queries, keys, width = query.shape[-2], key.shape[-2], value.shape[-1]
    dtype, exact = value.dtype, _exact_dtype(query, key, value)
    lengths = keys if lengths is None else lengths  # masks the padding of the last block
    shapes = [jnp.shape(x)[:-2] for x in (query, key, value, mask, bias, lengths) if x is not None]
    batch = jnp.broadcast_shapes(*shapes)

    key, value, finite = _without_nan(key, value)
    row_size, column_size = min(QUERY_BLOCK, queries), min(KEY_BLOCK, keys)
    row_count, column_count = -(-queries // row_size), -(-keys // column_size)
    by_row, for_all_rows = _blocks({"query": query * factor, "mask": mask, "bias": bias}, -2, row_size)
    key_axes = {"key": jnp.swapaxes(key, -1, -2), "value": jnp.swapaxes(value, -1, -2), "finite": finite[..., None, :]}
    by_column, for_all_columns = _blocks(key_axes, -1, column_size)

    # prevent_cse is not needed in a loop, because XLA cannot merge the recomputation with the forward pass there.
    @partial(jax.checkpoint, prevent_cse=False)
    def attend_from(block):
        i, own = block
        query, mask, bias = (({**for_all_rows, **own})[name] for name in ("query", "mask", "bias"))
        rows = i * row_size + jnp.arange(row_size)[:, None]
        own_by_column, own_for_all_columns = _blocks({"mask": mask, "bias": bias}, -1, column_size)

        @partial(jax.checkpoint, prevent_cse=False)
        def attend_to(state, block):
            j, own = block
            x = {**for_all_columns, **own_for_all_columns, **own}
            columns = j * column_size + jnp.arange(column_size)
            visible = reduce(jnp.logical_and, _conditions(x["mask"], x["bias"], offset, lengths, rows, columns))

            def add_block(state):
                top, total, output, nan_rows = state
                logits = jnp.einsum("...tk,...ks->...ts", query, x["key"], preferred_element_type=exact)
                if x["bias"] is not None:
                    logits = logits + x["bias"].astype(exact)
                logits = jnp.where(visible, logits, LOWEST)
                # new_top cancels out in the final result, so its gradient is not needed.
                new_top = jnp.maximum(top, jax.lax.stop_gradient(logits).max(-1, keepdims=True))
                weights = jnp.where(visible, jnp.exp(logits - new_top), 0)
                shrink = jnp.exp(top - new_top)
                total = total * shrink + weights.sum(-1, keepdims=True)
                if dropout > 0.0:
                    own_key = jax.random.fold_in(jax.random.fold_in(dropout_key, i), j)
                    weights = _dropout(own_key, dropout, weights)
                added = jnp.einsum(
                    "...ts,...vs->...tv", weights.astype(dtype), x["value"], preferred_element_type=exact
                )
                nan_rows = nan_rows | (visible & ~x["finite"]).any(-1, keepdims=True)
                return new_top, total, output * shrink + added, nan_rows

            return jax.lax.cond(visible.any(), add_block, lambda state: state, state), None

        one = (*batch, row_size, 1)
        zeros = partial(jnp.zeros, dtype=exact)
        start = zeros(one) + LOWEST, zeros(one), zeros((*batch, row_size, width)), jnp.zeros(one, bool)
        blocks = jnp.arange(column_count), {**by_column, **own_by_column}
        (_, total, output, nan_rows), _ = jax.lax.scan(attend_to, start, blocks)
        output = output / jnp.where(total == 0, 1, total)
        return jnp.where(nan_rows, jnp.nan, output).astype(dtype)

    output = jax.lax.map(attend_from, (jnp.arange(row_count), by_row))
    output = jnp.moveaxis(output, 0, -3).reshape(*batch, row_count * row_size, width)
    return output[..., :queries, :]


def cudnn_attention(query, key, value, mask, offset, lengths, factor, unsupported: dict[str, bool]):
    """Compute the output with the cuDNN kernel of `jax.nn.dot_product_attention`.

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
