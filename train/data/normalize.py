"""Normalizes pixels as a model's weights need it (the option `normalize` of configs/vit.py)."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from train.process.errors import UserError
from w2jax.image_spec import CLIP, IMAGENET, ImageSpec
from w2jax.text import shorten

_HALF = (0.5,), (0.5,)
_NAMED = {
    "auto": _HALF,
    "half": _HALF,
    "none": ((0.0,), (1.0,)),
    "imagenet": IMAGENET,
    "clip": CLIP,
}


def mean_and_std(normalize: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the standard deviation of each channel. A single one is that of every channel.

    Args:
        normalize: the value of the option: a name, or the means followed by the deviations.

    Raises:
        UserError: it is neither.
    """
    if isinstance(normalize, str) and normalize in _NAMED:
        return _NAMED[normalize]
    if isinstance(normalize, tuple) and len(normalize) in (2, 6, 8) and all(map(_is_number, normalize)):
        mean, std = normalize[: len(normalize) // 2], normalize[len(normalize) // 2 :]
        if min(std) > 0:
            return mean, std
    raise UserError(
        f"--normalize must be {', '.join(_NAMED)}, or 2, 6 or 8 numbers: the mean of each channel, then the standard "
        f"deviation of each, above 0. Got {shorten(str(normalize))}"
    )


def normalize_like(spec: ImageSpec) -> str | tuple[float, ...]:
    """Returns the value of the option for the mean and standard deviation of `spec`."""
    values = spec.mean, spec.std
    if len(set(spec.mean)) == len(set(spec.std)) == 1:
        values = spec.mean[:1], spec.std[:1]
    names = {values: name for name, values in _NAMED.items()}  # "half" follows "auto"
    return names.get(values, (*values[0], *values[1]))


def input_channels(normalize: Any, channels: int) -> int:
    """Returns the number of channels of normalized images with `channels` channels.

    Raises:
        UserError: the option has values for another number of channels.
    """
    count = len(mean_and_std(normalize)[0])
    if count != channels and 1 not in (count, channels):
        raise UserError(
            f"--normalize must have values for {channels} channels, those of the dataset's images, got {count}. "
            "Set --normalize half or none, or pass the values"
        )
    return max(count, channels)


def normalized(images: Float[Array, "B h w C"], normalize: Any) -> Float[Array, "B h w D"]:
    """Returns images in [0, 1] minus the mean, divided by the standard deviation.

    A gray image becomes one of three channels if there are values for three: each gray value is used as R, G and B.
    """
    mean, std = mean_and_std(normalize)
    if (mean, std) == _HALF:
        return 2.0 * images - 1.0  # Older runs have this rounding, and resume bit for bit.
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
