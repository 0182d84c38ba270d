"""Prior distributions of an adversarial autoencoder's codes.

Makhzani et al. 2015, "Adversarial Autoencoders", section 2.2 <https://arxiv.org/abs/1511.05644>.

Each prior maps uniform points of the unit square (or cube) to codes. The first coordinate runs through the K classes
in order, so each class has its own region of the prior with probability 1/K.

Axis names: B batch, Z latent size.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int, Key

Prior = Literal["gaussian", "mixture", "swiss_roll", "uniform"]

# Uniform numbers are clipped to [_MARGIN, 1 - _MARGIN]. So normal quantiles are at most 4.8 standard deviations.
_MARGIN = 1e-6
# Mixture: standard deviations along the radius and across it, divided by the distance of the centers from the origin.
_ALONG, _ACROSS = 0.25, 0.06
# Swiss roll: number of half turns; standard deviation of the thickness, divided by the outer radius.
_HALF_TURNS, _THICKNESS = 4.0, 0.03


def sample_prior(
    key: Key[Array, ""],
    prior: Prior,
    count: int,
    size: int,
    scale: float = 1.0,
    classes: Int[Array, "B"] | None = None,
    num_classes: int = 10,
) -> Float[Array, "B Z"]:
    """Draw `count` codes from a prior.

    Args:
        key: random key.
        prior: name of the prior.
        count: B, number of codes.
        size: Z, numbers per code; must be 2 for the mixture and the Swiss roll.
        scale: size of the prior, as in `place_codes`.
        classes: class of each code [B]: the code is drawn from the region of this class. -1: from the whole prior.
            None: all codes are drawn from the whole prior.
        num_classes: K, number of classes.

    Returns:
        Codes [B, Z].

    Raises:
        ValueError: the prior does not exist for this `size`, or `scale` or `num_classes` is not above 0.
    """
    square = jax.random.uniform(key, (count, size))
    if classes is not None:
        part = (classes + square[:, 0]) / num_classes
        square = square.at[:, 0].set(jnp.where(classes < 0, square[:, 0], part))
    return place_codes(square, prior, scale, num_classes)


def place_codes(
    square: Float[Array, "B Z"], prior: Prior, scale: float = 1.0, num_classes: int = 10
) -> Float[Array, "B Z"]:
    """Map points of the unit square or cube to codes. Uniformly distributed points become samples of the prior.

    - "gaussian": a normal distribution with standard deviation `scale`. Classes are stripes, ordered along the first
      axis.
    - "uniform": a square (or cube) around the origin with sides of length 2 · `scale`. Classes are stripes, ordered
      along the first axis.
    - "mixture": K Gaussians on a circle with radius `scale`, elongated along the radius. Each class is one Gaussian.
    - "swiss_roll": a spiral that ends at radius `scale`. The classes are consecutive parts, from the inside out.

    Args:
        square: points [B, Z] with coordinates from 0 to 1; Z must be 2 for the mixture and the Swiss roll.
        prior: name of the prior.
        scale: size of the prior, as listed above.
        num_classes: K, number of classes; only the mixture uses it.

    Returns:
        Codes [B, Z].

    Raises:
        ValueError: the prior does not exist for this Z, or `scale` or `num_classes` is not above 0.
    """
    check_prior(prior, square.shape[-1], scale, num_classes)
    inside = jnp.clip(square, _MARGIN, 1.0 - _MARGIN)
    if prior == "gaussian":
        return scale * ndtri(inside)
    if prior == "uniform":
        return scale * (2.0 * square - 1.0)
    along, across = inside[:, 0], ndtri(inside[:, 1])
    if prior == "mixture":
        component = jnp.floor(along * num_classes)
        angle = 2.0 * jnp.pi * component / num_classes
        radius = 1.0 + _ALONG * across
        # Within its component the first coordinate is uniform. Its normal quantile is the second normal number.
        offset = _ACROSS * ndtri(jnp.clip(along * num_classes - component, 1e-4, 1.0 - 1e-4))
    else:
        # With the square root, the codes are distributed evenly along the length of the roll.
        angle = jnp.pi * _HALF_TURNS * jnp.sqrt(along)
        radius = jnp.sqrt(along) + _THICKNESS * across
        offset = jnp.zeros_like(radius)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return scale * jnp.stack([radius * cos - offset * sin, radius * sin + offset * cos], axis=-1)


def check_prior(prior: Prior, size: int, scale: float, num_classes: int) -> None:
    """Raise a ValueError if the prior does not exist for this `size`, or `scale` or `num_classes` is not above 0."""
    if prior not in get_args(Prior):
        raise ValueError(f"prior must be one of {', '.join(get_args(Prior))}, got {prior!r}")
    if size != 2 and prior in ("mixture", "swiss_roll"):
        raise ValueError(f"latent_size must be 2 for the prior {prior}, got {size}")
    if scale <= 0.0 or num_classes < 1:
        raise ValueError(f"prior_scale and prior_classes must be above 0, got {scale} and {num_classes}")
