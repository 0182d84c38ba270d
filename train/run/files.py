"""The files of a run folder and how they are read. It imports no JAX: who only looks at runs need not wait for it."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from train.process.errors import UserError

# What may differ when a run goes on: where things lie and which machine it is, never what is computed.
FREE = (
    *("run.dir", "run.steps_per_call", "run.compilation_cache", "run.on_nan", "run.on_save_error"),
    *("run.tensorboard", "run.wandb"),
    *("data.dir", "data.workers", "data.memory_limit"),
)
FREE_GROUPS = ("mesh.", "distributed.")
CONFIG, METRICS, TIMING, CHECKPOINTS, LOCK = "config.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "lock"

TASKS = {"ViT": "vit", "LSTMClassifier": "lstm", "AttentionClassifier": "mha", "AAE": "aae"}
"""The task of each model, by the name of its class."""

_LONGEST = 100  # characters of a folder's name; file systems take 255 bytes

Json = TypeVar("Json", dict, list)


def read_tree(path: Path) -> dict[str, Any]:
    """The config of the run at `path` as `config_tree` made it.

    Raises:
        UserError: if it is no run folder, or its config is damaged.
    """
    if not (path / CONFIG).is_file():
        raise UserError(f"wanted a run folder, such as runs/vit-sample, but {path / CONFIG} is no file")
    return read_json(path / CONFIG, dict)


def read_json(path: Path, kind: type[Json]) -> Json:
    """What a JSON file of a run holds.

    Raises:
        UserError: if it is not valid, or of another kind.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, kind):
        raise UserError(f"{path} is damaged: wanted JSON of a {kind.__name__}, got {str(content)[:40]}")
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file; a last line that a kill tore apart is left out.

    Raises:
        UserError: another line is no metrics of a step.
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
            raise UserError(f"{path}, line {number}: wanted a JSON object with a step; mend the line or remove it")
        lines.append(line)
    return lines


def is_number(value: Any) -> bool:
    """Whether what stands in a line can be drawn: no truth value, neither NaN nor too large for a float."""
    return type(value) in (int, float) and abs(value) < 1e30


def format_duration(seconds: float) -> str:
    """h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested objects by their dotted names, as options are called; the class of a module is none."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    below = {key: value for key, value in tree.items() if key != "class"}
    return {name: leaf for key, value in below.items() for name, leaf in flattened(value, f"{prefix}{key}.").items()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names, in order, whose values differ between two flattened configs, or that only one of them has."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name, "absent") != other.get(name, "absent")]


def must_agree(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Those of the `differing` names that two configs of one run may not differ in."""
    return [name for name in differing(one, other) if not (name in FREE or name.startswith(FREE_GROUPS))]


def default_folder(task: str, preset: str, config: dict[str, Any], of_preset: dict[str, Any]) -> str:
    """runs/TASK-PRESET, and behind it what a config changes of its preset, as in runs/vit-sample-depth6-seed1.

    Both configs are flattened. What may differ when a run goes on is no part of the name. A text that cannot stand in a
    name as it is, and whatever makes the name too long, stands there by its digest.
    """
    changed = {name: config.get(name, "absent") for name in must_agree(config, of_preset)}
    names = config.keys() | of_preset.keys()
    parts = [f"{task}-{preset}", *(_part(_ending(name, names), value) for name, value in changed.items())]
    if len("-".join(parts)) > _LONGEST:
        digest = _digest(changed, 8)
        while len("-".join([*parts, digest])) > _LONGEST:
            parts.pop()
        parts.append(digest)
    return f"runs/{'-'.join(parts)}"


def _ending(name: str, names: Iterable[str]) -> str:
    """The shortest end of a dotted name that no other name has."""
    words = name.split(".")
    ends = [".".join(words[start:]) for start in reversed(range(len(words)))]
    return next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1)


def _part(option: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return option if value else f"no_{option}"
    word = _word(value)
    is_plain = not isinstance(value, str) and word[0].isdigit() and not option[-1].isdigit()
    return f"{option}{word}" if is_plain else f"{option}_{word}"


def _word(value: Any) -> str:
    """A value as a part of a file's name. Different values make different words."""
    if isinstance(value, list):
        return "x".join(map(_word, value)) or "empty"
    if not isinstance(value, str):
        return repr(value).removesuffix(".0")
    word = re.sub(r"[^A-Za-z0-9._+-]+", "_", value.rstrip("/").rpartition("/")[2])[:24]
    return word if word == value else f"{word.strip('_')}_{_digest(value, 6)}".lstrip("_")


def _digest(value: Any, length: int) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def printable(text: str) -> str:
    """Text of a user's or a file's as one line of a terminal or a page: what no line can show stands as its number."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
