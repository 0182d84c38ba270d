"""The pictures of a run: their content, and that any class name works."""

import base64
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from pictures import DIGITS, a_grid, a_run_folder, a_scatter, pixels
from PIL import Image

from train.report.page import run_page
from train.report.pictures import GAP, MAX_WIDTH, class_colors, encode_picture, scatter_figure, write_pictures
from train.task import Grid, Scatter


def legend(figure):
    return figure.legends[0]


@pytest.fixture
def folder(tmp_path):
    return a_run_folder(tmp_path / "run")


def test_every_picture_is_a_file_and_the_page_has_the_same_bytes(folder):
    pictures = {"cells": a_grid(2, 3, 4, 5), "latent_points": a_scatter()}
    write_pictures(folder, pictures, DIGITS)
    page = run_page(folder)
    assert sorted(path.name for path in (folder / "pictures").glob("*.png")) == ["cells.png", "latent_points.png"]
    for name in pictures:
        content = (folder / "pictures" / f"{name}.png").read_bytes()
        assert pixels(content).std() > 1
        assert f"src='data:image/png;base64,{base64.b64encode(content).decode()}'" in page
    assert "<h2>Latent points</h2>" in page


def test_pictures_come_out_of_a_jitted_function_with_their_captions():
    made = jax.jit(lambda x: {"a": Grid(x[None, None], "A."), "b": Scatter(x, jnp.arange(3), x, None, "B.")})
    made = made(jnp.ones((3, 2)))
    assert made["a"].caption == "A." and made["b"].caption == "B." and made["b"].marks is None


@pytest.mark.parametrize(
    ("shape", "zoom"), [((2, 3, 8, 12), 8), ((20, 20, 28, 28), 2), ((3, 40, 28, 28), 1), ((1, 9, 7, 224), 1)]
)
def test_each_value_of_a_grid_is_a_square_of_pixels_with_gaps_around_cells(shape, zoom):
    grid = a_grid(*shape)
    sheet = pixels(encode_picture(grid, []))[..., 0]
    rows, columns, height, width = shape
    assert sheet.shape == (rows * (height * zoom + GAP) - GAP, columns * (width * zoom + GAP) - GAP)
    assert sheet.shape[1] <= MAX_WIDTH or zoom == 1
    for row, column in ((0, 0), (rows - 1, 0), (0, columns - 1), (rows - 1, columns - 1)):
        top, left = row * (height * zoom + GAP), column * (width * zoom + GAP)
        cell = sheet[top : top + height * zoom, left : left + width * zoom]
        expected = np.kron(np.round(grid.cells[row, column] * 255), np.ones((zoom, zoom)))
        np.testing.assert_array_equal(cell, expected)
    opaque = np.asarray(Image.open(io.BytesIO(encode_picture(grid, []))))[..., 3]
    np.testing.assert_array_equal(opaque[:, width * zoom : width * zoom + GAP], 0)
    assert (opaque[: height * zoom, : width * zoom] == 255).all()


def test_cells_in_color_keep_their_colors():
    grid = a_grid(2, 3, 4, 5, 3)
    sheet = pixels(encode_picture(grid, []))
    zoom = (sheet.shape[1] + GAP) // 3 // 5
    cell = sheet[4 * zoom + GAP : 8 * zoom + GAP : zoom, : 5 * zoom : zoom]
    np.testing.assert_array_equal(cell, np.round(grid.cells[1, 0] * 255))


def test_points_are_drawn_at_their_place_in_the_color_of_their_class():
    """Marks are drawn above them."""
    angles = np.arange(10) * 0.6
    places = np.stack([np.cos(angles), 0.5 * np.sin(angles)], axis=1)
    background, marks = np.array([[0.0, 0.0], [3.0, 0.3], [0.0, 0.2]]), np.array([[0.0, 0.2], places[4]])
    labels = np.repeat(np.arange(10), 12)  # twelve half-transparent points cover what is below them
    picture = a_scatter(places[labels], labels, background, marks)
    drawn = pixels(encode_picture(picture, DIGITS))
    figure = scatter_figure(picture, DIGITS)
    figure.savefig(io.BytesIO(), format="png")  # computes the layout
    place = figure.axes[0].transData.transform

    def color_at(point):
        x, y = place(point)
        return drawn[drawn.shape[0] - 1 - int(y), int(x)] / 255

    for label in {*range(10)} - {4}:
        np.testing.assert_allclose(color_at(places[label]), to_rgb(class_colors(10)[label]), atol=0.02)
    gray = color_at(background[0])
    assert np.ptp(gray) < 0.1 and 0.7 < gray.mean() < 0.95
    np.testing.assert_array_equal(gray, color_at(background[1]))
    for mark in marks:
        np.testing.assert_allclose(color_at(mark), 0, atol=0.02)
    np.testing.assert_allclose(place((1, 0))[0] - place((0, 0))[0], place((0, 1))[1] - place((0, 0))[1])


def test_points_that_are_padding_are_not_drawn():
    alone = a_scatter([(0.0, 0.0), (1.0, 2.0)], [0, 1])
    filled = a_scatter([(0.0, 0.0), (np.nan, np.nan), (1.0, 2.0)], [0, 7, 1])
    np.testing.assert_array_equal(pixels(encode_picture(filled, DIGITS)), pixels(encode_picture(alone, DIGITS)))


def test_the_legend_names_the_visible_classes_in_their_colors():
    entries = legend(scatter_figure(a_scatter([(0.0, 0.0)] * 3, [7, 2, 7]), list("abcdefgh")))
    assert [text.get_text() for text in entries.get_texts()] == ["c", "h"]
    assert [line.get_color() for line in entries.get_lines()] == [class_colors(8)[2], class_colors(8)[7]]


@pytest.mark.parametrize("count", [10, 11, 100])
def test_class_colors_differ_from_each_other_and_from_the_background(count):
    colors = np.array([to_rgb(color) for color in class_colors(count)])
    apart = np.abs(colors[:, None] - colors).sum(axis=-1) + 9 * np.eye(count)
    assert len(colors) == count
    assert apart.min() > (0.4 if count == 10 else 0.02)
    assert np.ptp(colors, axis=1).min() > 0.3


def test_names_of_classes_are_drawn_literally():
    names = [r"$\frac$", "_hidden", "<b>&", "a_1 $x$", "猫", "x" * 80]
    points = np.random.default_rng(0).normal(size=(7, 2))
    picture = a_scatter(points, np.arange(7))
    shown = [text.get_text() for text in legend(scatter_figure(picture, names)).get_texts()]
    assert shown[:5] == names[:5]
    assert shown[5].startswith("xxx") and len(shown[5]) < 30  # long names leave room for the points
    assert shown[6] == "6"  # class without a name
    assert pixels(encode_picture(picture, names)).std() > 1
