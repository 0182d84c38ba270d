"""Encoded images to arrays."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode of an image with so many channels of 8 bits."""

BROKEN = (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on bytes that are not a whole image."""


def fits(found: str, wanted: str) -> bool:
    """Whether `decode` takes an image of Pillow's mode `found` as one of mode `wanted`."""
    return found == wanted or (wanted == "RGB" and found in ("1", "L", "P"))


def decode(encoded: bytes, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes a PNG, JPEG or other image that Pillow knows.

    A gray or palette image among colour ones is expanded to RGB, as TFDS does.

    Args:
        encoded: the file's bytes.
        channels: 1, 3 or 4.
        size: (h, w) to resize to, bilinearly; None keeps the image's own.

    Returns:
        uint8 [h, w, channels].

    Raises:
        ValueError: the bytes are no whole image, or it has other channels; the text says which.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
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
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)
