"""Decodes image files to arrays."""

import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from train.data.crops import Box
from w2jax.image_spec import ImageSpec, Interpolation

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of 8-bit channels."""

SUFFIXES = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""Endings of the names of image files, and their formats, by Pillow's names. Every program reads the same formats."""

FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
"""Accepted formats, by Pillow's names. Pillow's other readers may run programs, or only warn about damaged files."""

HEIC_SUFFIXES = (".heic", ".heif", ".avif")
CONVERT_HEIC = "HEIC and AVIF are not read, convert them to JPEG (magick photo.heic photo.jpg)"
"""What is wrong with files of these formats, and what to do. Phones write them, and Pillow alone does not read HEIC."""

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""Larger images give an error before they are decoded, because a small file may expand to fill the memory."""

# Pillow itself only warns about more than MAX_PIXELS, and raises above twice as many.
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Pillow warns about damaged or unusual tags of a TIFF or of EXIF. Missing or damaged pixels give an error.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, zlib.error, *_BOMB)
"""Exceptions that Pillow raises if a file is not a complete image, or has more than `MAX_PIXELS` pixels."""

_COUNT = re.compile(r"\d+")

_ORIENTATION = 0x0112  # The EXIF tag for the camera's orientation.

_DEEP_GRAY = ("I;16", "I;16B", "I;16L", "I;16N")
_GRAY = ("1", "L", *_DEEP_GRAY)
_COLOR = ("P", "PA", "LA", "RGB", "RGBA", "CMYK", "YCbCr")


def inspect_image(path: Path) -> tuple[bool, tuple[int, int]]:
    """Decodes an image file; returns whether it is gray, and its upright (h, w).

    Raises:
        One of `IMAGE_ERRORS`: `read_image_bytes` and `decode` cannot read the file.
    """
    with _open(path) as image:
        gray = _is_gray(image)
        image.load()
        upright = ImageOps.exif_transpose(image)
        return gray, (upright.height, upright.width)


def read_image_bytes(path: Path, mode: str) -> bytes:
    """Reads an image file and returns bytes that `decode` can read as Pillow's `mode`.

    If possible, these are the bytes of the file itself. Otherwise the image is turned upright, converted to `mode`
    without transparency, and encoded as PNG. Images with 16 bits per channel keep the upper 8 bits. Only the first
    image of an animation or of a file with several pages is read.

    Raises:
        One of `IMAGE_ERRORS`: the file is not a complete image, or has more than 16 bits per channel.
    """
    with _open(path) as image:
        gray = _is_gray(image)
        readable = image.format in ("JPEG", "PNG") and mode_fits(image.mode, mode)
        if readable and image.getexif().get(_ORIENTATION, 1) == 1:
            return path.read_bytes()
        image.load()  # Pillow turns a TIFF upright here.
        file = io.BytesIO()
        _converted(ImageOps.exif_transpose(image), gray, mode).save(file, "PNG")
        return file.getvalue()


def _open(path: Path) -> Image.Image:
    """Opens an image file. The error for a file of another format says which formats are read."""
    try:
        return Image.open(path, formats=FORMATS)
    except _BOMB as error:
        raise _too_large(error) from error
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            head = file.read(12)
        if not head:
            raise ValueError("is empty") from error
        if head[4:8] == b"ftyp" and head[8:] in _HEIC_BRANDS:
            raise ValueError(CONVERT_HEIC) from error
        raise ValueError(f"is not one of {', '.join(FORMATS)}") from error


def _too_large(error: Exception) -> ValueError:
    """The error for an image of too many pixels, from the one of Pillow, whose first number is the number of pixels."""
    count = _COUNT.search(str(error))
    pixels = f"{int(count[0]):,}" if count else "too many"
    return ValueError(f"has {pixels} pixels, but at most {MAX_PIXELS:,} are read, so make the image smaller")


def _is_gray(image: Image.Image) -> bool:
    """Whether an image is gray. Raises ValueError if its pixels cannot be converted to 8 bits without a choice."""
    if image.mode in _GRAY or (image.mode == "I" and image.format == "PNG"):  # Pillow 10 reads 16 bits of a PNG as "I".
        return True
    if image.mode not in _COLOR:
        raise ValueError(f"must have 8 or 16 bits per channel, and be gray or in color, got Pillow's mode {image.mode}")
    return False


def _converted(image: Image.Image, gray: bool, mode: str) -> Image.Image:
    """Converts an image to `mode`. Transparency is dropped, and 16-bit gray (`gray` is True) keeps its upper 8 bits."""
    if gray and image.mode not in ("1", "L"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    return image.convert(mode)


def mode_fits(mode: str, target: str) -> bool:
    """Whether an image of Pillow's `mode` has the same pixels in mode `target`."""
    return mode == target or (target == "RGB" and mode in ("1", "L", "P"))


def decode(
    encoded: bytes,
    channels: int,
    size: tuple[int, int] | None = None,
    crop_box: Callable[[int, int], Box] | None = None,
    interpolation: Interpolation = "bilinear",
    spec: ImageSpec | None = None,
) -> tuple[np.ndarray, bool]:
    """Decodes an image in one of `FORMATS`. An image with other channels is converted as in `read_image_bytes`.

    Args:
        encoded: the bytes of the image file.
        channels: 1, 3 or 4.
        size: (h, w) to resize to. None keeps the image's size.
        crop_box: function from the image's width and height to the box that is resized to `size`. None: the whole
            image is resized. With a box, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the box is then still at
            least as large as `size`.
        interpolation: the method of resizing to `size`.
        spec: how to resize and cut images with `channels` channels, in place of the three arguments before.

    Returns:
        The image, uint8 [h, w, channels]; and whether colors, transparency or bits were lost in the conversion.

    Raises:
        ValueError: the bytes are not a complete image, or it has more than 16 bits per channel.
    """
    box = None
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if spec is None and size is not None and crop_box is not None:
            box = _draft(image, crop_box(image.width, image.height), size)
        image.load()
    except UnidentifiedImageError as error:
        raise ValueError("is not a complete image (unknown format)") from error
    except _BOMB as error:
        raise _too_large(error) from error
    except IMAGE_ERRORS as error:
        raise ValueError(f"is not a complete image ({error})") from error
    mode = MODES[channels]
    is_other = not mode_fits(image.mode, mode)
    if image.mode != mode:
        image = _converted(image, _is_gray(image), mode)
    if spec is not None:
        return spec.resize_images(image)[0], is_other
    if size is not None and (box is not None or image.size != (size[1], size[0])):
        reducing_gap = None if box is None else 2.0  # Pillow first shrinks a much larger image by an integer factor.
        image = image.resize((size[1], size[0]), Image.Resampling[interpolation.upper()], box, reducing_gap)
    return np.asarray(image).reshape(image.height, image.width, channels), is_other


def _draft(image: Image.Image, box: Box, size: tuple[int, int]) -> Box:
    """Makes Pillow decode a JPEG at a smaller scale that keeps `box` as large as `size`; returns the scaled box."""
    width, (left, top, right, bottom) = image.width, box
    smallest = size[1] / (right - left) * image.width, size[0] / (bottom - top) * image.height
    drafted = image.draft(None, (math.ceil(smallest[0]), math.ceil(smallest[1])))
    scale = 1.0 if drafted is None else drafted[1][2] / width
    # Without min, rounding could move the box out of the image.
    return left * scale, top * scale, min(right * scale, image.width), min(bottom * scale, image.height)
