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
"""Pillow's mode by the number of channels of 8 bits."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""Formats that are read, by Pillow's names. Pillow's other readers may run programs, or only warn of damage."""

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""Larger images are refused before they are decoded: a small file may expand to fill the memory."""

warnings.simplefilter("error", Image.DecompressionBombWarning)  # Pillow itself refuses only twice as many.
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, zlib.error, *_BOMB)
"""What Pillow raises on bytes that are not a complete image, or that have more than `MAX_PIXELS`."""

_ORIENTATION = 0x0112  # EXIF's tag: how the camera was turned.


def read_image_bytes(path: Path, mode: str) -> bytes:
    """An image file's bytes in a form that `decode` reads as Pillow's `mode`.

    They are the file's own if possible, else the upright image in `mode` as PNG, without transparency and with the
    upper 8 of 16 bits. Raises one of `IMAGE_ERRORS` if the file is not a complete image.
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
    """Whether `decode` accepts an image of Pillow's `mode` as one of mode `target`."""
    return mode == target or (target == "RGB" and mode in ("1", "L", "P"))


def decode(
    encoded: bytes,
    channels: int,
    size: tuple[int, int] | None = None,
    crop_box: Callable[[int, int], Box] | None = None,
) -> np.ndarray:
    """Decodes an image of one of `FORMATS`.

    Gray and palette images are expanded to RGB if `channels` is 3, as TFDS does.

    Args:
        encoded: the file's bytes.
        channels: 1, 3 or 4.
        size: (h, w) to resize to, bilinearly; None keeps the image's own.
        crop_box: from the image's width and height to the box that is resized to `size`; None: the whole image. With a
            box, a JPEG is decoded at a half, a quarter or an eighth of its size while the box stays as large as `size`.

    Returns:
        uint8 [h, w, channels].

    Raises:
        ValueError: the bytes are not a complete image, or it has other channels.
    """
    box = None
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if size is not None and crop_box is not None:
            box = _draft(image, crop_box(image.width, image.height), size)
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError("is not a complete image (its format is not known)") from error
    except IMAGE_ERRORS as error:
        raise ValueError(f"is not a complete image ({error})") from error
    mode = MODES[channels]
    if not mode_fits(image.mode, mode):
        raise ValueError(f"must be an image of mode {mode}, got {image.mode}")
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and (box is not None or image.size != (size[1], size[0])):
        reducing_gap = None if box is None else 2.0  # A much larger image is first reduced by whole pixels.
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box, reducing_gap)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _draft(image: Image.Image, box: Box, size: tuple[int, int]) -> Box:
    """Makes a JPEG decode at a smaller scale that keeps `box` at least as large as `size`; returns the scaled box."""
    width, (left, top, right, bottom) = image.width, box
    smallest = size[1] / (right - left) * image.width, size[0] / (bottom - top) * image.height
    drafted = image.draft(None, (math.ceil(smallest[0]), math.ceil(smallest[1])))
    scale = 1.0 if drafted is None else drafted[1][2] / width
    # Rounding must not lead out of the image.
    return left * scale, top * scale, min(right * scale, image.width), min(bottom * scale, image.height)
