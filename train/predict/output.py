"""The output of train.predict: a table of classes or JSON, and pictures."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from train.predict.predictor import Predictor
from train.process.errors import UserError
from train.report.pictures import encode_png, to_pixels
from train.run.atomic import check_no_link, write_atomic
from w2jax.text import one_line


def print_classes(
    predictor: Predictor,
    paths: Sequence[Path],
    probabilities: Float[np.ndarray, "B V"],
    top_k: int | None,
    as_json: bool,
) -> None:
    """Prints the `top_k` most probable classes of each image as a table, or as one JSON object per line."""
    rows = best_classes(predictor, probabilities, top_k)
    if as_json:
        for path, row in zip(paths, rows, strict=True):
            print(json.dumps({"image": str(path), **row[0], "top": row}))
        return
    from rich.console import Console
    from rich.table import Table

    # A terminal breaks long names into lines, because a name that is cut could be that of several images.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 10_000)
    table = Table()
    longest = max(len(one_line(str(path))) for path in paths)
    table.add_column("image", overflow="fold", min_width=min(longest, console.width // 4))
    for k in range(len(rows[0])):
        table.add_column(f"{k + 1}.", overflow="fold")
    for path, row in zip(paths, rows, strict=True):
        table.add_row(one_line(str(path)), *(one_line(f"{x['label']}  {x['probability']:.1%}") for x in row))
    console.print(table)
    console.print(one_line(predictor.note))


def best_classes(
    predictor: Predictor, probabilities: Float[np.ndarray, "B V"], top_k: int | None
) -> list[list[dict[str, Any]]]:
    """Returns the `top_k` (default: 3) most probable classes of each image, as label and probability."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, : 3 if top_k is None else top_k]
    return [
        [{"label": predictor.label_names[k], "probability": float(row[k])} for k in order]
        for row, order in zip(probabilities, best, strict=True)
    ]


def above(images: Float[np.ndarray, "B h w C"], others: Float[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "H W C"]:
    """Images in rows, each above its counterpart in `others`."""
    return in_rows(np.concatenate([images, others], axis=1))


def in_rows(images: Float[np.ndarray, "B h w C"]) -> UInt8[np.ndarray, "H W C"]:
    """Images in [0, 1], ten per row. Black images fill up the last row."""
    columns = min(10, len(images))
    filled = np.concatenate([images, np.zeros((-len(images) % columns, *images.shape[1:]), images.dtype)])
    return rearrange(to_pixels(filled), "(r k) h w c -> (r h) (k w) c", k=columns)


def write_png(path: Path, pixels: UInt8[np.ndarray, "H W C"], run_dir: Path) -> None:
    """Writes a PNG file, but not through a link in the run folder. Small images are enlarged."""
    zoom = max(1, 1000 // max(pixels.shape))
    check_no_link(path.parent, run_dir)
    large = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    try:
        write_atomic(path, encode_png(large[..., 0] if large.shape[-1] == 1 else large))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Choose another file") from error
    print(one_line(f"wrote {path}"), file=sys.stderr)
