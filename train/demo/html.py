"""The parts of the page that show images and answers, as HTML. All texts are escaped."""

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import UInt8

from train.demo.classifier import Answer
from train.report.pictures import encode_png
from w2jax.text import one_line, shorten

STYLE = """
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.figures figure { margin: 0; width: 10rem; max-width: 45%; }
.figures figure.small { width: 5rem; }
.figures figure.large { width: 18rem; max-width: 100%; }
.figures img { display: block; width: 100%; border-radius: 4px; background: #000; }
.figures img.coarse { image-rendering: pixelated; }
.figures figcaption { margin-top: .3rem; font-size: .85rem; color: var(--body-text-color); opacity: .75; }
.classes { flex: 1 1 100%; max-width: 34rem; margin: 0; padding: 0; list-style: none; color: var(--body-text-color); }
.classes li { display: grid; grid-template-columns: 1fr auto; gap: 0 .75rem; margin: 0 0 .55rem; padding: 0; }
.classes li::marker { content: ""; }
.classes .name { overflow-wrap: anywhere; }
.classes .share { font-variant-numeric: tabular-nums; }
.classes .bar { grid-column: 1 / -1; height: .45rem; border-radius: 4px; background: var(--border-color-primary); }
.classes .bar span { display: block; height: 100%; border-radius: 4px; background: var(--color-accent); }
.classes li:first-child .name, .classes li:first-child .share { font-size: 1.25rem; font-weight: 600; }
.file { margin: 0 0 1.5rem; } .file > p:first-child { margin: 0 0 .4rem; font-weight: 600; overflow-wrap: anywhere; }
.problem { padding: .6rem .8rem; border-left: 4px solid #d97706; background: var(--background-fill-secondary); }
.drawing canvas { display: block; width: 100%; max-width: 22rem; border: 1px solid var(--border-color-primary);
  border-radius: 4px; background: #000; cursor: crosshair; touch-action: none; }
.drawing p { margin: .6rem 0 0; }
.drawing button { padding: .35rem 1rem; border: 1px solid var(--border-color-primary); border-radius: 4px;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); cursor: pointer; }
.drawing button:disabled { opacity: .45; cursor: default; }
.hint { color: var(--body-text-color); opacity: .75; }
.lead { max-width: 46rem; } .lead h1 { font-size: 1.4rem; margin: 0; }
.lead p { margin: .4rem 0 0; } .note { max-width: 46rem; margin: .2rem 0; }
"""
_COARSE = 100  # pixels; smaller images are enlarged with visible pixels
_LONGEST = 80  # characters of a class name


def text(words: object, most: int = 300) -> str:
    """Escapes a text and shortens it to one line."""
    return escape(shorten(one_line(str(words)), most))


def figure(pixels: UInt8[np.ndarray, "h w C"], caption: str = "", size: str = "") -> str:
    """An image with its caption. `size` is "", "small" or "large"."""
    content = base64.b64encode(encode_png(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)).decode()
    kind = ' class="coarse"' if max(pixels.shape[:2]) < _COARSE else ""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="{size}"><img{kind} alt="{text(caption)}" src="data:image/png;base64,{content}">{below}'
        "</figure>"
    )


def figures(parts: Sequence[str]) -> str:
    """Several figures side by side."""
    return f'<div class="figures">{"".join(parts)}</div>'


def answer(result: Answer) -> str:
    """The classes of an image, the image that the model got, and where the model looked."""
    rows = [
        f'<li><span class="name">{text(name, _LONGEST)}</span><span class="share">{share:.1%}</span>'
        f'<span class="bar"><span style="width:{100 * share:.1f}%"></span></span></li>'
        for name, share in result.classes
    ]
    height, width = result.image.shape[:2]
    parts = [figure(result.image, f"What the model gets, {width} × {height} pixels")]
    if result.overlay is not None:
        parts.append(figure(result.overlay, "Where it looked: red is more attention"))
    return figures([f'<ol class="classes">{"".join(rows)}</ol>', *parts])


def problem(message: object) -> str:
    """A message that something cannot be done."""
    words = text(message)
    return f'<p class="problem" role="alert">{words[:1].upper()}{words[1:]}</p>'


def note(message: str) -> str:
    """An explanation above what it is about."""
    return f'<p class="note">{text(message, 1000)}</p>'


def hint(message: str) -> str:
    """A text where an answer will be."""
    return f'<p class="hint">{text(message)}</p>'


def lead(title: str, paragraphs: Sequence[str]) -> str:
    """The title of the page and what is below it."""
    rest = "".join(f"<p>{text(paragraph, 1000)}</p>" for paragraph in paragraphs)
    return f'<div class="lead"><h1>{text(title)}</h1>{rest}</div>'
