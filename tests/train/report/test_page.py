"""report.html: what it shows for one run and for several."""

import base64
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pictures import DIGITS, a_grid, a_plane, a_run_folder, a_scatter, pixels

import configs.aae
import configs.base
import configs.lstm
import configs.mha
import configs.vit
from configs.vit import PRESETS
from train.config.cli import parse
from train.config.tree import config_to_tree
from train.process.errors import UserError
from train.report.__main__ import main as report
from train.report.comparison import comparison
from train.report.mistakes import (
    Predictions,
    balanced_accuracy,
    confusion_matrix,
    precision_and_recall,
    read_mistakes,
    write_mistakes,
)
from train.report.page import run_page, write_report
from train.report.pictures import write_pictures
from train.report.reproduce import commands


@pytest.fixture
def folder(tmp_path):
    return a_run_folder(tmp_path / "run")


class Shown(HTMLParser):
    """The tags, captions and alt texts that a browser reads from a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.alts, self.captions = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.alts += [value for name, value in attrs if name == "alt"]

    def handle_data(self, data):
        if self.tags[-1] == "figcaption" and data.strip():
            self.captions.append(data)


def test_a_caption_is_shown_as_it_is_written(folder):
    caption = "<script>alert('1')</script> & \"$x_1$\""
    pictures = {"cells": a_grid(1, 1, 4, 4, caption=caption), "points": a_scatter(caption=caption)}
    write_pictures(folder, pictures, DIGITS)
    shown = Shown(run_page(folder))
    assert shown.tags.count("script") == 3  # the data, uPlot, and our script
    assert shown.captions == [caption, caption]
    assert shown.alts[-2:] == [caption, caption]


def drawn(page):
    """Returns the data that the page's script draws."""
    return json.loads(re.search(r"<script type=application/json id=data>(.*?)</script>", page).group(1))


def test_a_curve_has_every_point_of_its_metric(folder):
    """A metric with a single value is in the table only."""
    page = run_page(folder)
    assert "<td>test distance<td>0.2500" in page
    assert "<td>test loss<td>1.5000<td class=about>cross-entropy" in page
    assert re.findall("<h3>(.*?)</h3>", page) == ["loss", "learning rate"]
    curve, _ = drawn(page)["curves"]
    assert curve["labels"] == ["train", "test"]
    assert curve["data"] == [[2, 4], [2.0, 1.0], [None, 1.5]]


def test_the_speed_is_the_median_of_the_rows_and_names_the_device(folder):
    lines = [{"step": s, "seconds": 40.0 * s, "examples_per_second": speed} for s, speed in ((2, 9.0), (4, 200.0))]
    lines.append({"step": 6, "seconds": 3661.4, "examples_per_second": 1500.0, "devices": "2 TPU devices"})
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = run_page(folder)
    assert "<th>examples per second<td>200<tr" in page and "<th>devices<td>2 TPU devices<tr" in page
    assert "<th>time to the last step<td>1:01:01<" in page


def test_values_that_are_not_numbers_are_in_no_curve_and_no_table(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        for value in ("NaN", "Infinity", "1" + 400 * "0", '"text"', "[1]", "true", "null"):
            file.write(f'{{"step": 5, "split": "test", "loss": {value}, "x": {value}}}\n')
    (folder / "timing.jsonl").write_text('{"step": 5, "seconds": 1e30, "examples_per_second": 3.0}\n')
    page = run_page(folder)
    assert json.loads(re.search("id=data>(.*?)</script>", page).group(1), parse_constant=pytest.fail)
    assert drawn(page)["curves"][0]["data"][0] == [2, 4]
    assert "<td>test loss" not in page


def test_a_long_curve_is_thinned_and_keeps_its_last_point(folder):
    lines = [{"step": step, "split": "train", "loss": 1 / step} for step in range(1, 5003)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps, losses = drawn(run_page(folder))["curves"][0]["data"]
    assert 1000 < len(steps) <= 2000 and steps[-1] == 5002
    assert losses == [1 / step for step in steps]


def test_only_the_page_of_an_unfinished_run_reloads(folder):
    assert "http-equiv=refresh" in run_page(folder)
    steps = PRESETS["tiny"].config.run.steps
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": steps, "split": "train", "loss": 0.5}) + "\n")
    assert "http-equiv=refresh" in run_page(folder)  # its last evaluation is missing
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": steps, "split": "test", "loss": 0.75}) + "\n")
    page = run_page(folder)
    assert "http-equiv=refresh" not in page and "<th>status<td>Finished: 400 of 400 steps<" in page


def test_a_plane_is_a_sheet_of_images_and_points_from_left_to_right(folder):
    write_pictures(folder, {"plane": a_plane()}, DIGITS)
    sheet = pixels((folder / "pictures" / "plane.png").read_bytes())[..., 0]
    assert sheet.shape == (3 * 4, 5 * 6)
    for row, column in np.ndindex(3, 5):
        cell = sheet[row * 4 : row * 4 + 4, column * 6 : column * 6 + 6]
        np.testing.assert_array_equal(cell, round(255 * (row * 5 + column) / 20))
    (folder / "images.json").write_text(json.dumps({"image_shape": [28, 28, 1], "label_names": DIGITS}))
    (plane,) = drawn(run_page(folder))["planes"]
    assert (plane["rows"], plane["columns"]) == (3, 5)
    assert plane["points"] == [[-1.0, 1.0], [0.5, -0.25]] and plane["labels"] == [1, 2]


class Images:
    """A source with only the parts that the pictures of mistakes need."""

    num_classes = 3

    def gather(self, indices):
        return {"image": np.stack([np.full((2, 2, 1), 10 * index, np.uint8) for index in indices])}

    def read_file_names(self, indices):
        return [""] * len(indices)


class Files(Images):
    """A source whose images were files. One of them has no name."""

    def read_file_names(self, indices):
        return ["" if index == 1 else f"cat/<{index}>.jpg" for index in indices]


class Many(Images):
    """A source with many classes."""

    num_classes = 40


def test_mistakes_are_counted_by_label_and_prediction(folder):
    """The most confident mistakes come first."""
    labels, predicted = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 2, 1, 2, 0, 1])
    write_mistakes(folder, Predictions(labels, predicted, np.array([0.9, 0.6, 0.8, 0.7, 0.95, 0.5])), Images())
    found = read_mistakes(folder)
    assert found["confusion"] == [[1, 0, 0], [0, 1, 1], [1, 1, 1]]
    assert [(m["example"], m["label"], m["predicted"]) for m in found["worst"]] == [(4, 2, 0), (1, 1, 2), (5, 2, 1)]
    for mistake in found["worst"]:
        np.testing.assert_array_equal(pixels(base64.b64decode(mistake["png"])), 10 * mistake["example"])
    (folder / "images.json").write_text(json.dumps({"image_shape": [2, 2, 1], "label_names": ["a", "b", "<c>"]}))
    page = run_page(folder)
    shown = page.replace("<bdi>", "").replace("</bdi>", "")
    assert re.findall(r"true (\S+), predicted (\S+) \((\d+)&nbsp;%\)", shown) == [
        ("&lt;c&gt;", "a", "95"),
        ("b", "&lt;c&gt;", "60"),
        ("&lt;c&gt;", "b", "50"),
    ]
    assert "3 of 6 test images" in page
    rows = re.findall(r"<tr><td>([^<]+)<td>([\d.]*)<td>([\d.]*)<td>(\d+)", shown)
    assert rows == [("a", "0.500", "1.000", "1"), ("b", "0.500", "0.500", "2"), ("&lt;c&gt;", "0.500", "0.333", "3")]
    assert re.findall(r"style='--part:([\d.]+)'>(\d)", page)[1:3] == [("70.7", "1"), ("70.7", "1")]  # √(1/2)


def test_precision_recall_and_balanced_accuracy_have_the_values_of_scikit_learn():
    """The numbers are worked out by hand. A class without examples does not count, as in balanced_accuracy_score."""
    labels, predicted = np.array([0, 1, 0, 0, 1, 0]), np.array([0, 1, 0, 0, 3, 1])
    confusion = confusion_matrix(Predictions(labels, predicted, np.ones(6)), 4)
    precision, recall = precision_and_recall(confusion)
    np.testing.assert_allclose(precision, [1, 1 / 2, np.nan, 0])
    np.testing.assert_allclose(recall, [3 / 4, 1 / 2, np.nan, np.nan])
    assert balanced_accuracy(confusion) == pytest.approx(0.625)


def test_a_mistake_shows_its_file_or_else_its_number_in_the_split(folder):
    labels = np.array([0, 1, 1, 2])
    write_mistakes(folder, Predictions(labels, np.zeros(4, int), np.array([0.9, 0.6, 0.8, 0.7])), Files())
    (folder / "images.json").write_text(json.dumps({"image_shape": [2, 2, 1], "label_names": ["a", "b", "c"]}))
    found = re.findall("<span class=file><bdi dir=ltr>(.*?)</bdi>", run_page(folder))
    assert found == ["cat/&lt;2&gt;.jpg", "cat/&lt;3&gt;.jpg", "test image 1"]


def test_the_lowest_recall_comes_first_if_there_are_many_classes(folder):
    labels = np.repeat(np.arange(40), 2)
    predicted = np.where(np.arange(80) == 2 * 37, 5, labels)
    write_mistakes(folder, Predictions(labels, predicted, np.ones(80)), Many())
    (folder / "images.json").write_text(json.dumps({"image_shape": [2, 2, 1], "label_names": []}))
    rows = re.findall(r"<tr><td><bdi>(\d+)</bdi><td>([\d.]+)<td>([\d.]+)<td>2", run_page(folder))
    assert len(rows) == 40 and rows[:2] == [("37", "1.000", "0.500"), ("0", "1.000", "1.000")]


def test_mistakes_from_an_older_version_are_shown_too(folder):
    labels, predicted = np.array([0, 1, 1]), np.array([0, 2, 1])
    write_mistakes(folder, Predictions(labels, predicted, np.array([0.9, 0.6, 0.8])), Images())
    (folder / "images.json").write_text(json.dumps({"image_shape": [2, 2, 1], "label_names": ["a", "b", "c"]}))
    page, path = run_page(folder), folder / "mistakes.json"
    path.write_text(path.read_text().replace('"predicted"', '"said"'))
    assert '"said"' in path.read_text() and run_page(folder) == page
    assert "true <bdi>b</bdi>, predicted <bdi>c</bdi> (60&nbsp;%)" in page


def test_the_tasks_descriptions_are_next_to_its_metrics(folder):
    words = {"distance": "of points & lines"}
    info = {"best_metric": "accuracy", "best_mode": "max", "metric_descriptions": words}
    (folder / "task.json").write_text(json.dumps(info))
    assert "<td>test distance<td>0.2500<td class=about>of points &amp; lines" in run_page(folder)


def test_with_many_classes_the_most_confused_pairs_are_listed(folder):
    count = 40
    confusion = np.eye(count, dtype=int)
    confusion[7, 30], confusion[2, 39] = 4, 9
    (folder / "mistakes.json").write_text(json.dumps({"confusion": confusion.tolist(), "worst": []}))
    names = [f"class {label}" for label in range(count)]
    (folder / "images.json").write_text(json.dumps({"image_shape": [2, 2, 1], "label_names": names}))
    page = run_page(folder)
    shown = page.replace("<bdi>", "").replace("</bdi>", "")
    rows = re.findall(r"<tr><td>(class \d+)<td>(class \d+)<td>(\d+)", shown)
    assert rows == [("class 2", "class 39", "9"), ("class 7", "class 30", "4")]
    (matrix,) = drawn(page)["matrices"]
    assert matrix["names"] == names
    assert matrix["counts"] == [[a, b, int(confusion[a, b])] for a, b in np.argwhere(confusion)]


def test_a_matrix_of_hundreds_of_classes_is_not_drawn(folder):
    confusion = np.eye(201, dtype=int)
    (folder / "mistakes.json").write_text(json.dumps({"confusion": confusion.tolist(), "worst": []}))
    (folder / "images.json").write_text(json.dumps({"image_shape": [2, 2, 1], "label_names": []}))
    page = run_page(folder)
    assert drawn(page)["matrices"] == [] and "<h2>Confusion matrix" not in page and "<h2>Most confused" in page


def test_a_picture_of_cells_has_labels_above_its_columns_and_left_of_its_rows(folder):
    grid = a_grid(2, 3, 4, 4).replace(column_labels=("image", "head <1>", "head 2"), row_labels=("a", "b"))
    write_pictures(folder, {"attention": grid, "plain": a_grid(1, 1, 4, 4)}, DIGITS)
    page = run_page(folder)
    found = re.findall(r"<div class=(columns|rows) style='--count:(\d)'>(.*?)</div>", page)
    assert [(kind, count, re.findall("<span>(.*?)</span>", words)) for kind, count, words in found] == [
        ("columns", "3", ["image", "head &lt;1&gt;", "head 2"]),
        ("rows", "2", ["a", "b"]),
    ]


NAMES = ["고양이", "قطة سوداء", "a name of many letters " * 9, "<b>&amp;", "猫"]


def test_names_of_classes_in_any_script_are_shown_as_they_are(folder):
    confusion = np.arange(25).reshape(5, 5)
    png = base64.b64encode(b"png").decode()
    worst = [{"example": 7, "label": 1, "predicted": 0, "probability": 0.5, "png": png}]
    (folder / "mistakes.json").write_text(json.dumps({"confusion": confusion.tolist(), "worst": worst}))
    (folder / "images.json").write_text(json.dumps({"image_shape": [2, 2, 1], "label_names": NAMES}))
    page = run_page(folder)
    escaped = [name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for name in NAMES]
    assert re.findall("<th><bdi>(.*?)</bdi>", page)[:5] == escaped
    assert "true <bdi>قطة سوداء</bdi>, predicted <bdi>고양이</bdi> (50&nbsp;%)" in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("mistakes.json", content) for content in ("[]", "{}", "{", '{"confusion": [1], "worst": []}')],
        ("mistakes.json", '{"confusion": [[-1]], "worst": []}'),
        ("mistakes.json", '{"confusion": [[1]], "worst": [{}]}'),
        ("mistakes.json", '{"confusion": [["1"]], "worst": []}'),
        (
            "mistakes.json",
            '{"confusion": [[1]], "worst": [{"example": 0, "label": -9, "predicted": 0, '
            '"probability": 0.5, "png": ""}]}',
        ),
        *[("pictures/pictures.json", content) for content in ("[]", '{"plane": {}}', '{"plane": 1}')],
        *[("pictures/pictures.json", f'{{"{name}": {{"caption": "A."}}}}') for name in ("gone", "../plane")],
        ("pictures/pictures.json", '{"plane": {"caption": "A.", "points": [[0, 1]]}}'),
        (
            "pictures/pictures.json",
            '{"plane": {"caption": "A.", "rows": 1, "columns": 1, "points": [[0, 1]], "labels": [0, 1]}}',
        ),
        (
            "pictures/pictures.json",
            '{"plane": {"caption": "A.", "rows": 1, "columns": 1, "points": [[0, 1]], "labels": [1000000000]}}',
        ),
    ],
)
def test_damaged_mistakes_and_pictures_are_one_clear_line(folder, name, content):
    write_pictures(folder, {"plane": a_plane()}, DIGITS)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"{Path(name).name} (is|must be) ") as error:
        run_page(folder)
    assert "\n" not in str(error.value)


def test_a_report_shows_and_writes_nothing_through_a_link(folder, tmp_path):
    write_pictures(folder, {"plane": a_plane()}, DIGITS)
    (folder / "pictures").rename(tmp_path / "outside")
    (folder / "pictures").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"pictures must be a folder inside .*, got a symbolic link"):
        run_page(folder)
    (folder / "pictures").unlink()
    (folder / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"linked must be a folder inside .*, got a symbolic link"):
        report([str(folder), "--out", str(folder / "linked" / "page.html")])
    assert not (tmp_path / "outside" / "page.html").exists()


PRESET_FILES = [configs.vit, configs.lstm, configs.mha, configs.aae]


@pytest.mark.slow
@pytest.mark.parametrize("module", PRESET_FILES, ids=lambda module: module.__name__)
def test_the_reports_command_recreates_the_config(module, tmp_path):
    task = module.__name__.removeprefix("configs.")
    made = 0
    for preset in module.PRESETS:
        options = ["--run.seed", "7", "--run.dir", str(tmp_path / "with space"), "--data.image-size", "20", "24"]
        options += ["--run.steps", "12", "--data.crop", "0.5"]
        if task == "vit":
            options += ["--model.no-class-token", "--model.pool", "gap", "--optim.clip", "None"]
        if task == "aae":
            options += ["--model.decoder.hidden-sizes", "9", "8", "7", "--model.decoder.batch-norm"]
        for arguments in ([preset], [preset, *options]):
            config = parse(task, module.PRESETS, arguments)
            words = shlex.split(*commands({"task": task, **config_to_tree(config)}))
            assert words[:3] == ["python", "-m", f"train.{task}"]
            again = parse(task, module.PRESETS, words[3:])
            assert dataclasses.replace(again, mesh=config.mesh) == config
            made += 1
        assert words[3] == preset and len(words) < 40
        default = config_to_tree(parse(task, module.PRESETS, [preset]))
        assert shlex.split(*commands({"task": task, **default})) == [*words[:3], preset]
    assert made == 2 * len(module.PRESETS)


def test_a_config_that_no_options_can_make_has_no_command():
    assert commands({"model": {"class": "Unknown"}}) == []
    assert commands({"model": {"class": {}}}) == []
    tree = {"task": "aae", **config_to_tree(configs.aae.PRESETS["tiny"].config)}
    assert len(commands(tree)) == 1
    tree["model"]["invented"] = 3
    assert commands(tree) == []


def test_a_run_from_before_an_option_existed_has_its_command():
    config = parse("vit", PRESETS, ["tiny", "--model.num-heads", "4", "--run.dir", "r"])
    tree = {"task": "vit", **config_to_tree(config)}
    del tree["model"]["num_registers"], tree["run"]["patience"]
    assert commands(tree) == ["python -m train.vit tiny --model.num-heads 4 --run.dir r"]


def test_an_extended_run_has_a_command_for_each_part():
    config = parse("lstm", configs.lstm.PRESETS, ["tiny", "--run.steps", "90", "--run.dir", "r", "--run.extend"])
    extensions = [{"steps": 30, "done": 30}, {"steps": 60, "done": 50}]
    start = "python -m train.lstm tiny --run.dir r"
    assert commands({"task": "lstm", "extensions": extensions, **config_to_tree(config)}) == [
        f"{start} --run.steps 30",
        f"{start} --run.extend --run.steps 60",
        f"{start} --run.extend --run.steps 90",
    ]


def test_two_runs_are_compared_by_their_curves_results_and_what_differs(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tree = json.loads((other / "config.json").read_text())
    tree["optim"]["learning_rate"] = 0.125
    (other / "config.json").write_text(json.dumps(tree))
    lines = [{"step": step, "split": "test", "loss": 8.0 - step} for step in (3, 4)]
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = comparison([folder, other])
    titles = re.findall(r"<th>([^<]*)", page.split("<thead>")[1].split("<tbody>")[0].split("<tr>")[2])
    assert titles == ["run", "test loss", "test distance", "optim.learning_rate", "status"]
    rows = [
        re.findall(r"<td>(?:<bdi>)?([^<]*)", row) for row in re.findall("<tr data-run=.>(.*?)(?=<tr|</table>)", page)
    ]
    assert rows == [
        ["run", "1.5000", "0.2500", "0.003", "Not finished: step 4 of 400"],
        ["other", "4.0000", "", "0.125", "Not finished: step 4 of 400"],
    ]
    (curve,) = drawn(page)["curves"]
    assert curve["labels"] == ["run train", "run test", "other test"] and curve["runs"] == [0, 0, 1]
    assert curve["data"] == [[2, 3, 4], [2.0, None, 1.0], [None, None, 1.5], [None, 5.0, 4.0]]


@pytest.mark.slow
def test_the_program_rewrites_the_same_page_and_refuses_other_folders(folder, tmp_path):
    write_report(folder)
    written = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    root = Path(__file__).parents[3]

    def program(*arguments):
        words = [sys.executable, "-m", "train.report", *arguments]
        return subprocess.run(words, cwd=root, capture_output=True, text=True)

    assert program(str(folder)).returncode == 0
    assert (folder / "report.html").read_bytes() == written
    for arguments, message in (([], "RUN_DIR"), ([str(tmp_path)], "the path must be a run folder")):
        refused = program(*arguments)
        assert refused.returncode == 2 and message in refused.stderr and len(refused.stderr.splitlines()) == 1
