"""Writes and reads mistakes.json: a classifier's confusion matrix and its most confident mistakes."""

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import repeat
from jaxtyping import Float, Int

from train.data import Source
from train.process.errors import UserError
from train.report.pictures import encode_png
from train.run.atomic import write_atomic
from train.run.files import MISTAKES, read_run_json

WORST = 24  # number of mistakes that are shown with their images
_SIDE = 96  # pixels; smaller images are enlarged to about this size


class Predictions(NamedTuple):
    """A classifier's predictions for every example of a split, in the order of the split."""

    labels: Int[np.ndarray, "N"]
    predicted: Int[np.ndarray, "N"]
    """The most probable class."""
    probability: Float[np.ndarray, "N"]
    """The probability of that class."""


def confusion_matrix(predictions: Predictions, classes: int) -> Int[np.ndarray, "V V"]:
    """Returns the number of examples of each true label (row) with each prediction (column)."""
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (predictions.labels, predictions.predicted), 1)
    return confusion


def precision_and_recall(confusion: Int[np.ndarray, "V V"]) -> tuple[Float[np.ndarray, "V"], Float[np.ndarray, "V"]]:
    """Returns the precision and the recall of each class. A precision without predictions, or a recall without
    examples, is NaN.
    """
    right = confusion.diagonal()
    with np.errstate(invalid="ignore"):
        return right / confusion.sum(axis=0), right / confusion.sum(axis=1)


def balanced_accuracy(confusion: Int[np.ndarray, "V V"]) -> float:
    """Returns the mean recall of the classes that have examples."""
    return float(np.nanmean(precision_and_recall(confusion)[1]))


def write_mistakes(folder: Path, predictions: Predictions, source: Source) -> None:
    """Writes `mistakes.json` into the run folder. `source` is the split that `predictions` belong to."""
    labels, predicted, probability = predictions
    confusion = confusion_matrix(predictions, source.num_classes)
    wrong = np.flatnonzero(labels != predicted)
    worst = wrong[np.argsort(-probability[wrong], kind="stable")][:WORST]
    images = source.gather(worst)["image"] if len(worst) else []
    files = source.read_file_names(worst.tolist()) if len(worst) else []
    mistakes = [
        {
            "example": int(example),
            "label": int(labels[example]),
            "predicted": int(predicted[example]),
            "probability": round(float(probability[example]), 4),
            "png": base64.b64encode(encode_png(_enlarged(image))).decode(),
            **({"file": file} if file else {}),
        }
        for example, image, file in zip(worst, images, files, strict=True)
    ]
    write_atomic(folder / MISTAKES, json.dumps({"confusion": confusion.tolist(), "worst": mistakes}) + "\n")


def read_mistakes(folder: Path) -> dict[str, Any] | None:
    """Reads `mistakes.json`; returns None if the file does not exist.

    The content has "confusion", a matrix with a row for each true label, and "worst", a list of mistakes. A mistake has
    the key "file" if the dataset has names of files. In files of older versions, the key "predicted" is "said".

    Raises:
        UserError: the file is damaged.
    """
    path = folder / MISTAKES
    if not path.exists():
        return None
    content = read_run_json(path)
    try:
        confusion = np.array(content["confusion"], int)
        if any(type(count) is not int for row in content["confusion"] for count in row):
            raise ValueError("the confusion matrix must contain integers")
        for mistake in content["worst"]:
            if "said" in mistake:
                mistake["predicted"] = mistake.pop("said")
            base64.b64decode(mistake["png"], validate=True)
            numbers = [type(mistake[name]) for name in ("example", "label", "predicted", "probability")]
            if not isinstance(mistake.get("file", ""), str):
                raise ValueError("the name of a file must be text")
            if numbers != [int, int, int, float] or min(mistake["label"], mistake["predicted"]) < 0:
                raise ValueError(f"invalid mistake {mistake!r:.60}")
        if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or (confusion < 0).any():
            raise ValueError(
                f"invalid confusion matrix of shape {confusion.shape}, smallest entry {confusion.min(initial=0)}"
            )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}). Remove it and run the training command again, which rewrites it."
        ) from error
    return content


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Enlarges an image uint8 [h, w, C] by an integer factor. A gray image loses its last axis."""
    zoom = max(1, _SIDE // max(image.shape[:2]))
    large = repeat(image, "h w c -> (h a) (w b) c", a=zoom, b=zoom)
    return large[..., 0] if image.shape[-1] == 1 else large
