"""The implementations of attention on the device, forward and backward, against the plain formula on the CPU.

"cudnn" runs only on an NVIDIA GPU. It is untested on hardware until this part has passed on one.
Float32 inputs are computed at matmul precision "highest". The bound on the difference is 16 rounding errors of the
inputs' dtype, and at least 1e-4. The difference is the norm of the error, relative to the norm of the expected array.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import w2jax.kernels.attention
from benchmarks.accelerator.record import Figures, Recorder, Setting, Wrong
from benchmarks.accelerator.values import difference, weights_like
from w2jax import scaled_dot_product_attention

B, H, G, K = 3, 2, 4, 64  # examples, heads, heads in a group, width of a head
BOUNDS = {"float32": 1e-4, "bfloat16": 16 * 2.0**-9, "float16": 16 * 2.0**-11}
CASES = ("no mask", "mask", "key lengths", "causal", "grouped heads")

Attend = Callable[..., Any]
"""(query, key, value, mask, key_lengths, causal) -> the output."""


def run(job: str, recorder: Recorder, setting: Setting) -> None:
    queries, keys = (48, 80) if setting.quick or setting.small else (640, 1152)
    if keys < w2jax.kernels.attention.KEY_BLOCK:  # so that "chunked" has several blocks
        w2jax.kernels.attention.QUERY_BLOCK = w2jax.kernels.attention.KEY_BLOCK = 32
    for dtype, case, implementation in product(BOUNDS, CASES, ("xla", "chunked")):
        attend = partial(attend_by, implementation)
        recorder.row(f"{implementation}, {case}, {dtype}", partial(check, attend, case, dtype, queries, keys))
    for dtype, case in product(BOUNDS, CASES):  # the last, because the kernel may end the process
        if not setting.is_nvidia:
            recorder.skip(f"cudnn, {case}, {dtype}", "needs an NVIDIA GPU")
        elif dtype == "float32":
            recorder.skip(f"cudnn, {case}, {dtype}", "cuDNN supports only float16 and bfloat16")
        else:
            attend = partial(attend_by, "cudnn")
            recorder.row(f"cudnn, {case}, {dtype}", partial(check, attend, case, dtype, queries, keys))


def attend_by(implementation: Any, query, key, value, mask, key_lengths, causal):
    return scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        key_lengths=key_lengths,
        causal=causal,
        return_weights=False,
        implementation=implementation,
    )[0]


def check(attend: Attend, case: str, dtype: str, queries: int, keys: int) -> Figures:
    """Checks the output and the gradients of queries, keys and values. Raises Wrong if one is not as documented."""
    rng = np.random.default_rng(0)
    groups, ones = ((G,), (1,)) if case == "grouped heads" else ((), ())
    shapes = (B, H, *groups, queries, K), (B, H, *ones, keys, K), (B, H, *ones, keys, K)
    arrays = tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    options: dict[str, Any] = {"mask": None, "key_lengths": None, "causal": case == "causal"}
    visible = np.ones((B, *((1,) * (1 + len(groups))), queries, keys), bool)
    if case == "mask":  # example 1 has a query without any key, and no query attends to key 7
        visible = rng.random(visible.shape) < 0.7
        visible[1, ..., 2, :] = visible[..., 7] = False
        options["mask"] = jnp.asarray(visible)
    if case in ("key lengths", "grouped heads"):  # example 1 has no key
        lengths = np.array([keys, 0, keys // 3]).reshape(B, 1, *ones)
        visible &= np.arange(keys) < lengths[..., None, None]
        options["key_lengths"] = jnp.asarray(lengths)
    if options["causal"]:
        visible &= np.tri(queries, keys, dtype=bool)

    @jax.jit
    def compute(*arrays):
        out, pull = jax.vjp(partial(attend, **options), *arrays)
        return out, *pull(jnp.asarray(weights_like(out), out.dtype))

    def computed(*arrays) -> list[np.ndarray]:
        with jax.default_matmul_precision("highest"):
            return [np.asarray(x, np.float32) for x in compute(*arrays)]

    bound, found = BOUNDS[dtype], computed(*arrays)
    differences = [difference(*pair) for pair in zip(found, plain(visible, *arrays), strict=True)]
    demand(max(differences) <= bound, f"output, gradients of query, key, value differ by {differences}, bound {bound}")
    unseen = np.broadcast_to(~visible.any(-1), found[0].shape[:-1])
    demand(not found[0][unseen].any() and not found[1][unseen].any(), "queries without any key must give 0")
    for what, unchanged, changed in with_nan(visible, arrays):
        same = [difference(x[unchanged], y[unchanged]) <= bound for x, y in zip(computed(*changed), found, strict=True)]
        demand(all(same), f"a NaN {what} must not change other results (output, query, key, value: {same})")
    return {"output": differences[0], "gradients": max(differences[1:]), "bound": bound}


def with_nan(visible: np.ndarray, arrays: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields (where a NaN is, index of the results that must not change, queries, keys and values with the NaN)."""
    query, key, value = arrays
    hidden: Any = ~np.any(visible, axis=-2, keepdims=True).swapaxes(-1, -2)  # [B, 1 …, S, 1]
    if hidden.any():
        hidden = jnp.asarray(hidden if key.ndim == hidden.ndim else hidden[:, None])
        yield "in a masked key", ..., (query, *(jnp.where(hidden, jnp.nan, x) for x in (key, value)))
    yield "in example 0", slice(1, None), (query, key.at[0].set(jnp.nan), value.at[0].set(jnp.nan))


def plain(visible: np.ndarray, *arrays) -> list[np.ndarray]:
    """Returns the output and the gradients by the formula, in float32 on the CPU."""

    def formula(query, key, value):
        logits = jnp.where(visible, query @ key.swapaxes(-1, -2) / np.sqrt(K), -1e30)
        return jnp.where(visible, jax.nn.softmax(logits), 0) @ value

    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        out, pull = jax.vjp(formula, *(jnp.asarray(np.asarray(x, np.float32)) for x in arrays))
        return [np.asarray(x) for x in (out, *pull(jnp.asarray(weights_like(out))))]


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)
