"""python -m train.report RUN --pictures DIR: each figure is a PNG and an SVG file with its caption."""

import base64
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from pictures import DIGITS, a_grid, a_plane, a_run_folder, a_scatter, pixels
from PIL import Image

from train.process.errors import UserError
from train.report import fonts
from train.report.__main__ import main as report
from train.report.figures import write_figures
from train.report.pictures import write_pictures

NAMES = ["고양이", "قطة", "$\\frac$ <b>&", "_a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = a_run_folder(tmp_path_factory.mktemp("runs") / "run")
    labels = {"column_labels": ("image", "head <1>", "$x$"), "row_labels": ("first", "second")}
    pictures = {"cells": a_grid(2, 3, 5, 7, caption="Some $cells$ & more.").replace(**labels), "plane": a_plane()}
    write_pictures(folder, {**pictures, "points": a_scatter()}, DIGITS)
    confusion = [[5, 0, 0, 1], [0, 17, 0, 0], [0, 2, 4, 0], [0, 0, 0, 9]]
    (folder / "mistakes.json").write_text(json.dumps({"confusion": confusion, "worst": []}))
    (folder / "images.json").write_text(json.dumps({"image_shape": [8, 8, 1], "label_names": NAMES}))
    return folder


@pytest.fixture(scope="module")
def written(folder):
    out = folder.parent / "talk" / "figures"
    return out, write_figures(folder, out)


def texts(path):
    """Returns the texts of an SVG file, with one space for each line break."""
    found = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()) for text in found]


def test_every_curve_the_confusion_matrix_and_every_picture_is_a_figure(written):
    """The plane needs a pointer, so it is not one."""
    out, names = written
    assert names == ["curve_loss", "curve_learning_rate", "confusion_matrix", "cells", "points"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{x}.{kind}" for x in names for kind in ("png", "svg")
    )
    for name in names:
        assert pixels((out / f"{name}.png").read_bytes()).std() > 5


def test_a_figure_has_its_labels_and_its_caption_as_text(written):
    out, _ = written
    assert {"Some $cells$ & more.", "image", "head <1>", "$x$", "first", "second"} <= set(texts(out / "cells.svg"))
    assert {"cross-entropy in nats; lower is better", "step", "loss", "train"} <= set(texts(out / "curve_loss.svg"))
    shown = texts(out / "confusion_matrix.svg")
    assert {"true class", "predicted class", "5", "17", "2", "4", "9", "1"} <= set(shown)
    assert all(shown.count(name) == 2 for name in NAMES)
    assert any(text.startswith("3 of 38 test images are misclassified.") for text in shown)


def test_the_picture_in_a_figure_has_the_pixels_of_the_run(folder, written):
    out, _ = written
    (content,) = re.findall(r"data:image/png;base64,\s*([^\"]+)", (out / "cells.svg").read_text())
    inside = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
    original = Image.open(folder / "pictures" / "cells.png").convert("RGBA")
    center = np.asarray(original.convert("RGB").resize(inside.size, Image.Resampling.NEAREST)).astype(int)
    assert np.abs(np.asarray(inside).astype(int) - center).mean() < 20


def test_the_same_run_gives_the_same_files(folder, written, tmp_path):
    out, names = written
    write_figures(folder, tmp_path)
    for name in names:
        assert (tmp_path / f"{name}.svg").read_bytes() == (out / f"{name}.svg").read_bytes()


def test_the_program_writes_figures_and_refuses_other_options(folder, tmp_path, capsys):
    report([str(folder), "--pictures", str(tmp_path / "out")])
    assert capsys.readouterr().out.startswith(f"wrote 5 figures as PNG and SVG into {tmp_path / 'out'}: curve_loss, ")
    (tmp_path / "file").write_text("")
    for options, message in (
        ([str(folder), "--pictures", "x"], "--pictures must be used with one RUN_DIR, got 2"),
        (["--pictures", str(tmp_path / "file")], "--pictures must be a folder that can be written"),
        (["--pictures", "x", "--serve"], "--serve must be left out with --pictures"),
        (["--pictures", "x", "--out", "y"], "--out must be left out with --pictures"),
    ):
        with pytest.raises(UserError, match=message):
            report([str(folder), *options])


def test_only_installed_fonts_are_used(monkeypatch):
    monkeypatch.setattr(fonts, "OTHERS", ("a font that nobody has", "DejaVu Serif"))
    assert fonts.families.__wrapped__() == ["DejaVu Sans", "DejaVu Serif"]


def test_characters_that_no_font_has_are_told_once(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(fonts, "families", lambda: ["DejaVu Sans"])  # has Arabic, but no Korean
    fonts._print_note.cache_clear()
    write_figures(folder, tmp_path)
    write_figures(folder, tmp_path)
    note = capfd.readouterr().err
    assert note.startswith("note: the fonts that w2jax tries lack some characters") and note.count("\n") == 1
