"""Answers of a classifier to drawings and image files."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from train.demo.drawing import to_mnist, whole_canvas
from train.predict import Predictor
from train.report.pictures import encode_png, to_pixels

_TOP = 5  # classes in an answer
_LARGEST_DRAWING = 64  # pixels; a drawing does not look like a larger image, which is a photograph


class Answer(NamedTuple):
    """What a classifier says about an image."""

    image: UInt8[np.ndarray, "h w C"]
    """The image that the model got."""
    overlay: UInt8[np.ndarray, "h w 3"] | None
    """The image, red where the model attends; None: the task shows no attention."""
    classes: list[tuple[str, float]]
    """The most probable classes with their probabilities, the most probable first."""


class Classifier:
    """A classifier that is compiled once, for one image."""

    def __init__(self, predictor: Predictor):
        """Compiles the model. `predictor` must classify."""
        self.predictor = predictor
        self._overlay = None if predictor.task.overlay is None else jax.jit(predictor.task.overlay)
        self._answer(np.zeros(predictor.image_shape, np.uint8))

    @property
    def has_attention(self) -> bool:
        """Whether an answer has an overlay."""
        return self._overlay is not None

    @property
    def can_draw(self) -> bool:
        """Whether the model gets small gray squares, so that a drawing makes sense."""
        height, width, channels = self.predictor.image_shape
        return channels == 1 and height == width <= _LARGEST_DRAWING

    @property
    def is_for_digits(self) -> bool:
        """Whether the classes are the ten digits. A drawing is then brought into the form of MNIST's images."""
        return self.can_draw and sorted(self.predictor.label_names) == list("0123456789")

    def draw(self, ink: Float[np.ndarray, "h w"]) -> Answer:
        """Answers for a drawing.

        Args:
            ink: how much of each pixel is drawn, from 0 to 1.

        Raises:
            UserError: nothing is drawn.
        """
        drawing = to_mnist(ink) if self.is_for_digits else whole_canvas(ink)
        return self._answer(self.predictor.decode(encode_png(drawing)))

    def read(self, path: Path) -> Answer:
        """Answers for an image file.

        Raises:
            UserError: the file cannot be read as an image.
        """
        return self._answer(self.predictor.read([path])[0])

    def _answer(self, image: UInt8[np.ndarray, "h w C"]) -> Answer:
        state, names = self.predictor.state, self.predictor.label_names
        probabilities = self.predictor(image[None])[0]
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        overlay = None if self._overlay is None else to_pixels(np.asarray(self._overlay(state, image[None]))[0])
        return Answer(image, overlay, [(names[k], float(probabilities[k])) for k in best])
