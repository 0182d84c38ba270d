"""The checksums of a checkpoint: written into its folder before it counts as saved, verified before it is read."""

import hashlib
import json
from pathlib import Path
from typing import Any

from train.run.atomic import write_atomic
from w2jax.files import json_object, read_json

VERSION = 2
"""Of a checkpoint's layout. Version 1 had no manifest: its bytes cannot be verified."""

_MANIFEST = "manifest.json"
_PROGRESS = "progress/metadata"  # JSON of the training loop; the name is orbax's
_LATE = "_CHECKPOINT_METADATA"  # orbax writes the time into it after it has renamed the checkpoint's folder


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """The steps in a folder of checkpoints, ascending, without one that is still being written."""
    return sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal() and path.is_dir())


def write_manifest(checkpoint: Path, finished: bool) -> None:
    """Lists each file of a checkpoint with its size and SHA-256; files in an existing list are not read again.

    Until orbax has `finished` the checkpoint, one file may still change and is left out.
    """
    manifest = checkpoint / _MANIFEST
    files = read_json(manifest)["files"] if manifest.exists() else {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and name not in files and name != _MANIFEST and (finished or name != _LATE):
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    write_atomic(manifest, json.dumps({"version": VERSION, "files": files}, indent=1) + "\n")


def has_manifest(checkpoint: Path) -> bool:
    """Whether its bytes can be verified."""
    return (checkpoint / _MANIFEST).is_file()


def damage(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that is not as it was saved, and why; None if all are.

    Raises:
        ValueError: the checkpoint was saved by a later version of this code.
    """
    # Only version 1 has no manifest: later ones are written before the checkpoint is renamed into its place.
    first = _MANIFEST if has_manifest(checkpoint) else _PROGRESS
    try:
        content = json_object(first, (checkpoint / first).read_bytes())
    except (OSError, ValueError) as error:
        return f"{first} cannot be read ({error})"
    version = content.get("version", 1)
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"the layout of {checkpoint} must be at most {VERSION}, got {version}. Upgrade w2jax")
    if first == _PROGRESS:
        return None if version == 1 else f"{_MANIFEST} is missing"
    try:
        for name, entry in content["files"].items():
            if (fault := _fault(checkpoint / name, entry)) is not None:
                return f"{name} {fault}"
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} or what it lists cannot be read ({error!r})"
    return None


def _fault(path: Path, entry: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"has {size} bytes, {entry['bytes']} were saved"
    return None if _sha256(path) == entry["sha256"] else "has other bytes than were saved"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
