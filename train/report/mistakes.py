"""mistakes.json: which classes a classifier takes for which, and the images that it is most surely wrong about."""

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import repeat
from jaxtyping import Float, Int

from train.data import Source
from train.process.errors import UserError
from train.report.pictures import encoded_png
from train.run.atomic import write_atomic
from train.run.files import MISTAKES, read_json

WORST = 24  # images
_SIDE = 96  # pixels that a small image is enlarged to


class Predictions(NamedTuple):
    """What a classifier says of every example of a split, in its order."""

    labels: Int[np.ndarray, "N"]
    said: Int[np.ndarray, "N"]
    """The likeliest class."""
    probability: Float[np.ndarray, "N"]
    """Of that class."""


def write_mistakes(folder: Path, predictions: Predictions, source: Source) -> None:
    """Writes `mistakes.json` into the run folder; `source` is the split that the verdicts are of."""
    labels, said, probability = predictions
    confusion = np.zeros((source.num_classes, source.num_classes), int)
    np.add.at(confusion, (labels, said), 1)
    wrong = np.flatnonzero(labels != said)
    worst = wrong[np.argsort(-probability[wrong], kind="stable")][:WORST]
    images = source.gather(worst)["image"] if len(worst) else []
    mistakes = [
        {
            "example": int(example),
            "label": int(labels[example]),
            "said": int(said[example]),
            "probability": round(float(probability[example]), 4),
            "png": base64.b64encode(encoded_png(_enlarged(image))).decode(),
        }
        for example, image in zip(worst, images, strict=True)
    ]
    write_atomic(folder / MISTAKES, json.dumps({"confusion": confusion.tolist(), "worst": mistakes}) + "\n")


def read_mistakes(folder: Path) -> dict[str, Any] | None:
    """What `write_mistakes` wrote: "confusion", a row for each label, and "worst"; None: it is not a classifier's.

    Raises:
        UserError: if that is damaged.
    """
    path = folder / MISTAKES
    if not path.exists():
        return None
    found = read_json(path, dict)
    try:
        confusion = np.array(found["confusion"], int)
        for mistake in found["worst"]:
            base64.b64decode(mistake["png"], validate=True)
            numbers = [type(mistake[name]) for name in ("example", "label", "said", "probability")]
            if numbers != [int, int, int, float]:
                raise ValueError(f"a mistake {mistake!r:.60}")
        if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or (confusion < 0).any():
            raise ValueError(f"a confusion matrix of shape {confusion.shape}, least entry {confusion.min(initial=0)}")
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: {error!r}; remove it, and the training's command writes it again"
        ) from error
    return found


def _enlarged(image: np.ndarray) -> np.ndarray:
    """An image uint8 [h, w, C] with each pixel as a square; gray without its last axis."""
    zoom = max(1, _SIDE // max(image.shape[:2]))
    large = repeat(image, "h w c -> (h a) (w b) c", a=zoom, b=zoom)
    return large[..., 0] if image.shape[-1] == 1 else large
