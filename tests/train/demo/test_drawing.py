"""A drawing gets the form of MNIST's digits, whatever its size, its place and the width of its lines."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from configs.base import Data
from train.data import open_source
from train.demo.drawing import BOX, CENTER, SIDE, to_mnist
from train.process.errors import UserError

# The corners of a 3, in a square of side 1.
THREE = [(0.3, 0.2), (0.7, 0.2), (0.45, 0.45), (0.7, 0.65), (0.5, 0.85), (0.3, 0.75)]


def drawn(points, width, size=400, scale=0.9, shift=(0, 0)):
    """Returns the ink of a line through the points on a canvas of `size` × `size` pixels."""
    image = Image.new("L", (size, size))
    pen = ImageDraw.Draw(image)
    places = [
        tuple(size / 2 + size * scale * (v - 0.5) + move for v, move in zip(p, shift, strict=True)) for p in points
    ]
    pen.line(places, fill=255, width=width)
    for x, y in places:
        pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=255)
    return np.asarray(image) / 255.0


def center(image):
    """Returns the row and the column of an image's center of mass."""
    return [float(image.sum(axis=axis) @ np.arange(SIDE) / image.sum()) for axis in (1, 0)]


@pytest.mark.parametrize(
    "options",
    [
        {"width": 2},
        {"width": 6},
        {"width": 48},
        {"width": 10, "shift": (-70, 50), "scale": 0.5},
        {"width": 24, "scale": 1.4},
        {"width": 80, "size": 1300},
        {"width": 8, "size": 151},
    ],
)
def test_every_drawing_of_a_digit_gives_the_same_image(options):
    expected = to_mnist(drawn(THREE, 22)).astype(float)
    found = to_mnist(drawn(THREE, **options)).astype(float)
    assert np.abs(found - expected).mean() < 5  # of 255; a shift by one pixel gives 14
    assert np.abs(np.roll(expected, 1, axis=1) - expected).mean() > 10


def test_the_digit_fills_its_box_and_its_center_of_mass_is_that_of_mnist():
    image = to_mnist(drawn(THREE, 9, shift=(-31, 17)))
    assert image.shape == (SIDE, SIDE) and image.dtype == np.uint8
    assert np.ptp(np.flatnonzero((image > 100).any(axis=1))) + 1 == pytest.approx(BOX, abs=1)
    np.testing.assert_allclose(center(image), CENTER, atol=0.1)
    assert image.max() == 255 and image[0].max() == 0


def test_a_wide_drawing_keeps_its_proportions_and_all_of_it_is_in_the_image():
    image = to_mnist(drawn([(0.05, 0.5), (0.95, 0.5), (0.95, 0.6)], 12))
    rows, columns = (np.flatnonzero((image > 100).any(axis=axis)) for axis in (1, 0))
    assert len(columns) == pytest.approx(BOX, abs=1) and 4 <= len(rows) <= 6
    # All of the mass is at one end: the box would leave the image if only the center of mass counted.
    heavy = drawn([(0.05, 0.1), (0.95, 0.1)], 4) + drawn([(0.9, 0.1), (0.95, 0.1), (0.9, 0.3), (0.95, 0.3)], 40)
    shown = np.flatnonzero((to_mnist(heavy.clip(0, 1)) > 100).any(axis=0))
    assert len(shown) == pytest.approx(BOX, abs=1)


def test_a_digit_of_mnist_stays_as_it_is():
    digits = open_source(Data(), "test[:40]").gather(np.arange(40))["image"][..., 0]
    large = [
        np.asarray(Image.fromarray(digit).resize((280, 280), Image.Resampling.BICUBIC)) / 255.0 for digit in digits
    ]
    found = np.stack([to_mnist(ink) for ink in large])
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(found, digits, strict=True)]
    assert np.mean(correlation) > 0.9
    assert found.mean() == pytest.approx(digits.mean(), rel=0.15)  # the lines have the width of MNIST's


def test_a_dot_gives_an_image():
    image = to_mnist(drawn([(0.2, 0.3)], 30))
    assert image.max() == 255 and 0.5 < np.mean(image[4:24, 4:24]) / 255 < 0.9
    assert to_mnist(np.eye(1)).max() == 255


@pytest.mark.parametrize("ink", [np.zeros((30, 40)), np.full((30, 40), 0.4)])
def test_an_empty_canvas_is_a_clear_message(ink):
    with pytest.raises(UserError, match=r"^the drawing is empty. Draw a digit$"):
        to_mnist(ink)
