"""report.html: one self-contained page that shows a run."""

import base64
import html
import io
import json

import numpy as np
from PIL import Image

from train.report.metrics import read_lines
from train.run_folder import RunFolder, flattened

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dce3, #3a404b); --soft: light-dark(#5a6372, #a3adbd); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  background: light-dark(#fff, #14171c); color: light-dark(#1b1f26, #e8ebf0); }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
.curves img { width: 100%; background: #fff; border-radius: .4rem; border: 1px solid var(--line); }
.scroll { overflow-x: auto; } .grid { image-rendering: pixelated; max-width: 100%; border-radius: .4rem; }
table { border-collapse: collapse; } td { border-bottom: 1px solid var(--line); padding: .25rem 1.5rem .25rem 0; }
p, td:first-child { color: var(--soft); } details { margin-top: 2rem; }
"""


def write_page(folder: RunFolder, pictures: dict[str, np.ndarray]) -> None:
    """Writes `report.html` from the run folder's metrics and `pictures`, each [rows, columns, h, w] in [0, 1]."""
    lines = read_lines(folder.metrics)
    config = flattened(json.loads((folder.path / "config.json").read_text()))
    test = [line for line in lines if line["split"] == "test"][-1]
    names = sorted({name for line in lines for name in line} - {"step", "split"})
    results = {f"test {name}": f"{test[name]:.4f}" for name in names if name in test} | {"steps": f"{test['step']:,}"}
    title = html.escape(folder.path.name)
    curves = "".join(f"<img alt='{html.escape(name)} by step' src='{_curve(lines, name)}'>" for name in names)
    grids = "".join(
        f"<h2>{html.escape(name.capitalize())}</h2>"
        f"<div class=scroll><img class=grid alt='{html.escape(name)}' src='{_grid(cells)}'></div>"
        for name, cells in pictures.items()
    )
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>{_table(results)}"
        f"<h2>Curves</h2><div class=curves>{curves}</div>{grids}"
        f"<details><summary>Config</summary>{_table({k: str(v) for k, v in config.items()})}</details></html>\n"
    )
    scratch = folder.report.with_suffix(".new")
    scratch.write_text(page)
    scratch.replace(folder.report)


def _table(rows: dict[str, str]) -> str:
    cells = "".join(f"<tr><td>{html.escape(k)}<td>{html.escape(v)}" for k, v in rows.items())
    return f"<div class=scroll><table>{cells}</table></div>"


def _curve(lines: list[dict], name: str) -> str:
    """One metric over the steps, a line for each split, as the address of an inlined picture."""
    from matplotlib.figure import Figure  # Imported late: half a second that a run needs only at its end.

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for split, style in (("train", "-"), ("test", "o-")):
        points = [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=split, markersize=3, linewidth=1.3)
    axes.set(title=name.replace("_", " "), xlabel="step")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()


def _grid(cells: np.ndarray, gap: int = 2, zoom: int = 2) -> str:
    """Gray cells in rows and columns, as the address of an inlined picture."""
    framed = np.pad(cells, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=0.5)
    rows, columns, height, width = framed.shape
    sheet = framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    picture = Image.fromarray((np.clip(sheet, 0, 1) * 255).astype(np.uint8))
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
