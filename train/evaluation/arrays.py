"""Checks the input arrays of metrics, and computes distances that several metrics need."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

HostOrDevice = np.ndarray | Array
"""An array in host memory or on any device."""


def check_points(name: str, values: HostOrDevice, minimum: int = 1) -> Float[np.ndarray, "N D"]:
    """Returns points [N, D] as a host array. Float64 stays float64; other floats become float32.

    Raises:
        ValueError: `values` are not finite floats [N, D] with N >= `minimum`. The message uses `name` for them.
    """
    if values.ndim != 2 or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats [N, D], got {values.dtype} {list(values.shape)}")
    if len(values) < minimum:
        raise ValueError(f"{name} must have {minimum} or more rows, got {len(values)}")
    host = np.asarray(values, np.promote_types(values.dtype, np.float32))
    if bad := np.count_nonzero(~np.isfinite(host).all(axis=1)):
        raise ValueError(f"{name} must be finite, got NaN or infinity in {bad} of {len(host)} rows")
    return host


def check_same_width(**named: Float[np.ndarray, "N D"]) -> None:
    """Raises a ValueError unless all arrays have the same number of columns."""
    if len({values.shape[1] for values in named.values()}) > 1:
        got = ", ".join(f"{name} {list(values.shape)}" for name, values in named.items())
        raise ValueError(f"the number of columns must be the same, got {got}")


def check_labels(name: str, labels: Int[HostOrDevice, "N"], count: int) -> Int[np.ndarray, "N"]:
    """Returns labels as a host array.

    Raises:
        ValueError: `labels` are not `count` integers. The message uses `name` for them.
    """
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers [{count}], got {labels.dtype} {list(labels.shape)}")
    return np.asarray(labels)


def squared_distances(point: Float[Array, "D"], others: Float[Array, "M D"]) -> Float[Array, "M"]:
    """Computes |point - other|² as |p|² + |o|² - 2 p·o, which is one matrix product under vmap.

    The terms cancel, so the error is as large as the rounding error of |p|² + |o|². Center the points at the origin to
    keep it small. The product always uses full float32, even if the default precision is lower (TF32 on a GPU), because
    Parzen's kernels divide its error by 0.02.
    """
    product = jnp.matmul(others, point, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum((point**2).sum() + (others**2).sum(axis=1) - 2 * product, 0)


def rows_per_block(others: int) -> int:
    """Returns how many points have at most 2^22 distances (16 MiB) to `others` other points."""
    return max(1, 2**22 // others)
