"""Writes the checksums of a checkpoint before it counts as saved, and verifies them before it is read."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from train.run.atomic import write_atomic
from w2jax.files import json_object, read_json

VERSION = 2
"""Version of the checkpoint format. Version 1 has no manifest, so it cannot be verified."""

_MANIFEST = "manifest.json"
_PROGRESS = "progress/metadata"  # JSON of the training loop; orbax chose the file name
_STATE = "state/"
_LATE = "_CHECKPOINT_METADATA"  # orbax writes the time into it after it renames the checkpoint folder


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """Returns the steps in a folder of checkpoints, in ascending order. Checkpoints in progress are excluded."""
    return sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal() and path.is_dir())


def write_manifest(checkpoint: Path, finished: bool) -> None:
    """Lists each file of a checkpoint with its size and SHA-256. Files in an existing manifest are not read again.

    Before orbax has `finished` the checkpoint, one file may still change and is left out.

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
    write_atomic(manifest, json.dumps({"version": VERSION, "files": files}, indent=1) + "\n")


def has_manifest(checkpoint: Path) -> bool:
    """Returns whether a checkpoint has a manifest, so that it can be verified."""
    return (checkpoint / _MANIFEST).is_file()


def damage(checkpoint: Path) -> str | None:
    """Returns the first damaged file of a checkpoint, and what is wrong with it; None if the checkpoint is valid.

    Raises:
        ValueError: if the checkpoint was saved by a later version of this code.
    """
    # Only version 1 has no manifest. Later versions write it before the checkpoint gets its final name.
    first = _MANIFEST if has_manifest(checkpoint) else _PROGRESS
    try:
        content = json_object(first, (checkpoint / first).read_bytes())
    except (OSError, ValueError) as error:
        return f"{first} cannot be read ({error})"
    version = content.get("version", 1)
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"the format version of {checkpoint} must be at most {VERSION}, got {version}. Upgrade w2jax")
    if first == _PROGRESS:
        return None if version == 1 else f"{_MANIFEST} is missing"
    try:
        if not any(name.startswith(_STATE) for name in content["files"]):
            return f"{_MANIFEST} lists no file of the state"
        for name, entry in content["files"].items():
            if (fault := _fault(checkpoint / name, entry)) is not None:
                return f"{name} {fault}"
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} or a file in it cannot be read ({error!r})"
    return None


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
