"""How images must be resized and normalized for a model, and functions that do it. Only `preprocess` imports JAX.

Resizing needs Pillow. The results are those of timm's and Hugging Face's pipelines.
"""

import math
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8

from w2jax.text import shorten

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
MAX_SIDE = 2**14
"""Largest height and width in pixels. Only a malicious file has more."""

HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Mean and standard deviation of each channel that scale pixels to [-1, 1]."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of each channel of ImageNet, as torchvision uses them."""
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of each channel of the images that OpenAI trained CLIP on."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's mode for each number of channels
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # modes that can be converted without a choice
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # some of Pillow's other readers start programs


@dataclass(frozen=True)
class ImageSpec:
    """The images that a model was trained on: size, resizing, normalization and the names of their classes.

    Raises:
        ValueError: a field has a wrong type or value.
    """

    image_size: tuple[int, int]
    """(height, width) in pixels that the model gets, cut from the center of the resized image."""
    resize: int | tuple[int, int]
    """Size of the resized image in pixels: its shorter side, or (height, width), which stretches it."""
    interpolation: Interpolation = "bicubic"
    """Method of resizing, with antialiasing."""
    mean: tuple[float, ...] = HALF[0]
    """Mean of each channel, subtracted from pixel values in [0, 1]."""
    std: tuple[float, ...] = HALF[1]
    """Standard deviation of each channel, by which the difference is divided."""
    label_names: tuple[str, ...] | None = None
    """The name of each class; None: the source has none."""
    stretch: bool = True
    """If `resize` is a pair: stretch the image to it. False: keep its shape, so that it just covers the pair."""
    upright: bool = True
    """Turn a photo upright as its EXIF data say. timm and torchvision do not, Hugging Face does."""
    crop_offset: Literal["round", "floor"] = "round"
    """How half a pixel is rounded if the margin of a crop is odd: to even (timm) or down (Hugging Face)."""

    def __post_init__(self) -> None:
        _check_sides("image_size", self.image_size)
        _check_sides("resize", (self.resize,) * 2 if isinstance(self.resize, int) else self.resize)
        _check_choice("interpolation", self.interpolation, get_args(Interpolation))
        _check_choice("crop_offset", self.crop_offset, ("round", "floor"))
        for name in ("mean", "std"):
            values: Any = getattr(self, name)
            valid = isinstance(values, tuple) and len(values) in (1, 3, 4) and all(map(_is_number, values))
            if not valid or (name == "std" and min(values) <= 0):
                wanted = "positive numbers" if name == "std" else "numbers"
                raise ValueError(
                    f"{name} must be a tuple of 1, 3 or 4 {wanted}, one for each channel, got {shorten(repr(values))}"
                )
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must have the same length, got {len(self.mean)} and {len(self.std)}")
        names: Any = self.label_names
        if names is not None and not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"label_names must be a tuple of strings or None, got {shorten(repr(names))}")

    @property
    def channels(self) -> int:
        """Number of channels: 1 (gray), 3 (RGB) or 4 (RGBA)."""
        return len(self.mean)

    def preprocess(self, images: Any) -> Float[Any, "B h w C"]:
        """Return the model's input, `normalize(resize_images(images))`, as an array of JAX.

        The argument and the errors are those of `resize_images`.
        """
        import jax.numpy as jnp  # here, because programs that only read runs do not import JAX

        return jnp.asarray(self.normalize(self.resize_images(images)))

    def resize_images(self, images: Any) -> UInt8[np.ndarray, "B h w C"]:
        """Resize images and cut out their centers.

        Pixels outside of a resized image are black. Transparency is dropped, and only the first image of an animation
        is read.

        Args:
            images: the path of an image file, an image of Pillow, a uint8 array [h, w, C] or [h, w]; or several of them
                in a list or in an array [B, h, w, C].

        Raises:
            FileNotFoundError: there is no file at a path.
            ValueError: a file is not a complete image, an image does not have 8 bits per channel, or there is no image.
            ImportError: Pillow is not installed.
        """
        several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        pictures = [self._resized(image) for image in (images if several else [images])]
        if not pictures:
            raise ValueError("images must have at least one image, got none")
        return np.stack(pictures)

    def normalize(self, images: UInt8[Any, "B h w C"]) -> Float[Any, "B h w C"]:
        """Return the pixel values that the model expects, in float32. Works on arrays of NumPy and JAX, also in jit."""
        return (images.astype("float32") / 255 - np.array(self.mean, "float32")) / np.array(self.std, "float32")

    def source_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return which part of an image the model gets: (left, top, right, bottom) in pixels of the image.

        The part extends beyond the image where the model's input is black.

        Args:
            height: height of the upright image in pixels.
            width: its width in pixels.
        """
        edges = []
        resized = self._resized_shape(height, width)
        for original, length, size in zip((height, width), resized, self.image_size, strict=True):
            kept, place = self._crop(length, size)
            start = kept.start - place.start
            edges.append((start * original / length, (start + size) * original / length))
        (top, bottom), (left, right) = edges
        return left, top, right, bottom

    def _resized(self, picture: Any) -> UInt8[np.ndarray, "h w C"]:
        image = _decoded(picture, self.upright, _MODES[self.channels])
        height, width = self._resized_shape(image.height, image.width)
        if height * width > MAX_SIDE**2:
            raise ValueError(f"an image must be less elongated, got {image.height}×{image.width} pixels. Crop it")
        pixels = np.asarray(image.resize((width, height), RESAMPLING[self.interpolation]))
        (rows, to_rows), (columns, to_columns) = map(self._crop, (height, width), self.image_size)
        cropped = np.zeros((*self.image_size, self.channels), np.uint8)
        cropped[to_rows, to_columns] = pixels.reshape(height, width, self.channels)[rows, columns]
        return cropped

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of an image after resizing, rounded as in torchvision and timm."""
        if isinstance(self.resize, int):
            longer = int(self.resize * max(height, width) / min(height, width))
            return (longer, self.resize) if width <= height else (self.resize, longer)
        if self.stretch:
            return self.resize
        ratio = min(height / self.resize[0], width / self.resize[1])
        return round(height / ratio), round(width / ratio)

    def _crop(self, length: int, size: int) -> tuple[slice, slice]:
        """Return which part of an axis of this length is kept, and its place in an axis of `size` pixels."""
        margin = length - size
        if margin < 0:
            start = -margin // 2
            return slice(0, length), slice(start, start + length)
        start = round(margin / 2) if self.crop_offset == "round" else margin // 2
        return slice(start, start + size), slice(0, size)


def _check_sides(name: str, sides: Any) -> None:
    if not isinstance(sides, tuple) or len(sides) != 2 or not all(type(s) is int and 0 < s <= MAX_SIDE for s in sides):
        raise ValueError(f"{name} must be height and width from 1 to {MAX_SIDE} pixels, got {shorten(repr(sides))}")


def _check_choice(name: str, value: Any, values: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in values:
        raise ValueError(f"{name} must be {' or '.join(values)}, got {shorten(repr(value))}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _decoded(picture: Any, upright: bool, mode: str) -> Any:
    """Return an image of Pillow in this mode."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("resizing images needs Pillow, which is not installed. Run: pip install pillow") from error
    if isinstance(picture, str | os.PathLike):
        try:
            with Image.open(picture, formats=_FORMATS) as image:
                image.load()
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
            raise ValueError(f"{picture} must be a complete image ({', '.join(_FORMATS)}): {error}") from error
        picture = image
    if not isinstance(picture, Image.Image):
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(
                "an image must be a path, a Pillow image or a uint8 array [h, w] or [h, w, 1, 3 or 4], got "
                f"{type(picture).__name__} of {pixels.dtype} {list(pixels.shape)}"
            )
        return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert(mode)
    if picture.mode not in _EIGHT_BIT:
        raise ValueError(
            f"an image must have 8 bits per channel, got Pillow's mode {picture.mode}. Scale its values to 0 … 255 and "
            "make it uint8; Pillow's convert would cut values above 255"
        )
    return (ImageOps.exif_transpose(picture) if upright else picture).convert(mode)
