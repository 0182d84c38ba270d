"""pictures/NAME.png, drawn from a task's figures, and pictures.json, which describes them."""

import colorsys
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image

from train.process.errors import UserError
from train.run.atomic import write_atomic
from train.run.files import PICTURES, read_run_json
from train.task import Grid, Picture, Plane, Scatter
from w2jax.text import one_line, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_WIDTH = 1400  # pixels
_CELL, GAP = 96, 4  # pixels: small cells are enlarged to it, and the gap between two cells
_DPI = 250  # of a figure small enough that its letters can be read on a phone

# Far apart in hue or lightness, and far from the gray background points and the black marks.
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
_BACKGROUND_COLOR = "#d5d9e0"
# More colours cannot be distinguished, and longer names would leave no room for the points.
_MAX_LEGEND_ENTRIES, _MAX_LEGEND_LETTERS = 40, 24


def write_pictures(folder: Path, pictures: Mapping[str, Picture], label_names: Sequence[str]) -> None:
    """Writes each picture as `pictures/NAME.png` in the run folder, and all captions as `pictures/pictures.json`.

    `label_names` are the source's.
    """
    contents = {picture_path(folder, name): encode_picture(picture, label_names) for name, picture in pictures.items()}
    (folder / PICTURES).mkdir(exist_ok=True)
    for path, content in contents.items():
        write_atomic(path, content)
    entries = {name: _entry(picture) for name, picture in pictures.items()}
    write_atomic(folder / PICTURES / "pictures.json", json.dumps(entries) + "\n")


def read_pictures(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of `pictures.json` by the picture's name: "caption", and the points over a plane.

    Raises:
        UserError: if it is damaged, or a picture is missing.
    """
    path = folder / PICTURES / "pictures.json"
    entries = read_run_json(path) if path.exists() else {}
    try:
        for name, entry in entries.items():
            if not (isinstance(entry["caption"], str) and picture_path(folder, name).is_file()):
                raise ValueError(f"no picture {name}.png with a caption")
            if "points" in entry and not _is_plane(entry):
                raise ValueError(f"{name} is no plane with labelled points")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: {error!r}; remove {PICTURES}/, and the training's command writes it again"
        ) from error
    return entries


def _is_plane(entry: Mapping[str, Any]) -> bool:
    points, labels = np.array(entry["points"], np.float64).reshape(-1, 2), entry["labels"]
    counts = [entry["rows"], entry["columns"], *labels]
    is_complete = len(points) == len(labels) and bool(np.isfinite(points).all())
    return is_complete and all(type(x) is int and x >= 0 for x in counts)


def picture_path(folder: Path, name: str) -> Path:
    """The path of a picture in the run folder.

    Raises:
        ValueError: if the name has other characters than letters, digits, "-" and "_", and so could lead elsewhere.
    """
    if not re.fullmatch(r"[\w-]{1,60}", name):
        raise ValueError(f"a picture's name must be 1 to 60 letters, digits, - and _, got {name!r}; rename it")
    return folder / PICTURES / f"{name}.png"


def _entry(picture: Picture) -> dict[str, Any]:
    if not isinstance(picture, Plane):
        return {"caption": picture.caption, "on_white": isinstance(picture, Scatter)}
    points, labels = np.asarray(picture.points, np.float64), np.asarray(picture.labels)
    shown = np.flatnonzero(np.isfinite(points).all(axis=1))
    shown = shown[np.argsort(points[shown, 0], kind="stable")]  # uPlot needs rising x.
    rows, columns = picture.images.shape[:2]
    return {
        "caption": picture.caption,
        "rows": rows,
        "columns": columns,
        "points": points[shown].round(4).tolist(),
        "labels": labels[shown].tolist(),
    }


def encode_picture(picture: Picture, label_names: Sequence[str]) -> bytes:
    """The PNG file of a picture; a class without a name is called by its number."""
    if isinstance(picture, Grid):
        return encode_png(tile_cells(np.asarray(picture.cells)))
    if isinstance(picture, Plane):
        pixels = (np.clip(np.asarray(picture.images), 0, 1) * 255).round().astype(np.uint8)
        return encode_png(rearrange(pixels, "r c h w -> (r h) (c w)"))
    file = io.BytesIO()
    with warnings.catch_warnings():
        # matplotlib draws characters that its font lacks as boxes, and should not warn about it in a run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        scatter_figure(picture, label_names).savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """The PNG file of pixels uint8 [h, w], [h, w, 3] or, with opacity, [h, w, 4]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def tile_cells(cells: Float[np.ndarray, "rows columns h w *rgb"]) -> UInt8[np.ndarray, "H W 4"]:
    """Cells in rows and columns as pixels. The gaps are transparent: a line of any colour could be part of a cell.

    Each value becomes a square of whole pixels, at least one. Small cells are enlarged as far as the picture is no
    wider than `MAX_WIDTH`.
    """
    columns, width = cells.shape[1], cells.shape[3]
    zoom = max(1, min(_CELL // width, (MAX_WIDTH - GAP * (columns - 1)) // (columns * width)))
    pixels = np.full((*cells.shape[:4], 4), 255, np.uint8)
    pixels[..., :3] = (np.clip(cells, 0, 1) * 255).round().reshape(*cells.shape[:4], -1)
    large = pixels.repeat(zoom, axis=2).repeat(zoom, axis=3)
    framed = np.pad(large, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)))
    return rearrange(framed, "r c h w rgba -> (r h) (c w) rgba")[:-GAP, :-GAP]


def class_colors(count: int) -> list[str]:
    """A colour for each of `count` classes, as #rrggbb."""
    if count <= len(_PALETTE):
        return _PALETTE[:count]
    mixed = [colorsys.hsv_to_rgb(k / count, 0.9, (0.95, 0.6)[k % 2]) for k in range(count)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in mixed]


def scatter_figure(picture: Scatter, label_names: Sequence[str]) -> "Figure":
    """The points over the background, with the marks and a legend, on white."""
    from matplotlib.figure import Figure  # Imported late: it takes half a second, which a run needs only at its end.
    from matplotlib.lines import Line2D

    points, labels, background = (np.asarray(x) for x in (picture.points, picture.labels, picture.background))
    colors = class_colors(max(len(label_names), labels.max() + 1))
    figure = Figure(figsize=(5.6, 4.8), dpi=_DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    # Equal by the limits, not by the box: the picture has the same size whatever the points do.
    axes.set_aspect("equal", adjustable="datalim")
    axes.scatter(*background.T, s=6, color=_BACKGROUND_COLOR, linewidths=0)
    # All classes in one call, in the order of the examples: class by class, the last would cover the others.
    axes.scatter(*points.T, s=9, c=[colors[label] for label in labels], alpha=0.75, linewidths=0)
    if picture.marks is not None:
        marks = np.asarray(picture.marks)
        # A white cross below each black one keeps it apart from dark points.
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
        # The texts are set afterwards: a legend reads "$" as mathematics, and before matplotlib 3.10 it drops names
        # that begin with "_".
        for text, label in zip(legend.get_texts(), shown, strict=True):
            name = str(label_names[label] if label < len(label_names) else label)
            text.set_parse_math(False)
            text.set_text(shorten(one_line(name), _MAX_LEGEND_LETTERS // columns))
    return figure
