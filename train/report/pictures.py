"""Draws a task's figures as pictures/NAME.png, and describes them in pictures.json."""

import colorsys
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import ArrayLike, Float, UInt8
from PIL import Image

from train.process.errors import UserError
from train.report.fonts import fonts_for_any_script
from train.run.atomic import check_no_link, write_atomic
from train.run.files import PICTURES, read_run_json
from train.task import Grid, Picture, Plane, Scatter
from w2jax.text import one_line, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_WIDTH = 1400  # pixels
_CELL, GAP = 96, 4  # pixels: size that small cells are enlarged to, and gap between cells
_DPI = 250  # resolution; the figure itself is small, so its text is readable on a phone

# Colors that differ clearly in hue or lightness, also from the gray background points and the black marks.
_PALETTE = [
    "#e6194b",
    "#2f6de1",
    "#2ca02c",
    "#f58a1f",
    "#8a2bc2",
    "#17b8d4",
    "#f25cc8",
    "#8a5a2b",
    "#c9a800",
    "#0b2a7a",
]
_MOST_CLASSES = 100_000  # in a file that someone else may have written
_BACKGROUND_COLOR = "#d5d9e0"
# Readers cannot distinguish more colors, and longer names would leave too little room for the points.
_MAX_LEGEND_ENTRIES, _MAX_LEGEND_LETTERS = 40, 24


def write_pictures(folder: Path, pictures: Mapping[str, Picture], label_names: Sequence[str]) -> None:
    """Writes each picture as `pictures/NAME.png` in the run folder, and all captions to `pictures/pictures.json`.

    `label_names` are the label names of the source.
    """
    contents = {picture_path(folder, name): encode_picture(picture, label_names) for name, picture in pictures.items()}
    (folder / PICTURES).mkdir(exist_ok=True)
    for path, content in contents.items():
        write_atomic(path, content)
    entries = {name: _entry(picture) for name, picture in pictures.items()}
    write_atomic(folder / PICTURES / "pictures.json", json.dumps(entries) + "\n")


def read_pictures(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads the entries of `pictures.json` by picture name.

    Each has a "caption". A grid may have "column_labels" and "row_labels". A plane has its points and labels.

    Raises:
        UserError: the file is damaged, or a picture is missing.
    """
    check_no_link(folder / PICTURES, folder)
    path = folder / PICTURES / "pictures.json"
    entries = read_run_json(path) if path.exists() else {}
    try:
        for name, entry in entries.items():
            if not (isinstance(entry["caption"], str) and picture_path(folder, name).is_file()):
                raise ValueError(f"{name} must have a caption and a file {name}.png")
            labels = [*entry.get("column_labels", []), *entry.get("row_labels", [])]
            if not all(isinstance(label, str) for label in labels):
                raise ValueError(f"the labels of {name} must be texts")
            if "points" in entry and not _is_plane(entry):
                raise ValueError(f"{name} must be a plane with labeled points")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}). Remove {PICTURES}/ and run the training command again, which rewrites it."
        ) from error
    return entries


def _is_plane(entry: Mapping[str, Any]) -> bool:
    points, labels = np.array(entry["points"], np.float64).reshape(-1, 2), entry["labels"]
    counts = [entry["rows"], entry["columns"], *labels]
    is_complete = len(points) == len(labels) and bool(np.isfinite(points).all())
    return is_complete and all(type(x) is int and 0 <= x < _MOST_CLASSES for x in counts)


def picture_path(folder: Path, name: str) -> Path:
    """Returns the path of a picture in the run folder.

    Raises:
        ValueError: the name has characters other than letters, digits, "-" and "_", so it could be a path outside the
            folder.
    """
    if not re.fullmatch(r"[\w-]{1,60}", name):
        raise ValueError(f"a picture's name must be 1 to 60 letters, digits, - and _, got {name!r}. Rename it.")
    return folder / PICTURES / f"{name}.png"


def _entry(picture: Picture) -> dict[str, Any]:
    if isinstance(picture, Grid):
        labels = {"column_labels": picture.column_labels, "row_labels": picture.row_labels}
        return {"caption": picture.caption} | {name: list(words) for name, words in labels.items() if words}
    if isinstance(picture, Scatter):
        return {"caption": picture.caption, "on_white": True}
    points, labels = np.asarray(picture.points, np.float64), np.asarray(picture.labels)
    shown = np.flatnonzero(np.isfinite(points).all(axis=1))
    shown = shown[np.argsort(points[shown, 0], kind="stable")]  # uPlot needs ascending x.
    rows, columns = picture.images.shape[:2]
    return {
        "caption": picture.caption,
        "rows": rows,
        "columns": columns,
        "points": points[shown].round(4).tolist(),
        "labels": labels[shown].tolist(),
    }


def encode_picture(picture: Picture, label_names: Sequence[str]) -> bytes:
    """Encodes a picture as PNG. A class without a name is labeled with its number."""
    if isinstance(picture, Grid):
        return encode_png(tile_cells(np.asarray(picture.cells)))
    if isinstance(picture, Plane):
        return encode_png(rearrange(to_pixels(picture.images), "r c h w -> (r h) (c w)"))
    file = io.BytesIO()
    with fonts_for_any_script():
        scatter_figure(picture, label_names).savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes pixels as PNG: uint8 [h, w], [h, w, 3], or [h, w, 4] with opacity."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def to_pixels(values: Float[ArrayLike, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Converts values in [0, 1] to pixels. Values outside count as 0 or 1."""
    return (np.clip(np.asarray(values), 0, 1) * 255).round().astype(np.uint8)


def tile_cells(cells: Float[np.ndarray, "rows columns h w *rgb"]) -> UInt8[np.ndarray, "H W 4"]:
    """Arranges cells in rows and columns as one image. Gaps are transparent, so they do not look like image content.

    Each value becomes a square of n × n pixels with n ≥ 1. Small cells are enlarged if the picture is then at most
    `MAX_WIDTH` wide.
    """
    columns, width = cells.shape[1], cells.shape[3]
    zoom = max(1, min(_CELL // width, (MAX_WIDTH - GAP * (columns - 1)) // (columns * width)))
    pixels = np.full((*cells.shape[:4], 4), 255, np.uint8)
    pixels[..., :3] = to_pixels(cells).reshape(*cells.shape[:4], -1)
    large = pixels.repeat(zoom, axis=2).repeat(zoom, axis=3)
    framed = np.pad(large, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)))
    return rearrange(framed, "r c h w rgba -> (r h) (c w) rgba")[:-GAP, :-GAP]


def class_colors(count: int) -> list[str]:
    """Returns a color for each of `count` classes, as #rrggbb."""
    if count <= len(_PALETTE):
        return _PALETTE[:count]
    mixed = [colorsys.hsv_to_rgb(k / count, 0.9, (0.95, 0.6)[k % 2]) for k in range(count)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in mixed]


def scatter_figure(picture: Scatter, label_names: Sequence[str]) -> "Figure":
    """Draws the points over the background, with the marks and a legend, on white."""
    from matplotlib.figure import Figure  # Imported late: it takes 0.5 s and is only needed at the end of a run.
    from matplotlib.lines import Line2D

    points, labels, background = (np.asarray(x) for x in (picture.points, picture.labels, picture.background))
    colors = class_colors(max(len(label_names), labels.max() + 1))
    figure = Figure(figsize=(5.6, 4.8), dpi=_DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    # Equal scales by adjusting the limits, not the box, so the picture size does not depend on the points.
    axes.set_aspect("equal", adjustable="datalim")
    axes.scatter(*background.T, s=6, color=_BACKGROUND_COLOR, linewidths=0)
    # Draw all classes in one call, in the order of the examples. Otherwise the last class would cover the others.
    axes.scatter(*points.T, s=9, c=[colors[label] for label in labels], alpha=0.75, linewidths=0)
    if picture.marks is not None:
        marks = np.asarray(picture.marks)
        # A white cross under each black cross makes it visible on dark points.
        axes.scatter(*marks.T, s=60, marker="x", color="white", linewidths=3.2)
        axes.scatter(*marks.T, s=45, marker="x", color="black", linewidths=1.5)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.locator_params(nbins=7, steps=[1, 2, 5, 10])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor="#5a6372")
    shown = np.unique(labels[np.isfinite(points).all(axis=1)])
    if 0 < len(shown) <= _MAX_LEGEND_ENTRIES:
        columns = -(-len(shown) // 20)
        handles = [Line2D([], [], marker="o", linestyle="", color=colors[label]) for label in shown]
        legend = figure.legend(
            handles,
            [str(label) for label in shown],
            loc="outside right center",
            ncols=columns,
            frameon=False,
            handletextpad=0.1,
            columnspacing=0.8,
            fontsize=10 if columns == 1 else 8,
        )
        # Set the texts after creating the legend, because a legend reads "$" as mathematics, and before matplotlib 3.10
        # it drops names that begin with "_".
        for text, label in zip(legend.get_texts(), shown, strict=True):
            name = str(label_names[label] if label < len(label_names) else label)
            text.set_parse_math(False)
            text.set_text(shorten(one_line(name), _MAX_LEGEND_LETTERS // columns))
    return figure
