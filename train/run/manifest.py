"""Writes the checksums of a checkpoint before it counts as saved, and verifies them before it is read."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.run.atomic import write_atomic
from w2jax.files import read_json

VERSION = 2
"""Version of the checkpoint format. Version 1 has no manifest, so it cannot be verified."""

_MANIFEST = "manifest.json"
_PROGRESS = "progress/metadata"  # JSON of the training loop; orbax chose the file name
_STATE = "state/"
_STEP = re.compile(r"0|[1-9][0-9]{0,18}")  # the name of a checkpoint, as orbax writes it
_LATE = "_CHECKPOINT_METADATA"  # orbax writes the time into it after it renames the checkpoint folder


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """Returns the steps in a folder of checkpoints, in ascending order. Checkpoints in progress are excluded."""
    return sorted(int(path.name) for path in checkpoints.glob("*") if _STEP.fullmatch(path.name) and path.is_dir())


def saved_scores(checkpoint: Path) -> dict[int, float]:
    """Returns the test score at each step that was evaluated before the checkpoint was saved. Verify it first.

    Checkpoints of older versions have none.
    """
    scores = read_json(checkpoint / _PROGRESS, follow_links=False).get("scores", {})
    return {int(step): float(score) for step, score in scores.items()}


def write_manifest(checkpoint: Path, finished: bool) -> None:
    """Lists each file of a checkpoint with its size and SHA-256. Files in an existing manifest are not read again.

    Before orbax has `finished` the checkpoint, one file may still change and is left out. The manifest also has a
    checksum of all its fields, because a wrong version number would stop the run.

    Raises:
        FileNotFoundError: if the checkpoint does not exist. It is not created.
    """
    if not checkpoint.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(checkpoint))
    manifest = checkpoint / _MANIFEST
    files = read_json(manifest)["files"] if manifest.exists() else {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and name not in files and name != _MANIFEST and (finished or name != _LATE):
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    content = {"version": VERSION, "files": files}
    write_atomic(manifest, json.dumps(content | {"sha256": _own_checksum(content)}, indent=1) + "\n")


def has_manifest(checkpoint: Path) -> bool:
    """Returns whether a checkpoint has a manifest, so that it can be verified."""
    return (checkpoint / _MANIFEST).is_file()


def damage(checkpoint: Path) -> str | None:
    """Returns the first damaged file of a checkpoint, and what is wrong with it; None if the checkpoint is valid.

    A checkpoint may come from someone else. So this function reads only regular files, and it counts any other as
    damaged, such as a link. Orbax would read them without a limit.

    Raises:
        ValueError: if the checkpoint was saved by a later version of this code.
    """
    if checkpoint.is_symlink() or checkpoint.parent.is_symlink():
        return "the checkpoint must not be in a symbolic link"
    try:
        for path in sorted(checkpoint.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                return f"{path.relative_to(checkpoint)} must be a regular file or a folder"
        # Only version 1 has no manifest. Later versions write it before the checkpoint gets its final name.
        is_version_1 = not has_manifest(checkpoint)
    except (OSError, RecursionError) as error:
        return f"its folders cannot be read ({error})"
    if is_version_1:
        return _damage_without_manifest(checkpoint)
    try:
        content = read_json(checkpoint / _MANIFEST)
    except (OSError, ValueError) as error:
        return f"{_MANIFEST} cannot be read ({error})"
    checksum, version = content.pop("sha256", None), content.get("version")
    # The manifests of the first runs of version 2 have no checksum. Later versions have one.
    if checksum != _own_checksum(content) and (checksum is not None or version != VERSION):
        return f"{_MANIFEST} does not match its checksum"
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"the format version of {checkpoint} must be at most {VERSION}, got {version}. Upgrade w2jax")
    try:
        files = content["files"]
        if not any(name.startswith(_STATE) for name in files):
            return f"{_MANIFEST} lists no file of the state"
        for name, entry in files.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                return f"{_MANIFEST} lists a file outside the checkpoint"
            if (fault := _fault(checkpoint / name, entry)) is not None:
                return f"{name} {fault}"
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} or a file in it cannot be read ({error!r})"
    return None


def _damage_without_manifest(checkpoint: Path) -> str | None:
    try:
        progress = read_json(checkpoint / _PROGRESS)
    except (OSError, ValueError) as error:
        return f"{_PROGRESS} cannot be read ({error})"
    return None if "version" not in progress else f"{_MANIFEST} is missing"


def _own_checksum(content: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a manifest without its field "sha256". The order of its fields does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fault(path: Path, entry: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"must have {entry['bytes']} bytes, got {size}"
    return None if _sha256(path) == entry["sha256"] else "does not match its checksum"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
