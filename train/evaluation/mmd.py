"""Maximum mean discrepancy between codes and their prior (Gretton et al. 2012, "A Kernel Two-Sample Test")."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from train.evaluation.arrays import HostOrDevice, check_points, check_same_width, rows_per_block, squared_distances

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Scales of the kernels, in units of the mean squared distance of two prior samples, as in the code of WAE."""


def mmd(x: Float[HostOrDevice, "N Z"], y: Float[HostOrDevice, "M Z"], prior_std: float = 1.0) -> float:
    """Estimates the squared maximum mean discrepancy of two distributions from samples of each, without bias.

    This is Gretton's equation 3. The kernel is the sum of the inverse multiquadratic kernels C / (C + |a - b|²) of
    Tolstikhin et al. 2018, "Wasserstein Auto-Encoders", section 4, with C = s 2 Z prior_std² for s in `SCALES`. For
    equal distributions the mean of the estimate is 0, so it is often negative. Its maximum is 14.

    Args:
        x: samples of one distribution, such as codes.
        y: samples of the other distribution, such as the prior.
        prior_std: standard deviation of each coordinate of the prior.

    Raises:
        ValueError: x or y has fewer than 2 points, their numbers of coordinates differ, or `prior_std` is not positive.
    """
    if not prior_std > 0:
        raise ValueError(f"prior_std must be positive, got {prior_std}")
    x, y = check_points("x", x, minimum=2), check_points("y", y, minimum=2)
    check_same_width(x=x, y=y)
    constants = jnp.array(SCALES) * 2 * x.shape[1] * prior_std**2
    among_x = _kernel_sum(x, x, constants, distinct=True) / (len(x) * (len(x) - 1))
    among_y = _kernel_sum(y, y, constants, distinct=True) / (len(y) * (len(y) - 1))
    between = _kernel_sum(x, y, constants, distinct=False) / (len(x) * len(y))
    return among_x + among_y - 2 * between


def _kernel_sum(
    x: Float[HostOrDevice, "N Z"], y: Float[HostOrDevice, "M Z"], constants: Float[Array, "S"], distinct: bool
) -> float:
    """Sums the kernels of x_i and y_j over all i and j, or over i ≠ j if `distinct`.

    Each row is summed in float32, and the total in float64.
    """
    center = y.mean(axis=0)
    rows = _row_sums(x - center, y - center, constants, distinct, rows_per_block(len(y)))
    return float(np.asarray(rows).sum(dtype=np.float64))


@partial(jax.jit, static_argnames="batch_size")
def _row_sums(
    x: Float[Array, "N Z"], y: Float[Array, "M Z"], constants: Float[Array, "S"], distinct: bool, batch_size: int
) -> Float[Array, "N"]:
    def row(numbered: tuple[Array, Array]) -> Float[Array, ""]:
        index, point = numbered
        distances = squared_distances(point, y)
        kernels = sum(constant / (constant + distances) for constant in constants)
        return jnp.where(distinct & (jnp.arange(len(y)) == index), 0, kernels).sum()

    return jax.lax.map(row, (jnp.arange(len(x)), x), batch_size=batch_size)
