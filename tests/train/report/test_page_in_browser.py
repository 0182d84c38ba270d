"""report.html in a browser: it draws, follows the pointer and the theme, fits a phone, and logs no errors."""

import json
import re
import shutil

import numpy as np
import pytest
from pictures import DIGITS, a_grid, a_plane, a_run_folder, a_scatter, pixels

from benchmarks.makers.report_picture import CHROMIUM
from train.report.comparison import comparison
from train.report.mistakes import Predictions, write_mistakes
from train.report.page import run_page, write_report
from train.report.pictures import write_pictures
from train.report.reproduce import commands

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")]
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


class Images:
    num_classes = 10

    def gather(self, indices):
        return {"image": np.random.default_rng(0).integers(0, 255, (len(indices), 8, 8, 1), np.uint8)}

    def read_file_names(self, indices):
        return [f"{HOSTILE}/{index}.jpg" for index in indices]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a run folder with every kind of content of a page, and with texts that try to run as code."""
    folder = a_run_folder(tmp_path_factory.mktemp("runs") / "run")
    lines = [{"step": step, "split": "train", "loss": 10.0 - step, HOSTILE: 1.0 * step} for step in range(1, 10)]
    lines.append({"step": 400, "split": "test", "loss": -389.0, "mmd": 1234.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [*DIGITS[:9], HOSTILE]
    (folder / "images.json").write_text(json.dumps({"image_shape": [8, 8, 1], "label_names": names}))
    labels = np.arange(2000) % 10
    write_mistakes(folder, Predictions(labels, np.where(labels % 3, labels, 9), np.linspace(0, 1, 2000)), Images())
    plane = a_plane(4, 5).replace(labels=np.array([9, 0, 4]))  # the darkest colors; class 0 is not drawn
    pictures = {"cells": a_grid(2, 30, 28, 28, caption=HOSTILE), "points": a_scatter(), "plane": plane}
    write_pictures(folder, pictures, names)
    write_report(folder)
    (folder / "comparison.html").write_text(comparison([folder, folder]))
    many = [shutil.copytree(folder, folder.parent / name) for name in "abcde"]
    (folder / "many.html").write_text(comparison(many))
    (folder / "images.json").write_text(json.dumps({"image_shape": [8, 8, 1], "label_names": DIGITS}))
    (folder / "digits.html").write_text(run_page(folder))
    (folder.parent / "classes").mkdir()
    classes = shutil.copytree(folder, folder.parent / "classes" / "run")
    labels = {"column_labels": ("image", "head 1", "head 2", "head 3"), "row_labels": ("first", "a second row")}
    write_pictures(classes, {"heads": a_grid(2, 4, 28, 28).replace(**labels)}, names)
    names = [f"고양이 قطة {HOSTILE} {label}" for label in range(100)]
    for count in (12, 100):
        confusion = np.diag(np.full(count, 7))
        confusion[3, 8] = 2
        (classes / "mistakes.json").write_text(json.dumps({"confusion": confusion.tolist(), "worst": []}))
        (classes / "images.json").write_text(json.dumps({"image_shape": [8, 8, 1], "label_names": names[:count]}))
        (folder / f"classes-{count}.html").write_text(run_page(classes))
    return folder


@pytest.fixture
def shown(browser):
    """Returns a function that opens a page; in the end, asserts that no page logged a message or error."""
    said, pages = [], []

    def show(path, width=1000, theme="light", **options):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme, **options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.extend([request.url] if request.url.startswith("http") else []))
        page.goto(path.as_uri())
        page.wait_for_function(
            "document.querySelector('.uplot') && [...document.images].every(image => image.complete)"
        )
        pages.append(page)
        return page

    yield show
    for page in pages:
        page.close()
    assert said == []


def ink(element):
    """Returns the standard deviation of an element's pixels."""
    return pixels(element.screenshot()).std()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_chart_and_picture_shows_something_and_no_text_runs(shown, folder, theme):
    page = shown(folder / "report.html", theme=theme)
    assert page.title() == "run"
    charts = page.query_selector_all(".chart")
    assert len(charts) == 4  # the loss, the metric with the hostile name, the learning rate, the plane
    for element in [*charts, *page.query_selector_all("img:visible"), page.query_selector(".confusion")]:
        assert ink(element) > 3
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (theme == "light")


@pytest.mark.parametrize("name", ["report.html", "comparison.html", "classes-12.html", "classes-100.html"])
def test_on_a_narrow_screen_nothing_scrolls_sideways(shown, folder, name):
    page = shown(folder / name, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize(("name", "runs"), [("report.html", 1), ("many.html", 5)])
def test_on_a_narrow_screen_no_number_of_the_table_is_broken(shown, folder, name, runs):
    page = shown(folder / name, width=360)
    lines = page.evaluate("""[...document.querySelectorAll('.results td, .runs td')]
        .filter(cell => /^[\\d.-]+$/.test(cell.innerText))
        .map(cell => {
            const content = document.createRange();
            content.selectNodeContents(cell);
            return content.getClientRects().length;
        })""")
    assert lines == [1] * 2 * runs  # the loss and the distance


def test_ten_classes_are_visible_at_once_on_a_phone(shown, folder):
    page = shown(folder / "digits.html", width=390)
    assert page.evaluate("(box => box.scrollWidth <= box.clientWidth)(document.querySelector('.confusion'))")


def luminance(color):
    """Returns the WCAG luminance of a color in the browser's notation."""
    numbers = [float(x) for x in re.findall(r"[\d.]+(?:e-?\d+)?", color.removeprefix("color(srgb"))]
    rgb = np.array(numbers[:3]) / (1 if color.startswith("color") else 255)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_class_can_be_seen_on_a_dark_page(shown, folder):
    page = shown(folder / "digits.html", theme="dark")
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    colors = page.evaluate("""[...document.querySelectorAll('.u-marker')].map(
        marker => getComputedStyle(marker).borderTopColor)""")
    assert len(colors) >= 4
    for color in colors:
        assert (luminance(color) + 0.05) / (paper + 0.05) > 3, color
    assert page.evaluate("getComputedStyle(document.querySelector('img.on-white')).filter").startswith("invert(1)")
    assert pixels(page.query_selector("img.on-white").screenshot()).mean() < 60


def test_a_comparison_marks_train_and_test_by_dashes_in_the_legend_too(shown, folder):
    page = shown(folder / "comparison.html")
    marks = page.evaluate("""[...document.querySelectorAll('[data-curve="0"] .u-series')].slice(1).map(series => [
        series.querySelector('.u-label').textContent,
        getComputedStyle(series.querySelector('.u-marker')).borderTopStyle,
    ])""")
    assert len(marks) == 4
    for label, style in marks:
        assert style == ("dashed" if label.endswith(" train") else "solid")


def test_a_click_on_a_title_sorts_the_runs_and_a_filter_hides_the_others_everywhere(shown, folder):
    page = shown(folder / "many.html")

    def runs():
        return page.evaluate("""[...document.querySelectorAll("[data-run]")].filter(row => !row.hidden)
            .map(row => row.cells[0].textContent)""")

    assert runs() == list("abcde")
    for _ in range(2):
        page.click(".sortable th button >> nth=0")
    assert runs() == list("edcba")
    page.fill("input.filter", " C 1234")
    assert runs() == ["c"]
    visible = page.evaluate("""[...document.querySelectorAll('[data-curve="0"] .u-series:not(.u-off) .u-label')]
        .map(label => label.textContent)""")
    assert visible == ["step", "c train", "c test"]
    page.fill("input.filter", "")
    assert len(runs()) == 5 and not page.query_selector(".u-series.u-off")


def test_numbers_and_durations_are_sorted_by_their_value_and_empty_cells_come_last(shown, folder):
    page = shown(folder / "comparison.html")
    order = page.evaluate("""["1,000", "", "0:59:00", "9", "10:00:00", "b", "a"].map(text => {
        const cell = document.createElement("td");
        cell.textContent = text;
        return key(cell);
    })""")
    assert order == [1000, "", 3540, 9, 36000, "b", "a"]


def test_a_matrix_of_a_hundred_classes_shows_what_is_under_the_pointer(shown, folder):
    page = shown(folder / "classes-100.html", width=390, has_touch=True, is_mobile=True)
    canvas = page.query_selector(".matrix canvas")
    canvas.scroll_into_view_if_needed()
    area = canvas.bounding_box()
    assert area["width"] > 300
    for true, predicted, count in ((3, 8, 2), (5, 5, 7), (8, 3, 0)):
        place = (predicted + 0.5) / 100 * area["width"], (true + 0.5) / 100 * area["height"]
        page.touchscreen.tap(area["x"] + place[0], area["y"] + place[1])
        words = page.inner_text(".matrix output").replace("\u2068", "").replace("\u2069", "")
        names = [f"고양이 قطة {HOSTILE} {label}" for label in (true, predicted)]
        assert words == f"true {names[0]}, predicted {names[1]}: {count} of {9 if true == 3 else 7} test images"
    assert pixels(canvas.screenshot()).std() > 3


@pytest.mark.parametrize("width", [390, 1280])
def test_the_labels_of_a_picture_are_at_their_cells(shown, folder, width):
    page = shown(folder / "classes-12.html", width=width)
    image = page.query_selector(".labeled img").bounding_box()
    for kind, axis, length, count in (("columns", "x", "width", 4), ("rows", "y", "height", 2)):
        labels = [label.bounding_box() for label in page.query_selector_all(f".labeled .{kind} span")]
        assert len(labels) == count
        for place, label in enumerate(labels):
            middle = label[axis] + label[length] / 2
            assert abs(middle - image[axis] - (place + 0.5) / count * image[length]) < 4


def test_between_two_evaluations_the_legend_shows_the_last_one_and_its_step(shown, folder):
    page = shown(folder / "report.html")
    texts = page.evaluate("""(() => {
        const plot = { data: [[10, 20, 30], [null, 0.5, null], [1, 2, 3]] };
        return [[1, 0], [1, 1], [1, 2], [2, 2], [1, null]].map(([row, index]) => reading(plot, row, index));
    })()""")
    assert texts == ["–", "0.5", "0.5 (step 20)", "3", "–"]


def test_long_commands_break_only_before_options(shown, folder):
    page = shown(folder / "report.html")
    (told,) = commands(json.loads((folder / "config.json").read_text()))
    assert page.inner_text("pre") == told
    for width in range(240, 500, 20):
        page.set_viewport_size({"width": width, "height": 800})
        lines = page.evaluate("""[...document.querySelectorAll('pre span')].map(option => {
            const dashes = document.createRange();
            dashes.setStart(option.firstChild, 0);
            dashes.setEnd(option.firstChild, 5);
            return [dashes.toString(), dashes.getClientRects().length];
        })""")
        assert lines == [["--run", 1]]


def test_the_legend_shows_the_values_under_the_pointer(shown, folder):
    page = shown(folder / "report.html")
    chart = page.query_selector("[data-curve='0']")
    area = chart.query_selector(".u-over").bounding_box()
    for part, values in ((0.0, ["1", "9", "–"]), (0.999, ["400", "1 (step 9)", "-389"])):
        page.mouse.move(area["x"] + part * area["width"], area["y"] + 20)
        assert [cell.inner_text() for cell in chart.query_selector_all(".u-value")] == values


def test_moving_the_mouse_over_the_plane_shows_the_image_at_that_place(shown, folder):
    page = shown(folder / "report.html")
    over = page.query_selector("[data-plane] .u-over")
    over.scroll_into_view_if_needed()
    area = over.bounding_box()
    canvas = page.query_selector("canvas.decoded")
    for row, column in ((0, 0), (3, 1), (1, 4)):
        page.mouse.move(area["x"] + (column + 0.5) / 5 * area["width"], area["y"] + (row + 0.5) / 4 * area["height"])
        seen = pixels(canvas.screenshot())[40:-40, 40:-40]
        assert np.abs(seen - 255 * (row * 5 + column) / 20).max() <= 1


def test_touching_the_plane_shows_the_image_at_that_place(shown, folder):
    page = shown(folder / "report.html", width=390, has_touch=True, is_mobile=True)
    over = page.query_selector("[data-plane] .u-over")
    over.scroll_into_view_if_needed()
    area = over.bounding_box()
    page.touchscreen.tap(area["x"] + 0.1 * area["width"], area["y"] + 0.9 * area["height"])
    seen = pixels(page.query_selector("canvas.decoded").screenshot())[40:-40, 40:-40]
    assert np.abs(seen - 255 * (3 * 5) / 20).max() <= 1


def test_charts_are_drawn_again_in_the_colors_of_the_other_theme(shown, folder):
    def chart(page):
        return pixels(page.query_selector(".uplot canvas").screenshot())

    dark = chart(shown(folder / "report.html", theme="dark"))
    page = shown(folder / "report.html")
    assert np.abs(chart(page).astype(int) - dark).mean() > 100
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.querySelectorAll('.chart .uplot').length == 4")
    page.wait_for_timeout(200)
    np.testing.assert_array_equal(chart(page), dark)
