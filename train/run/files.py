"""Names and reads the files of a run folder. Imports no JAX, so that `python -m train.runs` starts quickly."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train.process.errors import UserError
from w2jax.files import MAX_JSON, read_json, read_regular

CONFIG, TASK, METRICS, TIMING = "config.json", "task.json", "metrics.jsonl", "timing.jsonl"
CHECKPOINTS, PICTURES, WANDB = "checkpoints", "pictures", "wandb"
IMAGES, MISTAKES, LOCK = "images.json", "mistakes.json", "lock"

NO_OPTIONS = ("task", "extensions")  # the keys of config.json that are not groups of options

_MOST_BRACKETS = 100  # in a row; our rows have one
_MAX_LINES = 2**30  # bytes of metrics.jsonl: several million rows

# Old names in run folders, mapped to the current names.
_RENAMED_OPTIONS = {"on_nan": "on_nonfinite", "warmup": "warmup_fraction", "final": "final_lr_fraction"}
_RENAMED_OPTIONS |= {"labelled_batch_size": "labeled_batch_size"}
RENAMED_METRICS: dict[str, str] = {"told_apart": "discriminator_accuracy", "crowding": "head_distance_loss"}
# Older config.json files do not name the task. There, the model's class determines the task.
_TASK_OF_MODEL = {"ViT": "vit", "LSTMClassifier": "lstm", "AttentionClassifier": "mha", "AAE": "aae"}


def read_config_tree(folder: Path) -> dict[str, Any]:
    """Reads a run's `config.json`: the output of `config_to_tree`, and "task", the name of the task.

    If the run was continued with `--run.extend`, "extensions" is a list with an entry for each time: "steps", the old
    value of `--run.steps`, and "done", the last saved step at that time.

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
    extensions = tree.get("extensions", [])
    if not isinstance(extensions, list) or not all(_is_extension(entry) for entry in extensions):
        raise UserError(f'{folder / CONFIG} is damaged: "extensions" must be a list of objects with "steps" and "done"')
    groups = {name: _with_new_names(tree[name]) for name in ("run", "optim") if name in tree}
    renamed = {_RENAMED_OPTIONS.get(name, name): value for name, value in tree.items()}
    return {**renamed, "task": tree.get("task") or of_model, **groups}


def _is_extension(entry: Any) -> bool:
    return isinstance(entry, dict) and all(type(entry.get(name)) is int for name in ("steps", "done"))


def _with_new_names(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {_RENAMED_OPTIONS.get(name, name): _with_new_names(value) for name, value in tree.items()}


def read_run_file(path: Path, limit: int = MAX_JSON) -> bytes:
    """Reads a file of a run folder. The folder may come from someone else, so links, pipes and devices are refused.

    Raises:
        UserError: if the file cannot be read, is not a regular file, or has more than `limit` bytes.
    """
    with _as_user_error(path):
        return read_regular(path, limit, follow_links=False)


def read_run_json(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file of a run folder.

    Raises:
        UserError: as in `read_run_file`, or if the content is not a JSON object.
    """
    with _as_user_error(path):
        return read_json(path, follow_links=False)


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "must be a regular file, got a symbolic link" if error.errno == errno.ELOOP else None
        raise UserError(f"{path} {what}" if what else f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{error}. The file is damaged") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a JSON-lines file. An incomplete last line, which a killed process leaves, is skipped.

    Raises:
        UserError: as in `read_run_file`, or if a line is not a JSON object with an integer "step".
    """
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(read_run_file(path, _MAX_LINES).split(b"\n")[:-1], 1):
        try:
            line = json.loads(text) if text.count(b"[") + text.count(b"{") <= _MOST_BRACKETS else None
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
