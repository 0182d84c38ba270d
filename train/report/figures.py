"""Writes the figures of a run as PNG and SVG files with captions, for a talk or a paper."""

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from train.report.curves import SPLIT_COLORS, Series, descriptions, metric_names
from train.report.document import spaced
from train.report.fonts import fonts_for_any_script
from train.report.mistakes import read_mistakes
from train.report.pictures import class_colors, picture_path, read_pictures
from train.report.schedule import learning_rates
from train.run.atomic import check_no_link, write_atomic
from train.run.files import read_run_file
from train.run.folder import read_image_info
from train.run.record import RunRecord, read_record
from w2jax.text import one_line, shorten

_SIZE = (8.0, 4.5)  # inches, the shape of a slide
_DPI = 200
_LETTERS = 88  # of a caption in a line
_MAX_NUMBERS = 30  # classes; the numbers of a larger confusion matrix would be too small to read
_MAX_NAME = 24  # letters of a class
STYLE: Any = {"font.size": 12, "svg.fonttype": "none", "svg.hashsalt": "w2jax", "axes.spines.top": False}


def write_figures(run_dir: Path, folder: Path) -> list[str]:
    """Writes each figure of the last evaluation as NAME.png and NAME.svg into `folder`, and returns the names.

    An SVG file keeps its text as text, so that it can be edited, and other programs find a font for any script.

    Raises:
        UserError: `run_dir` is not a run folder, or one of its files is damaged.
        OSError: the folder cannot be written.
    """
    run = read_record(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    with mpl.rc_context(STYLE), fonts_for_any_script():
        for name, figure in (*_curves(run), *_confusion(run_dir), *_pictures(run_dir)):
            for kind in ("png", "svg"):
                path = folder / f"{name}.{kind}"
                check_no_link(path, run_dir)
                write_atomic(path, encode_figure(figure, kind))
            names.append(name)
    return names


def encode_figure(figure: Figure, kind: str, dpi: float = _DPI, box: str = "tight") -> bytes:
    """Encodes a figure as "png" or "svg". The same figure always gives the same bytes.

    `box` "tight" cuts or adds margins so that everything is just visible. "figure" keeps the size of the figure.
    """
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    bounds = "tight" if box == "tight" else None
    figure.savefig(file, format=kind, dpi=dpi, metadata=metadata, facecolor="white", bbox_inches=bounds)
    return file.getvalue()


def _curves(run: RunRecord) -> Iterator[tuple[str, Figure]]:
    """Yields a figure for each metric with at least two values, and for the learning rate."""
    words = descriptions([run])
    for name in metric_names(run.lines):
        series = [Series(split, color, False, run.lines, split) for split, color in SPLIT_COLORS.items()]
        yield from _curve(name, series, words)
    rates = learning_rates(run.config, run.logged_step)
    colors = class_colors(len(rates))
    scheduled = [
        Series(name or "train", color, False, rows) for (name, rows), color in zip(rates.items(), colors, strict=True)
    ]
    yield from _curve("learning_rate", scheduled, words)


def _curve(name: str, series: Sequence[Series], words: Mapping[str, str]) -> Iterator[tuple[str, Figure]]:
    found = [(one, points) for one in series if (points := one.points(name))]
    if not any(len(points) > 1 for _, points in found):
        return
    figure, axes = _figure()
    for one, points in found:
        marker = "o" if len(points) < 30 else ""
        axes.plot([*points], [*points.values()], color=one.color, marker=marker, markersize=4, label=one.label)
    axes.set_xlabel("step")
    _text(axes.set_ylabel(spaced(one_line(name))))
    axes.grid(alpha=0.25)
    axes.spines.right.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(found) > 1:
        axes.legend(frameon=False)
    _caption(figure, words.get(name, ""))
    yield "curve_" + re.sub(r"\W+", "_", name)[:60], figure


def _confusion(run_dir: Path) -> Iterator[tuple[str, Figure]]:
    """Yields the confusion matrix of a classifier."""
    mistakes = read_mistakes(run_dir)
    if mistakes is None:
        return
    confusion, names = np.array(mistakes["confusion"]), read_image_info(run_dir).label_names
    if not len(confusion):
        return
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(_SIZE[0], _SIZE[0])
    axes.imshow(share**0.5, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(confusion) <= _MAX_NUMBERS:
        shown = [shorten(one_line(names[k] if k < len(names) else str(k)), _MAX_NAME) for k in range(len(confusion))]
        is_long = max(map(len, shown)) > 3
        axes.set_xticks(range(len(shown)), shown, rotation=90 if is_long else 0)
        axes.set_yticks(range(len(shown)), shown)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            _text(label)
        _numbers(axes, confusion, share)
    total, wrong = confusion.sum(), confusion.sum() - confusion.trace()
    _caption(figure, f"{wrong:,} of {total:,} test images are misclassified. Colors: fraction of the true class.")
    yield "confusion_matrix", figure


def _numbers(axes: Any, confusion: Int[np.ndarray, "V V"], share: Float[np.ndarray, "V V"]) -> None:
    size = min(11.0, 170 / len(confusion))
    for label, predicted in np.argwhere(confusion):
        color = "white" if share[label, predicted] > 0.3 else "black"
        count = str(confusion[label, predicted])
        axes.text(predicted, label, count, ha="center", va="center", color=color, fontsize=size)


def _pictures(run_dir: Path) -> Iterator[tuple[str, Figure]]:
    """Yields the task's pictures, except those that need a pointer."""
    for name, entry in read_pictures(run_dir).items():
        if "points" in entry:
            continue
        with Image.open(io.BytesIO(read_run_file(picture_path(run_dir, name)))) as image:
            pixels = np.asarray(image.convert("RGBA"))
        height, width = pixels.shape[:2]
        scale = min(_SIZE[0] / width, 2 * _SIZE[1] / height)
        figure, axes = _figure(scale * width, scale * height)
        axes.imshow(pixels, interpolation="none", extent=(0, 1, 0, 1), aspect="auto")
        axes.set_axis_off()
        for kind, turn in (("column_labels", False), ("row_labels", True)):
            labels = entry.get(kind, [])
            for place, label in enumerate(labels):
                _label(axes, label, (place + 0.5) / len(labels), turn)
        _caption(figure, entry["caption"])
        yield name, figure


def _label(axes: Any, label: str, place: float, beside: bool) -> None:
    """Writes the label of a column above the picture, or that of a row to its left. `place` is a fraction."""
    if beside:
        _text(axes.text(-0.01, 1 - place, one_line(label), ha="right", va="center", fontsize=9))
    else:
        _text(axes.text(place, 1.01, one_line(label), ha="center", va="bottom", fontsize=9))


def _figure(width: float = _SIZE[0], height: float = _SIZE[1]) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), facecolor="white")
    return figure, figure.add_axes((0.0, 0.0, 1.0, 1.0))


def _caption(figure: Figure, caption: str) -> None:
    """Writes the caption below the figure."""
    lines = textwrap.wrap(one_line(caption), _LETTERS)
    drawn = figure.get_tightbbox()  # inches; the names of classes may be long
    width, height = figure.get_size_inches()
    place = drawn.x0 / width, (drawn.y0 - 0.15) / height
    _text(figure.text(*place, "\n".join(lines), va="top", fontsize=10, color="#444"))


def _text(text: Any) -> None:
    """Turns off the reading of "$" as mathematics."""
    text.set_parse_math(False)
