"""Pictures of where a ViT looked in photos: the attention rollout over each photo, as PNG and SVG files.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", equation 1 <https://arxiv.org/abs/2005.00928>.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from PIL import Image

from train.data.crops import Box
from train.data.decode import decode, read_image_bytes
from train.predict.output import best_classes
from train.predict.predictor import Predictor
from train.process.errors import UserError
from train.report.figures import STYLE, encode_figure
from train.report.fonts import fonts_for_any_script
from train.run.atomic import check_no_link, write_atomic
from train.task import Rollout
from w2jax.text import one_line

_KINDS = ("png", "svg")
_LONGEST = 8.0  # inches; the longer side of the photo, whatever its number of pixels
_NARROWEST = 4.5  # inches; a narrower photo would break the caption into many lines
_FEWEST_PIXELS = 800  # of the longer side; smaller photos are enlarged by a whole factor, so that the text is sharp
_COLORS = mpl.colormaps["inferno"]


class Pictures:
    """The files to write: NAME-rollout.png and NAME-rollout.svg in a folder, for the photo NAME.jpg."""

    def __init__(self, folder: Path, photos: Sequence[Path], run_dir: Path, overwrite: bool):
        """Chooses a name for each photo. Photos with the same name get numbers.

        Raises:
            UserError: a file exists and `overwrite` is False, a file is one of the photos, or `folder` is a link in
                the run folder.
        """
        check_no_link(folder, run_dir)
        self.folder, names = folder, {}
        for photo in photos:
            stem, number = photo.stem, 1
            while (name := f"{stem}-{number}" if number > 1 else stem).casefold() in names:
                number += 1
            names[name.casefold()] = name
        self.paths = [{kind: folder / f"{name}-rollout.{kind}" for kind in _KINDS} for name in names.values()]
        for path in (path for files in self.paths for path in files.values()):
            if path.exists() and any(path.samefile(photo) for photo in photos):
                raise UserError(f"--rollout must not replace one of the images, got {path}. Choose another folder")
            if not overwrite and (path.exists() or path.is_symlink()):
                raise UserError(f"{path} must not exist yet. Choose another folder for --rollout, or add --overwrite")

    def write(
        self,
        predictor: Predictor,
        photos: Sequence[Path],
        images: UInt8[np.ndarray, "B h w C"],
        probabilities: Float[np.ndarray, "B V"],
        top_k: int | None,
    ) -> None:
        """Writes the pictures of photos, which the model gets as `images`.

        Raises:
            UserError: the folder cannot be written.
        """
        rollout: Any = predictor.task.rollout
        shares_of = jax.jit(rollout.shares)
        answers = best_classes(predictor, probabilities, top_k)
        for photo, files, image, answer in zip(photos, self.paths, images, answers, strict=True):
            shares = np.asarray(shares_of(predictor.state, image[None]), np.float32)[0]
            pixels = decode(read_image_bytes(photo, "RGB"), 3)[0]
            box = predictor.box(*pixels.shape[:2])
            drawn, is_seen = overlaid(pixels, shares, covered(box, image.shape[:2], shares.shape, rollout), box)
            names = ", ".join(f"{row['label']} {row['probability']:.1%}" for row in answer)
            with mpl.rc_context(STYLE), fonts_for_any_script():
                figure = _figure(drawn, shares, names, is_seen)
                contents = {kind: encode_figure(figure, kind, figure.dpi, "figure") for kind in _KINDS}
            try:
                for kind, content in contents.items():
                    write_atomic(files[kind], content)
            except OSError as error:
                raise UserError(
                    f"--rollout must be a folder that can be written, got {self.folder} ({error.strerror}). "
                    "Choose another folder"
                ) from error


def covered(box: Box, image_size: Sequence[int], grid: Sequence[int], rollout: Rollout) -> Box:
    """The part of `box` that the grid of patches covers, which is less if the model drops partial patches."""
    left, top, right, bottom = box
    rows, columns = (count * side / size for count, side, size in zip(grid, rollout.patch, image_size, strict=True))
    return left, top, left + columns * (right - left), top + rows * (bottom - top)


def overlaid(
    photo: UInt8[np.ndarray, "h w 3"], shares: Float[np.ndarray, "n m"], patches: Box, seen: Box
) -> tuple[UInt8[np.ndarray, "H W 3"], bool]:
    """Draws shares over a photo in color, from dark (the smallest one) to bright (the largest one).

    Args:
        photo: the upright photo. It is enlarged by a whole factor if it is small.
        shares: the share of each patch.
        patches: which part of the photo the patches cover.
        seen: which part of the photo the model gets. The rest stays gray and is made darker.

    Returns:
        The picture, and whether the model gets the whole photo.
    """
    factor = max(1, -(-_FEWEST_PIXELS // max(photo.shape)))
    large = Image.fromarray(photo.repeat(factor, axis=0).repeat(factor, axis=1))
    gray = large.convert("L").convert("RGB")
    heat = Image.fromarray((255 * spread(shares, patches, factor, large.size)).round().astype(np.uint8))
    palette = (255 * _COLORS(np.arange(256))[:, :3]).round().astype(np.uint8)
    colors = Image.fromarray(palette[np.asarray(heat)])
    hot = Image.composite(colors, Image.blend(large, gray, 0.5), heat.point([90 + k * 115 // 255 for k in range(256)]))
    is_seen = inside(seen, factor, large.size)
    margin = Image.blend(gray, Image.new("RGB", gray.size), 0.65)
    return np.asarray(Image.composite(hot, margin, Image.fromarray(is_seen))), bool(is_seen.all())


def spread(
    shares: Float[np.ndarray, "n m"], patches: Box, factor: int, size: tuple[int, int]
) -> Float[np.ndarray, "H W"]:
    """Shares in a picture of `size` (W, H), interpolated between the centers of patches, from 0 to 1."""
    low, high = shares.min(), shares.max()
    scaled = (shares - low) / (high - low) if high > low else np.zeros_like(shares)
    left, top, right, bottom = (factor * edge for edge in patches)
    columns, rows = shares.shape[1] / (right - left), shares.shape[0] / (bottom - top)
    matrix = (columns, 0.0, -left * columns, 0.0, rows, -top * rows)  # from the picture to the grid of patches
    grid = Image.fromarray(scaled.astype(np.float32))
    placed = grid.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(placed).clip(0, 1)


def inside(box: Box, factor: int, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Whether each pixel of a picture of `size` (W, H) is in the box."""
    left, top, right, bottom = (factor * edge for edge in box)
    x, y = (np.arange(length) + 0.5 for length in size)
    return ((top < y) & (y < bottom))[:, None] & ((left < x) & (x < right))


def _figure(picture: UInt8[np.ndarray, "H W 3"], shares: Float[np.ndarray, "n m"], names: str, whole: bool) -> Figure:
    """The picture, pixel by pixel, with its caption and the scale of its colors."""
    height, width = picture.shape[:2]
    dpi = max(picture.shape) / _LONGEST
    across = max(width, round(_NARROWEST * dpi))  # pixels, as all lengths of the figure must be, or it would be blurred
    letters = int(11 * across / dpi)
    answer = textwrap.wrap(one_line(names), letters)
    told = "Attention rollout: the share of each patch in what the classifier reads."
    told += "" if whole else " The model does not see the dark margin."
    about = textwrap.wrap(told, int(1.35 * letters))
    down = height + round(dpi * (0.25 * len(answer) + 0.19 * len(about) + 0.5))
    # A hundredth of a pixel more, because matplotlib cuts off fractions of pixels.
    figure = Figure(((across + 0.01) / dpi, (down + 0.01) / dpi), dpi, facecolor="white")

    def place(left: float, top: float, wide: float, high: float) -> tuple[float, float, float, float]:
        """The rectangle with these sides in inches, as fractions of the figure."""
        wider, higher = dpi / across, dpi / down
        return left * wider, 1 - (top + high) * higher, wide * wider, high * higher

    def draw(pixels: np.ndarray, *sides: float) -> None:
        axes = figure.add_axes(place(*sides))
        axes.imshow(pixels, interpolation="none", aspect="auto")
        axes.set_axis_off()

    def write(text: str, left: float, top: float, **options: Any) -> None:
        x, y, _, _ = place(left, top, 0, 0)
        # A name may contain "$", which matplotlib would read as mathematics.
        figure.text(x, y, text, va="top", linespacing=1.3, **options).set_parse_math(False)

    draw(picture, (across - width) // 2 / dpi, 0, width / dpi, height / dpi)
    top = height / dpi + 0.1
    write("\n".join(answer), 0.08, top, fontsize=13, color="#111")
    top += 0.25 * len(answer) + 0.03
    write("\n".join(about), 0.08, top, fontsize=9.5, color="#444")
    top += 0.19 * len(about) + 0.1
    low, high = (f"{share:.2%}" for share in (shares.min(), shares.max()))
    write(low, 0.08, top - 0.015, fontsize=9.5, color="#444")
    draw(_COLORS(np.linspace(0, 1, 256))[None, :, :3], 0.65, top, 2.0, 0.14)
    write(high, 2.73, top - 0.015, fontsize=9.5, color="#444")
    return figure
