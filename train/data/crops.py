"""Crop boxes (left, top, right, bottom) of photographs, in pixels of the original image, not rounded."""

import numpy as np

Box = tuple[float, float, float, float]

_TRIES = 10
_STRETCH = 4 / 3  # Largest factor between the aspect ratio of a random box and the aspect ratio of the target.
CENTRAL = 0.875
"""Side of a central box, as a fraction of the largest one."""

UNIFORMS_PER_BOX = 2 + 2 * _TRIES
"""Number of uniform random numbers that determine a random box."""


def central_box(width: int, height: int, size: tuple[int, int]) -> Box:
    """Returns the central box with the aspect ratio of `size` (h, w), scaled to 0.875 of the largest such box."""
    scale = CENTRAL * min(height / size[0], width / size[1])
    high, wide = size[0] * scale, size[1] * scale
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def random_box(width: int, height: int, size: tuple[int, int], min_area: float, uniforms: np.ndarray) -> Box:
    """Returns a random box of an image (Szegedy et al. 2015, section 6).

    - Area: a fraction of the image, uniform from `min_area` to 1.
    - Aspect ratio: the ratio of `size` times a factor that is log-uniform from 3/4 to 4/3.
    - Position: uniform.

    Up to ten boxes are tried, and the first one that fits the image is returned. If none fits, the result is the
    largest box with an allowed aspect ratio.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        size: (h, w) that the box will be resized to.
        min_area: smallest fraction of the image's area.
        uniforms: float64 [UNIFORMS_PER_BOX] in [0, 1), which determine the box: two for the position, then the areas
            and the aspect ratios of the ten tries.
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
