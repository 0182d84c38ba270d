"""The page of a classifier: a canvas to draw on, and a place to drop image files."""

import base64
from collections.abc import Sequence
from pathlib import Path

import gradio as gr  # pyright: ignore[reportMissingImports]
import numpy as np
from jaxtyping import Float

from train.data.decode import decode
from train.demo import html
from train.demo.answering import AT_ONCE, answering, file_problem
from train.demo.classifier import Classifier
from train.process.errors import UserError, as_user_error

CANVAS = 280  # pixels of a side
_PNG = "data:image/png;base64,"
_CANVAS_TEMPLATE = f"""<div class="drawing">
<canvas width="{CANVAS}" height="{CANVAS}" role="img" aria-label="Canvas to draw on"></canvas>
<p><button type="button">Undo</button> <button type="button">Clear</button></p></div>"""
_DIGITS = (
    "Draw one digit, at any size. The program makes it look like the training images (MNIST): white on black, in a box "
    "of 20 × 20 pixels, with lines about 2.6 pixels wide, centered in an image of 28 × 28 pixels."
)
_CANVAS = "Draw on the black square. The model gets the whole square, resized to its own small images."
_FILES = "Each image is resized and cropped as in the evaluation of the model."
_BRIGHT = "The digits of MNIST are white on black. The model is often wrong for a dark digit on white paper."


def add_classifier(model: Classifier) -> None:
    """Adds the page of a classifier to the Gradio page that is being made."""
    if not model.can_draw:
        return _add_files(model)
    with gr.Tabs():
        with gr.Tab("Draw"):
            _add_canvas(model)
        with gr.Tab("Image files"):
            _add_files(model)


def ink_of(drawing: str) -> Float[np.ndarray, "h w"]:
    """How much of each pixel is drawn, from 0 to 1. `drawing` is the value of the canvas.

    Raises:
        UserError: it is not an image.
    """
    encoded = drawing.removeprefix(_PNG)
    if not encoded:
        return np.zeros((CANVAS, CANVAS))
    with as_user_error():
        return decode(base64.b64decode(encoded), 1)[0][..., 0] / 255.0


def answer_files(model: Classifier, places: Sequence[str] | None) -> str:
    """The answers for image files as HTML, each with the name of its file."""
    parts = []
    for path in map(Path, places or ()):
        try:
            shown = html.answer(model.read(path))
        except UserError as error:
            shown = html.problem(file_problem(error, path))
        parts.append(f'<div class="file"><p>{html.text(path.name)}</p>{shown}</div>')
    return "".join(parts) or html.hint("The answers appear here.")


def _add_canvas(model: Classifier) -> None:
    gr.HTML(html.note(_DIGITS if model.is_for_digits else _CANVAS))
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            script = (Path(__file__).parent / "assets" / "canvas.js").read_text()
            canvas = gr.HTML("", html_template=_CANVAS_TEMPLATE, js_on_load=script)
        with gr.Column(scale=3, min_width=280):
            start = html.hint("The answer appears here after each line that you draw.")
            shown = gr.HTML(start, elem_classes="answer")

    def answer(drawing: str) -> str:
        return html.answer(model.draw(ink_of(drawing))) if drawing else start

    canvas.input(answering(answer), canvas, shown, **AT_ONCE)


def _add_files(model: Classifier) -> None:
    gr.HTML(html.note(f"{_FILES} {_BRIGHT}" if model.is_for_digits else _FILES))
    files = gr.File(label="Image files", file_count="multiple", type="filepath", height=180)
    shown = gr.HTML(answer_files(model, None), elem_classes="answer")
    files.change(answering(lambda places: answer_files(model, places)), files, shown, **AT_ONCE)
