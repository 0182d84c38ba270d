"""What the measures ask of their arrays, and the distances that several of them need."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Anywhere = np.ndarray | Array
"""A measure takes arrays from the host and from any device."""


def points(name: str, values: Anywhere, least: int = 1) -> Float[np.ndarray, "N D"]:
    """`values` on the host, once it is clear that they are points: finite floats [N, D] with N >= `least`.

    They are float32, or float64 if they were.

    Raises:
        ValueError: they are not; the text calls them `name`.
    """
    if values.ndim != 2 or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{name}: wanted floats [N, D], got {values.dtype} {list(values.shape)}")
    if len(values) < least:
        raise ValueError(f"{name}: wanted at least {least} of them, got {len(values)}")
    host = np.asarray(values, np.promote_types(values.dtype, np.float32))
    if bad := np.count_nonzero(~np.isfinite(host).all(axis=1)):
        raise ValueError(f"{name}: wanted finite numbers, got {bad} of {len(host)} rows with NaN or infinity")
    return host


def same_width(**named: Float[np.ndarray, "N D"]) -> None:
    """ValueError unless all arrays have as many columns."""
    if len({values.shape[1] for values in named.values()}) > 1:
        got = ", ".join(f"{name} {list(values.shape)}" for name, values in named.items())
        raise ValueError(f"wanted as many columns in each, got {got}")


def classes(name: str, labels: Int[Anywhere, "N"], count: int) -> Int[np.ndarray, "N"]:
    """`labels` on the host, once it is clear that they are `count` integers.

    Raises:
        ValueError: they are not; the text calls them `name`.
    """
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name}: wanted integers [{count}], got {labels.dtype} {list(labels.shape)}")
    return np.asarray(labels)


def squared_distances(point: Float[Array, "D"], others: Float[Array, "M D"]) -> Float[Array, "M"]:
    """|point - other|² as |p|² + |o|² - 2 p·o, so that under vmap it is one matrix product.

    The sum cancels: its error is that of rounding |p|² + |o|², so points should lie about the origin. The product is
    in full float32 also where the default is less (TF32 on a GPU), as Parzen's kernels divide its error by 0.02.
    """
    product = jnp.matmul(others, point, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum((point**2).sum() + (others**2).sum(axis=1) - 2 * product, 0)


def rows_at_once(others: int) -> int:
    """Points to take at a time against `others` so that a block of distances has 2^22 entries (16 MiB) at most."""
    return max(1, 2**22 // others)
