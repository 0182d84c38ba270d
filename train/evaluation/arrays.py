"""Checks of the arrays that metrics take, and the distances that several metrics need."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

HostOrDevice = np.ndarray | Array
"""An array of the host or of any device."""


def check_points(name: str, values: HostOrDevice, minimum: int = 1) -> Float[np.ndarray, "N D"]:
    """Points [N, D] as an array of the host, float64 if they are, else float32.

    Raises:
        ValueError: if they are not finite floats [N, D] with N >= `minimum`. The message calls them `name`.
    """
    if values.ndim != 2 or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats [N, D], got {values.dtype} {list(values.shape)}")
    if len(values) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {len(values)}")
    host = np.asarray(values, np.promote_types(values.dtype, np.float32))
    if bad := np.count_nonzero(~np.isfinite(host).all(axis=1)):
        raise ValueError(f"{name} must be finite, got NaN or infinity in {bad} of {len(host)} rows")
    return host


def check_same_width(**named: Float[np.ndarray, "N D"]) -> None:
    """ValueError unless all arrays have the same number of columns."""
    if len({values.shape[1] for values in named.values()}) > 1:
        got = ", ".join(f"{name} {list(values.shape)}" for name, values in named.items())
        raise ValueError(f"the number of columns must be the same, got {got}")


def check_labels(name: str, labels: Int[HostOrDevice, "N"], count: int) -> Int[np.ndarray, "N"]:
    """Labels as an array of the host.

    Raises:
        ValueError: if they are not `count` integers. The message calls them `name`.
    """
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers [{count}], got {labels.dtype} {list(labels.shape)}")
    return np.asarray(labels)


def squared_distances(point: Float[Array, "D"], others: Float[Array, "M D"]) -> Float[Array, "M"]:
    """|point - other|² as |p|² + |o|² - 2 p·o, which under vmap is one matrix product.

    The sum cancels, with an error as large as rounding |p|² + |o|²: points should be centred at the origin. The product
    is in full float32 also where the default is less (TF32 on a GPU), as Parzen's kernels divide its error by 0.02.
    """
    product = jnp.matmul(others, point, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum((point**2).sum() + (others**2).sum(axis=1) - 2 * product, 0)


def rows_per_block(others: int) -> int:
    """Number of points whose distances to `others` points fill at most 2^22 entries (16 MiB)."""
    return max(1, 2**22 // others)
