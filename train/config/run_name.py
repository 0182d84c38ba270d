"""The default run folder of a config, named by the preset and the changed options."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_LONGEST = 100  # characters in a folder's name; file systems allow 255 bytes


def default_folder(task: str, preset: str, changed: Mapping[str, Any], names: Iterable[str]) -> str:
    """runs/TASK-PRESET, followed by the changed options, as in runs/vit-sample-depth6-seed1.

    Args:
        task: the task's name.
        preset: the preset's name.
        changed: the values of the options that differ from the preset, by dotted name. A hash replaces a string that
            cannot be part of a file name. A hash also replaces the options that would make the name too long.
        names: all option names. Each name is shortened as far as it stays unique among them.
    """
    names = list(names)
    parts = [f"{task}-{preset}", *(_part(_shortest_ending(name, names), value) for name, value in changed.items())]
    if len("-".join(parts)) > _LONGEST:
        digest = _digest(dict(changed), 8)
        while len("-".join([*parts, digest])) > _LONGEST:
            parts.pop()
        parts.append(digest)
    return f"runs/{'-'.join(parts)}"


def _shortest_ending(name: str, names: Iterable[str]) -> str:
    """The shortest ending of a dotted name that is unique among `names`."""
    words = name.split(".")
    endings = [".".join(words[start:]) for start in reversed(range(len(words)))]
    return next(end for end in endings if sum(f".{other}".endswith(f".{end}") for other in names) == 1)


def _part(option: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return option if value else f"no_{option}"
    word = _word(value)
    is_plain = not isinstance(value, str) and word[0].isdigit() and not option[-1].isdigit()
    return f"{option}{word}" if is_plain else f"{option}_{word}"


def _word(value: Any) -> str:
    """A value as part of a file name. Different values give different words."""
    if isinstance(value, list):
        return "x".join(map(_word, value)) or "empty"
    if not isinstance(value, str):
        return repr(value).removesuffix(".0")
    word = re.sub(r"[^A-Za-z0-9._+-]+", "_", value.rstrip("/").rpartition("/")[2])[:24]
    return word if word == value else f"{word.strip('_')}_{_digest(value, 6)}".lstrip("_")


def _digest(value: Any, length: int) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]
