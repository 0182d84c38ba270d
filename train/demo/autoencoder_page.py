"""The page of an autoencoder: its codes, the way between two images, samples of the prior, and reconstructions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr  # pyright: ignore[reportMissingImports]
import numpy as np

from train.data import Source
from train.demo import html
from train.demo.answering import AT_ONCE, answering, file_problem
from train.demo.autoencoder import Autoencoder, Pixels
from train.process.errors import UserError

_STEPS = 9  # images from the first to the second, below the image at the slider


class _Choice(NamedTuple):
    """The components that choose an image, and their label."""

    label: str
    inputs: list[Any]


def add_autoencoder(model: Autoencoder) -> None:
    """Adds the page of an autoencoder to the Gradio page that is being made.

    Raises:
        UserError: the model can do nothing of what the page shows.
    """
    try:
        source, missing = model.test_images(), ""
    except UserError as error:
        source, missing = None, str(error)
    tabs = [
        ("Codes", _add_codes, model.latent is not None),
        ("Between two images", _add_walk, model.latent is not None),
        ("Samples", _add_samples, model.predictor.task.sample is not None),
        ("Reconstruction", _add_reconstruction, model.reconstructs),
    ]
    if not any(is_shown for *_, is_shown in tabs):
        raise UserError("the model must classify, reconstruct or generate images for a demo. Choose another run")
    if missing:
        gr.HTML(html.note(f"There are no test images to choose: {missing}"))
    with gr.Tabs():
        for name, add, is_shown in tabs:
            if is_shown:
                with gr.Tab(name):
                    add(model, source)


def _add_codes(model: Autoencoder, _: Source | None) -> None:
    size, ranges = model.codes.size, model.ranges()
    gr.HTML(
        html.note(
            f"The model describes an image by a code of {size} numbers. Move the sliders: the decoder draws the image "
            "of that code. The sliders span the range of the prior, the distribution that the codes were trained to "
            "follow."
        )
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            kind = _add_kind(model, model.codes.num_kinds > 0)
            sliders = [
                gr.Slider(low, high, value=0.0, step=0.01, label=f"Code, number {k + 1}", buttons=[])
                for k, (low, high) in enumerate(ranges)
            ]
        with gr.Column(scale=3, min_width=300):
            shown = gr.HTML(elem_classes="answer")

    @answering
    def draw(*values: Any) -> str:
        z, chosen = (values[1:], values[0]) if kind else (values, None)
        return html.figures([html.figure(model.decode(z, chosen), "Decoded image", "large")])

    _show([*kind, *sliders], draw, shown)


def _add_walk(model: Autoencoder, source: Source | None) -> None:
    gr.HTML(
        html.note(
            "Choose two images. The slider moves along the straight line from the code of the first image to the code "
            "of the second, and the decoder draws each step."
        )
    )
    with gr.Row():
        first = _add_choice("First image", source, 0)
        second = _add_choice("Second image", source, 1)
    kind = _add_kind(model, model.needs_kind)
    share = gr.Slider(0.0, 1.0, value=0.5, step=0.01, label="Position, 0: first image, 1: second image", buttons=[])
    shown = gr.HTML(elem_classes="answer")

    @answering
    def walk(share: float, *values: Any) -> str:
        count = len(first.inputs)
        start = _chosen(model, source, values[:count], first.label)
        end = _chosen(model, source, values[count : 2 * count], second.label)
        label = values[-1] if kind else None
        shares = [step / (_STEPS - 1) for step in range(_STEPS)]
        middle, *steps = model.walk(start, end, [share, *shares], label)
        large = [html.figure(start, first.label), html.figure(middle, f"Decoded at {share:.0%}")]
        return html.figures([*large, html.figure(end, second.label)]) + html.figures(
            [html.figure(step, f"{share:.0%}", "small") for share, step in zip(shares, steps, strict=True)]
        )

    _show([share, *first.inputs, *second.inputs, *kind], walk, shown)


def _add_samples(model: Autoencoder, _: Source | None) -> None:
    gr.HTML(html.note("Codes sampled from the prior, decoded to images. The same seed gives the same images."))
    with gr.Row():
        seed = gr.Number(value=0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed")
        button = gr.Button("Sample", variant="primary")
    shown = gr.HTML(elem_classes="answer")

    @answering
    def sample(value: int | None) -> str:
        return html.figures([html.figure(image, size="small") for image in model.sample(int(value or 0))])

    button.click(lambda value: int(value or 0) + 1, seed, seed, **AT_ONCE)
    _show([seed], sample, shown)


def _add_reconstruction(model: Autoencoder, source: Source | None) -> None:
    gr.HTML(html.note("The encoder computes the code of an image, and the decoder draws that code."))
    choice = _add_choice("Image", source, 0)
    shown = gr.HTML(elem_classes="answer")

    @answering
    def reconstruct(*values: Any) -> str:
        image = _chosen(model, source, values, choice.label)
        return html.figures([html.figure(image, choice.label), html.figure(model.reconstruct(image), "Reconstruction")])

    _show(choice.inputs, reconstruct, shown)


def _add_kind(model: Autoencoder, is_needed: bool) -> list[Any]:
    """Adds a choice of the label or category that the decoder needs, or returns [] if it needs none."""
    if not is_needed:
        return []
    names = model.codes.label_names or map(str, range(model.codes.num_kinds))
    choices = [(html.shorten(name, 80), number) for number, name in enumerate(names)]
    return [gr.Dropdown(choices, value=0, label="Label or category", filterable=False)]


def _add_choice(label: str, source: Source | None, number: int) -> _Choice:
    """Adds what chooses an image: the number of a test image if there are any, and a file."""
    inputs = []
    with gr.Column(min_width=240):
        if source is not None:
            last = len(source) - 1
            inputs.append(
                gr.Number(
                    value=min(number, last),
                    precision=0,
                    minimum=0,
                    maximum=last,
                    label=f"{label}: test image 0 to {last}",
                )
            )
        words = "or drop an image file" if inputs else f"{label}: drop an image file"
        inputs.append(gr.File(label=words, type="filepath", height=120))
    return _Choice(label, inputs)


def _chosen(model: Autoencoder, source: Source | None, values: Sequence[Any], label: str) -> Pixels:
    """The image that the components of a choice name. A file counts more than the number of a test image."""
    place = values[-1]
    if place is not None:
        try:
            return model.read(Path(place))
        except UserError as error:
            raise UserError(f"{label.lower()} {file_problem(error, Path(place))}") from error
    if source is None:
        raise UserError(f"{label.lower()} is missing. Drop an image file")
    return source.gather(np.array([min(max(int(values[0] or 0), 0), len(source) - 1)]))["image"][0]


def _show(inputs: list[Any], function: Any, shown: Any) -> None:
    """Shows the answer when the page opens and after each change of an input."""
    gr.on(None, function, inputs, shown, **AT_ONCE)
