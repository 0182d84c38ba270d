"""The Gradio page of a model. Gradio must be installed, and is imported only by the modules of pages."""

from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.themes import Default  # pyright: ignore[reportMissingImports]

from train.demo import html
from train.demo.autoencoder import Autoencoder
from train.demo.autoencoder_page import add_autoencoder
from train.demo.classifier import Classifier
from train.demo.classifier_page import add_classifier
from train.predict import Predictor
from train.predict.predictor import kind_of

_SYSTEM, _SYSTEM_MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


def make_page(predictor: Predictor, place: str) -> gr.Blocks:
    """Makes the page of a model, which was read from `place`.

    Raises:
        UserError: the model can do nothing of what the page shows.
    """
    height, width, channels = predictor.image_shape
    colors = {1: "gray", 3: "RGB", 4: "RGBA"}[channels]
    kind = kind_of(predictor.config)
    about = f"{kind[0].upper()}{kind[1:]}; {colors} images of {width} × {height} pixels"
    if predictor.classifies:
        about += f"; {len(predictor.label_names)} classes"
    note = f"{predictor.note[:1].upper()}{predictor.note[1:]}"
    with gr.Blocks(title=f"{html.shorten(place, 60)} · w2jax", analytics_enabled=False) as page:
        gr.HTML(html.lead(place, [f"{about}. {note}."]))
        if predictor.classifies:
            add_classifier(Classifier(predictor))
        else:
            add_autoencoder(Autoencoder(predictor))
    page.queue(max_size=64, api_open=False)
    return page


def mount_options() -> dict[str, Any]:
    """How Gradio shows the page: with the system's fonts, without links to other sites, and without a history."""
    return {
        "theme": Default(font=_SYSTEM, font_mono=_SYSTEM_MONO),
        "css": html.STYLE,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
        "max_file_size": "100mb",
    }
