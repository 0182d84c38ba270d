"""Maximum mean discrepancy (Gretton et al. 2012, "A Kernel Two-Sample Test"): how far codes are from their prior."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from train.evaluation.arrays import HostOrDevice, check_points, check_same_width, rows_per_block, squared_distances

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Of the kernels, in units of the mean squared distance of two points of the prior (as the code of WAE has them)."""


def mmd(x: Float[HostOrDevice, "N Z"], y: Float[HostOrDevice, "M Z"], prior_std: float = 1.0) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of two distributions, from a set of points of each.

    Gretton's equation 3 with the sum of the inverse multiquadratic kernels C / (C + |a - b|²) of Tolstikhin et al.
    2018, "Wasserstein Auto-Encoders", section 4: C = s 2 Z prior_std² for s in `SCALES`. Its mean is 0 for equal
    distributions, so it is often negative; its maximum is 14.

    Args:
        x: points of one distribution, such as codes.
        y: points of the other, such as draws from the prior.
        prior_std: standard deviation of each coordinate of the prior.

    Raises:
        ValueError: if x or y are not at least 2 points, have another number of coordinates than the other, or
            `prior_std` is not positive.
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
    """Σ_ij of the kernels of x_i and y_j, over i ≠ j if `distinct`; rows in float32, their sum in float64."""
    centre = y.mean(axis=0)
    rows = _row_sums(x - centre, y - centre, constants, distinct, rows_per_block(len(y)))
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
