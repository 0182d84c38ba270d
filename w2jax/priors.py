"""Priors of an adversarial autoencoder's codes (Makhzani et al. 2015, arXiv 1511.05644, section 2.2).

Each is a map from the unit square (or cube) whose first coordinate runs through the K classes in order, so that every
class has its own part of the prior, with 1/K of the mass. Axis names: B batch, Z latent size.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int, Key

Prior = Literal["gaussian", "mixture", "swiss_roll", "uniform"]

# Uniform numbers are clipped by this much, so that normal quantiles are finite: at most 4.8 standard deviations.
_MARGIN = 1e-6
# Of the mixture, relative to the distance of its centres from the origin: along the radius, and across it.
_ALONG, _ACROSS = 0.25, 0.06
# Of the roll, relative to its outer radius: half turns, and the standard deviation of its thickness.
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
    """`count` codes of `size` numbers.

    Args:
        key: the random key.
        prior: its name.
        count: B.
        size: Z; must be 2 for the mixture and the Swiss roll.
        scale: see `place_codes`.
        classes: the class of each code, which is drawn from that class's part of the prior. -1, or None for all codes,
            draws from the whole prior.
        num_classes: K.

    Raises:
        ValueError: if the prior does not exist in this size.
    """
    square = jax.random.uniform(key, (count, size))
    if classes is not None:
        part = (classes + square[:, 0]) / num_classes
        square = square.at[:, 0].set(jnp.where(classes < 0, square[:, 0], part))
    return place_codes(square, prior, scale, num_classes)


def place_codes(
    square: Float[Array, "B Z"], prior: Prior, scale: float = 1.0, num_classes: int = 10
) -> Float[Array, "B Z"]:
    """Maps points of the unit square or cube to codes; uniformly distributed points become a sample of the prior.

    "gaussian": `scale` is the standard deviation; classes are stripes across the first axis.
    "uniform": `scale` is half the side of a square around the origin; classes are stripes across the first axis.
    "mixture": K Gaussians, elongated along the radius, on a circle of radius `scale`; one for each class.
    "swiss_roll": a spiral that ends at radius `scale`; classes follow each other from the inside out.

    Raises:
        ValueError: if the prior does not exist in this size.
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
        # The rest of the first coordinate, evenly spread within the component, is a second normal number.
        offset = _ACROSS * ndtri(jnp.clip(along * num_classes - component, 1e-4, 1.0 - 1e-4))
    else:
        # The square root spreads the codes evenly over the length of the roll.
        angle = jnp.pi * _HALF_TURNS * jnp.sqrt(along)
        radius = jnp.sqrt(along) + _THICKNESS * across
        offset = jnp.zeros_like(radius)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return scale * jnp.stack([radius * cos - offset * sin, radius * sin + offset * cos], axis=-1)


def check_prior(prior: Prior, size: int, scale: float, num_classes: int) -> None:
    """Raises a ValueError if the prior does not exist in this size, or scale or num_classes is not above 0."""
    if prior not in get_args(Prior):
        raise ValueError(f"prior must be one of {', '.join(get_args(Prior))}, got {prior!r}")
    if size != 2 and prior in ("mixture", "swiss_roll"):
        raise ValueError(f"the prior {prior} lies in a plane: latent_size must be 2, got {size}")
    if scale <= 0.0 or num_classes < 1:
        raise ValueError(f"prior_scale and prior_classes must be above 0, got {scale} and {num_classes}")
