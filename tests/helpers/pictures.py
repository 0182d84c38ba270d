"""Example pictures, a run folder without a training run, and the pixels of an encoded image."""

import dataclasses
import io
import json

import numpy as np
from PIL import Image

from configs.vit import PRESETS
from train.run.folder import RunFolder
from train.task import Grid, Plane, Scatter

DIGITS = [str(digit) for digit in range(10)]


def a_grid(*shape, caption="Cells."):
    return Grid(np.random.default_rng(0).uniform(size=shape).astype(np.float32), caption)


def a_scatter(points=((0.0, 0.0), (1.0, 2.0)), labels=(0, 1), background=((2.0, 1.0),), marks=None, caption="Points."):
    points, background = np.asarray(points, np.float32), np.asarray(background, np.float32)
    return Scatter(points, np.asarray(labels), background, marks, caption)


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def a_plane(rows=3, columns=5):
    images = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns, 1, 1) / 20
    points = np.array([[0.5, -0.25], [np.nan, np.nan], [-1.0, 1.0]], np.float32)
    return Plane(np.broadcast_to(images, (rows, columns, 4, 6)), points, np.array([2, 0, 1]), "Move.")


def with_fitting_labels(pictures):
    """Returns the pictures of a task. Asserts that the labels of each grid fit its rows and columns."""
    for picture in pictures.values():
        if isinstance(picture, Grid):
            rows, columns = picture.cells.shape[:2]
            assert len(picture.row_labels) in (0, rows) and len(picture.column_labels) in (0, columns)
    return pictures


def a_run_folder(path):
    """Writes a run folder whose metrics.jsonl has two train rows and a test row with one more metric."""
    tiny = PRESETS["tiny"].config
    RunFolder(dataclasses.replace(tiny, run=dataclasses.replace(tiny.run, dir=str(path))))
    lines = [
        {"step": 2, "split": "train", "loss": 2.0},
        {"step": 4, "split": "train", "loss": 1.0},
        {"step": 4, "split": "test", "loss": 1.5, "distance": 0.25},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
