"""Which part of a photograph is shown: boxes (left, top, right, bottom) in its pixels, not rounded."""

import numpy as np

Box = tuple[float, float, float, float]

_TRIES = 10
_STRETCH = 4 / 3  # The most that a random box is wider or higher than the target's proportions.
_CENTRAL = 0.875

UNIFORMS_PER_BOX = 2 + 2 * _TRIES
"""Uniform random numbers that determine a random box."""


def central_box(width: int, height: int, size: tuple[int, int]) -> Box:
    """The middle of an image: 0.875 of the largest box in the proportions of `size`, (h, w)."""
    scale = _CENTRAL * min(height / size[0], width / size[1])
    high, wide = size[0] * scale, size[1] * scale
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def random_box(width: int, height: int, size: tuple[int, int], min_area: float, uniforms: np.ndarray) -> Box:
    """A random part of an image (Szegedy et al. 2015, section 6).

    Its fraction of the area is uniform from `min_area` to 1. Its proportions are those of `size`, times a factor
    log-uniform from 3/4 to 4/3. Its place is uniform. The first of ten such boxes that fits is taken; if none fits,
    the largest box that the proportions allow.

    Args:
        width: of the image.
        height: of the image.
        size: (h, w) that the box is resized to.
        min_area: fraction of the image's area.
        uniforms: float64 [UNIFORMS_PER_BOX] in [0, 1): the place, then the tries; the box is a function of them.
    """
    areas, stretches = np.split(uniforms[2:], 2)
    area = width * height * (min_area + (1 - min_area) * areas)
    proportions = size[1] / size[0]
    ratio = proportions * _STRETCH ** (2 * stretches - 1)
    wide, high = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (wide <= width) & (high <= height)
    if fits.any():
        first = fits.argmax()
        wide, high = float(wide[first]), float(high[first])
    else:
        ratio = min(max(width / height, proportions / _STRETCH), proportions * _STRETCH)
        wide, high = min(width, height * ratio), min(height, width / ratio)
    left, top = float(uniforms[0]) * (width - wide), float(uniforms[1]) * (height - high)
    return left, top, left + wide, top + high
