"""Encoded images to arrays."""

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
"""Pillow's mode of an image with so many channels of 8 bits."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""What is read, by Pillow's names. Others of its readers run programs or only warn of what is broken."""

MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""An image of more is refused before it is decoded: a small file may hold so many that memory ends."""

warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow itself refuses only twice as many.
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

BROKEN = (OSError, SyntaxError, ValueError, struct.error, zlib.error, *_BOMB)
"""What Pillow raises on bytes that are not a whole image, or are one of more than `MOST_PIXELS`."""


_ORIENTATION = 0x0112  # EXIF's tag: how a camera was held.


def encoded(path: Path, mode: str) -> bytes:
    """A file as it is if `decode` reads it so; else upright and in `mode`, as PNG.

    Transparency is dropped; of 16 bits a channel the upper 8 are kept. Raises one of `BROKEN` if it is no whole image.
    """
    with Image.open(path, formats=FORMATS) as image:
        plain = image.format in ("JPEG", "PNG") and fits(image.mode, mode)
        if plain and image.getexif().get(_ORIENTATION, 1) == 1:
            return path.read_bytes()
        upright = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8))
        file = io.BytesIO()
        upright.convert(mode).save(file, "PNG")
        return file.getvalue()


def fits(found: str, wanted: str) -> bool:
    """Whether `decode` takes an image of Pillow's mode `found` as one of mode `wanted`."""
    return found == wanted or (wanted == "RGB" and found in ("1", "L", "P"))


def decode(
    encoded: bytes,
    channels: int,
    size: tuple[int, int] | None = None,
    part: Callable[[int, int], Box] | None = None,
) -> np.ndarray:
    """Decodes an image of one of `FORMATS`.

    A gray or palette image among colour ones is expanded to RGB, as TFDS does.

    Args:
        encoded: the file's bytes.
        channels: 1, 3 or 4.
        size: (h, w) to resize to, bilinearly; None keeps the image's own.
        part: takes the image's width and height and gives the box that is resized to `size`; None: all of it. A JPEG
            is then decoded at a half, a quarter or an eighth of its size, as far as the box stays as large as `size`.

    Returns:
        uint8 [h, w, channels].

    Raises:
        ValueError: the bytes are no whole image, or it has other channels; the text says which.
    """
    box = None
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if size is not None and part is not None:
            box = _reduced(image, part(image.width, image.height), size)
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError("is not a whole image (its format is not known)") from error
    except BROKEN as error:
        raise ValueError(f"is not a whole image ({error})") from error
    mode = MODES[channels]
    if not fits(image.mode, mode):
        raise ValueError(f"is an image of mode {image.mode}, wanted {mode}")
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and (box is not None or image.size != (size[1], size[0])):
        gap = None if box is None else 2.0  # An image much larger than wanted is first reduced by whole pixels.
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box, gap)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _reduced(image: Image.Image, box: Box, size: tuple[int, int]) -> Box:
    """Tells a JPEG to decode itself smaller, as far as a box keeps `size`; gives the box in the pixels of then."""
    width, (left, top, right, bottom) = image.width, box
    least = size[1] / (right - left) * image.width, size[0] / (bottom - top) * image.height
    drafted = image.draft(None, (math.ceil(least[0]), math.ceil(least[1])))
    scale = 1.0 if drafted is None else drafted[1][2] / width
    # Rounding must not lead out of the image.
    return left * scale, top * scale, min(right * scale, image.width), min(bottom * scale, image.height)
