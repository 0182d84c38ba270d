"""mistakes.json: which classes a classifier confuses, and its most confident mistakes."""

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

WORST = 24  # mistakes with their images
_SIDE = 96  # pixels; smaller images are enlarged to it


class Predictions(NamedTuple):
    """A classifier's answer for every example of a split, in the split's order."""

    labels: Int[np.ndarray, "N"]
    predicted: Int[np.ndarray, "N"]
    """The most probable class."""
    probability: Float[np.ndarray, "N"]
    """The probability of that class."""


def write_mistakes(folder: Path, predictions: Predictions, source: Source) -> None:
    """Writes `mistakes.json` into the run folder; `source` is the split that was predicted."""
    labels, predicted, probability = predictions
    confusion = np.zeros((source.num_classes, source.num_classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    wrong = np.flatnonzero(labels != predicted)
    worst = wrong[np.argsort(-probability[wrong], kind="stable")][:WORST]
    images = source.gather(worst)["image"] if len(worst) else []
    mistakes = [
        {
            "example": int(example),
            "label": int(labels[example]),
            "predicted": int(predicted[example]),
            "probability": round(float(probability[example]), 4),
            "png": base64.b64encode(encode_png(_enlarged(image))).decode(),
        }
        for example, image in zip(worst, images, strict=True)
    ]
    write_atomic(folder / MISTAKES, json.dumps({"confusion": confusion.tolist(), "worst": mistakes}) + "\n")


def read_mistakes(folder: Path) -> dict[str, Any] | None:
    """The content of `mistakes.json`: "confusion", a row for each label, and "worst"; None if there is no such file.

    Files of older versions call "predicted" "said".

    Raises:
        UserError: if it is damaged.
    """
    path = folder / MISTAKES
    if not path.exists():
        return None
    content = read_run_json(path)
    try:
        confusion = np.array(content["confusion"], int)
        for mistake in content["worst"]:
            if "said" in mistake:
                mistake["predicted"] = mistake.pop("said")
            base64.b64decode(mistake["png"], validate=True)
            numbers = [type(mistake[name]) for name in ("example", "label", "predicted", "probability")]
            if numbers != [int, int, int, float]:
                raise ValueError(f"a mistake {mistake!r:.60}")
        if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or (confusion < 0).any():
            raise ValueError(f"a confusion matrix of shape {confusion.shape}, least entry {confusion.min(initial=0)}")
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: {error!r}; remove it, and the training's command writes it again"
        ) from error
    return content


def _enlarged(image: np.ndarray) -> np.ndarray:
    """An image uint8 [h, w, C] with each pixel as a square of pixels; a gray one loses its last axis."""
    zoom = max(1, _SIDE // max(image.shape[:2]))
    large = repeat(image, "h w c -> (h a) (w b) c", a=zoom, b=zoom)
    return large[..., 0] if image.shape[-1] == 1 else large
