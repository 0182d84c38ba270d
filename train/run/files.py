"""Names and reads the files of a run folder. Imports no JAX, so that `python -m train.runs` starts quickly."""

import json
from pathlib import Path
from typing import Any

from train.process.errors import UserError
from w2jax.files import read_json

CONFIG, TASK, METRICS, TIMING = "config.json", "task.json", "metrics.jsonl", "timing.jsonl"
CHECKPOINTS, IMAGES, MISTAKES, PICTURES, LOCK = "checkpoints", "images.json", "mistakes.json", "pictures", "lock"

# Old names in run folders, mapped to the current names.
_RENAMED_OPTIONS = {"on_nan": "on_nonfinite", "warmup": "warmup_fraction", "final": "final_lr_fraction"}
RENAMED_METRICS: dict[str, str] = {"told_apart": "discriminator_accuracy", "crowding": "head_distance_loss"}
# Older config.json files do not name the task. There, the model's class determines the task.
_TASK_OF_MODEL = {"ViT": "vit", "LSTMClassifier": "lstm", "AttentionClassifier": "mha", "AAE": "aae"}


def read_config_tree(folder: Path) -> dict[str, Any]:
    """Reads a run's `config.json`: the output of `config_to_tree`, and "task", the name of the task.

    Raises:
        UserError: if `folder` is not a run folder, or its config is damaged.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"the path must be a run folder, such as runs/vit-sample, but the file {folder / CONFIG} was not found"
        )
    tree = read_run_json(folder / CONFIG)
    model = tree.get("model")
    of_model = _TASK_OF_MODEL.get(str(model.get("class"))) if isinstance(model, dict) else None
    groups = {name: _with_new_names(tree[name]) for name in ("run", "optim") if name in tree}
    return {**tree, "task": tree.get("task") or of_model, **groups}


def _with_new_names(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {_RENAMED_OPTIONS.get(name, name): _with_new_names(value) for name, value in tree.items()}


def read_run_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file of a run folder.

    Raises:
        UserError: if the file cannot be read, or is not a JSON object.
    """
    try:
        return read_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{error}. The file is damaged") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a JSON-lines file. An incomplete last line, which a killed process leaves, is skipped.

    Raises:
        UserError: if a line is not a JSON object with an integer "step".
    """
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            raise UserError(f"{path}, line {number} must be a JSON object with a step. Repair or delete the line")
        lines.append({RENAMED_METRICS.get(name, name): value for name, value in line.items()})
    return lines


def is_number(value: Any) -> bool:
    """Returns whether a value can be plotted: a number, not NaN, and not too large for a float."""
    return type(value) in (int, float) and abs(value) < 1e30


def format_duration(seconds: float) -> str:
    """Formats a duration as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
