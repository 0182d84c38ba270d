"""Decodes image files to arrays."""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from train.data.crops import Box

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of 8-bit channels."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""Accepted formats, by Pillow's names. Pillow's other readers may run programs, or only warn about damaged files."""

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""Larger images give an error before they are decoded, because a small file may expand to fill the memory."""

# Pillow itself only warns about more than MAX_PIXELS, and raises above twice as many.
warnings.simplefilter("error", Image.DecompressionBombWarning)
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, zlib.error, *_BOMB)
"""Exceptions that Pillow raises if a file is not a complete image, or has more than `MAX_PIXELS` pixels."""

_ORIENTATION = 0x0112  # The EXIF tag for the camera's orientation.


def read_image_bytes(path: Path, mode: str) -> bytes:
    """Reads an image file and returns bytes that `decode` can read as Pillow's `mode`.

    If possible, these are the bytes of the file itself. Otherwise the image is turned upright, converted to `mode`
    without transparency, and encoded as PNG. Images with 16 bits per channel keep the upper 8 bits.

    Raises:
        One of `IMAGE_ERRORS`: the file is not a complete image.
    """
    with Image.open(path, formats=FORMATS) as image:
        readable = image.format in ("JPEG", "PNG") and mode_fits(image.mode, mode)
        if readable and image.getexif().get(_ORIENTATION, 1) == 1:
            return path.read_bytes()
        upright = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8))
        file = io.BytesIO()
        upright.convert(mode).save(file, "PNG")
        return file.getvalue()


def mode_fits(mode: str, target: str) -> bool:
    """Whether `decode` can read an image of Pillow's `mode` as mode `target`."""
    return mode == target or (target == "RGB" and mode in ("1", "L", "P"))


def decode(
    encoded: bytes,
    channels: int,
    size: tuple[int, int] | None = None,
    crop_box: Callable[[int, int], Box] | None = None,
) -> np.ndarray:
    """Decodes an image in one of `FORMATS`.

    If `channels` is 3, gray and palette images are converted to RGB, as in TFDS.

    Args:
        encoded: the bytes of the image file.
        channels: 1, 3 or 4.
        size: (h, w) to resize to, bilinearly. None keeps the image's size.
        crop_box: function from the image's width and height to the box that is resized to `size`. None: the whole
            image is resized. With a box, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the box is then still at
            least as large as `size`.

    Returns:
        uint8 [h, w, channels].

    Raises:
        ValueError: the bytes are not a complete image, or its number of channels is wrong.
    """
    box = None
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if size is not None and crop_box is not None:
            box = _draft(image, crop_box(image.width, image.height), size)
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError("is not a complete image (unknown format)") from error
    except IMAGE_ERRORS as error:
        raise ValueError(f"is not a complete image ({error})") from error
    mode = MODES[channels]
    if not mode_fits(image.mode, mode):
        raise ValueError(f"must be an image of mode {mode}, got {image.mode}")
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and (box is not None or image.size != (size[1], size[0])):
        reducing_gap = None if box is None else 2.0  # Pillow first shrinks a much larger image by an integer factor.
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box, reducing_gap)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _draft(image: Image.Image, box: Box, size: tuple[int, int]) -> Box:
    """Makes Pillow decode a JPEG at a smaller scale that keeps `box` as large as `size`; returns the scaled box."""
    width, (left, top, right, bottom) = image.width, box
    smallest = size[1] / (right - left) * image.width, size[0] / (bottom - top) * image.height
    drafted = image.draft(None, (math.ceil(smallest[0]), math.ceil(smallest[1])))
    scale = 1.0 if drafted is None else drafted[1][2] / width
    # Without min, rounding could move the box out of the image.
    return left * scale, top * scale, min(right * scale, image.width), min(bottom * scale, image.height)
