"""The checksums of a checkpoint: written into its folder before it counts as saved, checked before it is read."""

import hashlib
import json
from pathlib import Path
from typing import Any

from w2jax.convert.files.safe_io import json_object, write_files_atomic

VERSION = 2
"""Of a checkpoint's layout. Version 1 had no manifest: its bytes are taken as they are."""

_MANIFEST = "manifest.json"
_PROGRESS = "progress/metadata"  # JSON of the training loop, as orbax calls its file
_LATE = "_CHECKPOINT_METADATA"  # orbax writes the time into it when the checkpoint is in its place


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """The steps that a folder of checkpoints has, rising; one that is still being written does not count."""
    return sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal() and path.is_dir())


def write_manifest(checkpoint: Path, finished: bool) -> None:
    """Lists each file of a checkpoint with its size and SHA-256; those that are listed already are not read again.

    `finished` says whether orbax is done with it: until then one file may change, which is left out.
    """
    manifest = checkpoint / _MANIFEST
    files = json_object(str(manifest), manifest.read_bytes())["files"] if manifest.exists() else {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and name not in files and name != _MANIFEST and (finished or name != _LATE):
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    content = json.dumps({"version": VERSION, "files": files}, indent=1) + "\n"
    write_files_atomic({manifest: lambda file: file.write(content.encode())})


def has_manifest(checkpoint: Path) -> bool:
    """Whether its bytes can be checked."""
    return (checkpoint / _MANIFEST).is_file()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, naming the first; None if they are those that were saved.

    Raises:
        ValueError: it was saved by a later version of this code.
    """
    # Only the first version has no manifest: later ones come into their place with it.
    first = _MANIFEST if has_manifest(checkpoint) else _PROGRESS
    try:
        content = json_object(first, (checkpoint / first).read_bytes())
    except (OSError, ValueError) as error:
        return f"{first} cannot be read ({error})"
    version = content.get("version", 1)
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"{checkpoint} has layout {version}, this w2jax knows those up to {VERSION}: upgrade it")
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
