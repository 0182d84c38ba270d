"""report.html: one self-contained page that shows a run."""

import base64
import html
import json
from collections.abc import Mapping

from train.report.metrics import read_lines
from train.report.pictures import picture_path, plain, saved
from train.run_folder import RunFolder, flattened
from train.task import Picture
from train.whole import write_whole

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dce3, #3a404b); --soft: light-dark(#5a6372, #a3adbd); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  background: light-dark(#fff, #14171c); color: light-dark(#1b1f26, #e8ebf0); }
h1, h2, figcaption { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
img { max-width: 100%; box-sizing: border-box; border-radius: .4rem; border: 1px solid var(--line); }
.curves img { width: 100%; background: #fff; } .scroll { overflow-x: auto; } figure { margin: 0; }
table { border-collapse: collapse; } td { border-bottom: 1px solid var(--line); padding: .25rem 1.5rem .25rem 0; }
figcaption, td:first-child { color: var(--soft); } details { margin-top: 2rem; }
"""

# Nothing is loaded and nothing runs, whatever a text that came from elsewhere holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def write_page(folder: RunFolder, pictures: Mapping[str, Picture]) -> None:
    """Writes `report.html` from the run folder's metrics and the files that `write_pictures` made of `pictures`."""
    lines = read_lines(folder.metrics)
    config = flattened(json.loads((folder.path / "config.json").read_text()))
    test = [line for line in lines if line.get("split") == "test"][-1]
    names = sorted({name for line in lines for name in line} - {"step", "split"})
    results = {f"test {name}": f"{test[name]:.4f}" for name in names if name in test} | {"steps": f"{test['step']:,}"}
    title = _text(folder.path.name)
    curves = "".join(
        f"<img alt='{_text(name)} by step' src='{_curve(lines, name)}'>"
        for name in names
        if sum(name in line for line in lines) > 1  # One point is no curve: it stands in the table.
    )
    shown = "".join(
        f"<h2>{_text(name.replace('_', ' ').capitalize())}</h2>"
        f"<figure><img alt='{_text(picture.caption)}' "
        f"src='{_inlined('image/png', picture_path(folder, name).read_bytes())}'>"
        f"<figcaption>{_text(picture.caption)}</figcaption></figure>"
        for name, picture in pictures.items()
    )
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">'
        "<meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>{_table(results)}"
        f"<h2>Curves</h2><div class=curves>{curves}</div>{shown}"
        f"<details><summary>Config</summary>{_table({k: str(v) for k, v in config.items()})}</details></html>\n"
    )
    write_whole(folder.report, page)


def _table(rows: dict[str, str]) -> str:
    cells = "".join(f"<tr><td>{_text(k)}<td>{_text(v)}" for k, v in rows.items())
    return f"<div class=scroll><table>{cells}</table></div>"


def _text(text: str) -> str:
    """Text of the user's as HTML, between tags or in an attribute; what no line can show stands as its number."""
    return html.escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def _curve(lines: list[dict], name: str) -> str:
    """One metric over the steps, a line for each split, as the address of an inlined picture."""
    from matplotlib.figure import Figure  # Imported late: half a second that a run needs only at its end.

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for split, style in (("train", "-"), ("test", "o-")):
        points = [(line["step"], line[name]) for line in lines if line.get("split") == split and name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=split, markersize=3, linewidth=1.3)
    axes.set_title(plain(name.replace("_", " ")), parse_math=False)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return _inlined("image/svg+xml", saved(figure, "svg"))


def _inlined(kind: str, content: bytes) -> str:
    """A picture as an address that holds all of it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
