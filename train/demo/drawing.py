"""Turns a drawing into an image for the model; a drawn digit into the form of MNIST's images.

MNIST's digits are bright on black. Each digit was scaled to a box of 20×20 pixels with its proportions kept, and its
center of mass was moved to the center of 28×28 pixels (LeCun et al. 1998, "Gradient-based learning applied to document
recognition", section III.A). A drawn line may have any width, so this module also gives it the mean width of MNIST's.
"""

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import distance_transform_edt, map_coordinates

from train.process.errors import UserError
from train.report.pictures import to_pixels

SIDE, BOX, CENTER = 28, 20, 14
"""Pixels of a side of the image and of the digit's box; the row and the column of the digit's center of mass."""
_LINE = 2.6  # pixels: mean width of the lines of the bundled MNIST digits, as `_line_width` measures it


def to_mnist(ink: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"]:
    """Returns a drawing in the form of MNIST's images.

    The result does not depend on the drawing's size and place, and hardly on the width of its lines.

    Args:
        ink: how much of each pixel is drawn, from 0 to 1. Pixels from 0.5 count as drawn.

    Raises:
        UserError: nothing is drawn.
    """
    drawn = ink >= 0.5
    if not drawn.any():
        raise UserError("the drawing is empty. Draw a digit")
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
    drawn = drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longest, width = max(drawn.shape), _line_width(drawn)
    # The middle of the lines is scaled to BOX - _LINE pixels, so with lines of _LINE pixels the digit fills the box.
    # A dot has no lines, so it keeps its shape.
    has_lines = longest > 2.0 * width
    scale = (BOX - _LINE) / (longest - width) if has_lines else BOX / longest
    wider = 0.5 * (_LINE - width * scale) if has_lines else 0.0
    margin = int(np.ceil((max(wider, 0.0) + 2.0) / scale))
    # Pixels of the result from each point to the edge of the widened or narrowed line; positive inside.
    edge = scale * _signed_distance(np.pad(drawn, margin)) + wider
    bright = np.clip(edge + 0.5, 0.0, 1.0)
    axes = [_places(bright.sum(axis=axis), scale) for axis in (1, 0)]
    sampled = map_coordinates(edge, np.stack(np.meshgrid(*axes, indexing="ij")), order=1, cval=-1.0)
    return to_pixels(sampled + 0.5)


def whole_canvas(ink: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Returns a drawing as it is, bright on black.

    Raises:
        UserError: nothing is drawn.
    """
    if not (ink >= 0.5).any():
        raise UserError("the drawing is empty. Draw something")
    return to_pixels(ink)


def _places(bright: Float[np.ndarray, "n"], scale: float) -> Float[np.ndarray, "28"]:
    """Where each row (or column) of the result is in the drawing, from the brightness of the drawing's rows.

    The center of mass is at number 14, as in MNIST. A digit whose box would then leave the image is moved inside.
    """
    middle = bright @ np.arange(len(bright)) / bright.sum()
    shown = np.flatnonzero(bright > 0.25)
    middle = np.clip(middle, shown[-1] - (SIDE - 1 - CENTER) / scale, shown[0] + CENTER / scale)
    return middle + (np.arange(SIDE) - CENTER) / scale


def _signed_distance(drawn: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Pixels from the middle of each pixel to the edge of what is drawn; negative outside."""
    inside, outside = (np.asarray(distance_transform_edt(part)) for part in (drawn, ~drawn))
    return np.where(drawn, inside - 0.5, 0.5 - outside)


def _line_width(drawn: np.ndarray) -> float:
    """Mean width of the lines in pixels: across a line, the mean distance to its edge is a quarter of its width."""
    return 4.0 * float(_signed_distance(np.pad(drawn, 1))[1:-1, 1:-1][drawn].mean())
