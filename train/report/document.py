"""The HTML document of a report: one file that loads nothing and runs only its own two scripts."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from w2jax.text import one_line

_ASSETS = Path(__file__).parent / "assets"
_REFRESH_SECONDS = 15  # interval at which a browser reloads the page of an unfinished run


def document(title: str, body: str, drawn: Mapping[str, Any], refresh: bool) -> str:
    """Returns the HTML document. It loads no other files and runs only its two scripts, even if a text has HTML.

    Args:
        title: the page's title, as plain text.
        body: the HTML below the title.
        drawn: what the page's script draws, as JSON.
        refresh: whether a browser reloads the page every few seconds.
    """
    library, script = ((_ASSETS / name).read_text() for name in ("uPlot.iife.min.js", "page.js"))
    style = (_ASSETS / "uPlot.min.css").read_text() + (_ASSETS / "page.css").read_text()
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (library, script))
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    values = json.dumps(drawn).replace("<", "\\u003c")  # Otherwise "</script>" in a text would end the data.
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">'
        "<meta name=viewport content='width=device-width'>"
        + (f"<meta http-equiv=refresh content={_REFRESH_SECONDS}>" if refresh else "")
        + f"<title>{escaped(title)}</title><style>{style}</style><h1>{escaped(title)}</h1>{body}"
        f"<script type=application/json id=data>{values}</script>"
        f"<script>{library}</script><script>{script}</script></html>\n"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def table(rows: Mapping[str, tuple[str, str]]) -> str:
    """Returns a table with a row for each name, with its value and its description."""
    cells = "".join(
        f"<tr><td>{escaped(name)}<td>{escaped(value)}<td class=about>{escaped(about)}"
        for name, (value, about) in rows.items()
    )
    return f"<div class=scroll><table>{cells}</table></div>"


def sortable(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Returns a table that the page's script makes sortable, and that it can filter. All texts are HTML.

    `kind` is a class of the stylesheet.
    """
    titles = "".join(f"<th>{title}" for title in head)
    cells = "".join(f"<tr>{''.join(f'<td>{cell}' for cell in row)}" for row in rows)
    return f"<div class='scroll sortable {kind}'><table><thead><tr>{titles}<tbody>{cells}</table></div>"


def spaced(name: str) -> str:
    """Returns a metric's or picture's name with spaces."""
    return name.replace("_", " ")


def escaped(text: str) -> str:
    """Escapes text for HTML, between tags or in an attribute."""
    return html.escape(one_line(text))


def named(text: str) -> str:
    """Escapes a name in any script. Text around a name that is written from right to left keeps its order."""
    return f"<bdi>{escaped(text)}</bdi>"


def png_address(content: str) -> str:
    """Returns the data URL of a PNG file, from its base64 text."""
    return f"data:image/png;base64,{content}"
