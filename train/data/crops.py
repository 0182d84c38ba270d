"""Which part of a photograph is shown: boxes (left, top, right, bottom) in its pixels, not rounded."""

import numpy as np

Box = tuple[float, float, float, float]

_TRIES = 10
_STRETCH = 4 / 3  # How much wider or higher than the target a random box may be.
_CENTRAL = 0.875

DRAWS = 2 + 2 * _TRIES
"""Uniform numbers that a random box follows from."""


def central_box(width: int, height: int, size: tuple[int, int]) -> Box:
    """The middle of an image: 0.875 of the largest box in the proportions of `size`, (h, w)."""
    scale = _CENTRAL * min(height / size[0], width / size[1])
    high, wide = size[0] * scale, size[1] * scale
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def random_box(width: int, height: int, size: tuple[int, int], smallest: float, draws: np.ndarray) -> Box:
    """A random part of an image (Szegedy et al. 2015, section 6).

    Its part of the area is uniform from `smallest` to 1; its proportions are those of `size`, times a factor
    log-uniform from 3/4 to 4/3; its place is uniform. Of ten such boxes the first that fits is taken; where none does,
    the largest box that the proportions allow.

    Args:
        width: of the image.
        height: of the image.
        size: (h, w) that the box is resized to.
        smallest: part of the image's area.
        draws: float64 [DRAWS], uniform in [0, 1): the place, then the tries; the box is a function of them.
    """
    areas, stretches = np.split(draws[2:], 2)
    area = width * height * (smallest + (1 - smallest) * areas)
    square = size[1] / size[0]
    ratio = square * _STRETCH ** (2 * stretches - 1)
    wide, high = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (wide <= width) & (high <= height)
    if fits.any():
        first = fits.argmax()
        wide, high = float(wide[first]), float(high[first])
    else:
        ratio = min(max(width / height, square / _STRETCH), square * _STRETCH)
        wide, high = min(width, height * ratio), min(height, width / ratio)
    left, top = float(draws[0]) * (width - wide), float(draws[1]) * (height - high)
    return left, top, left + wide, top + high
