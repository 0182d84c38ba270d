"""Strict JSON, and writes that leave either the old file or the new one. This module imports no JAX."""

import io
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_JSON = 100_000_000  # bytes; the safetensors library accepts no longer header
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a JSON object, has a duplicate key, or is longer than `MAX_JSON`.
    """
    with path.open("rb") as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise ValueError(f"{path} must be JSON of at most {MAX_JSON} bytes, got more")
    return json_object(str(path), content)


def json_object(source: str, content: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        ValueError: it is not one, or has a duplicate key; the message begins with `source`.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} must be valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source} must be a JSON object, got a {type(value).__name__}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    merged = dict(pairs)
    if len(merged) < len(pairs):
        raise ValueError(f"duplicate key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r}")
    return merged


def string_map(value: Any) -> dict[str, str] | None:
    """`value` if it is a dict of strings by string, else None."""
    valid = isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)
    return value if valid else None


def write_files_atomic(files: Mapping[Path, Callable[[io.BufferedWriter], object]]) -> None:
    """Writes each file by its function. If one fails, every target keeps its old content and no new file is left.

    Several files cannot be replaced in one step. All are written next to their targets first and then renamed in the
    order given: put the file that makes the others valid last. A killed process leaves files that `is_temporary`
    recognises.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, write in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path] = path.with_name(f".{secrets.token_hex(8)}.tmp")
            with staged[path].open("xb") as file:  # "x" never follows a link or reuses a file
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in staged.items():
            temporary.replace(path)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
    for folder in {path.parent for path in files}:
        _sync_folder(folder)


def is_temporary(name: str) -> bool:
    """Whether a file of that name is left over from a killed `write_files_atomic`."""
    return _TEMPORARY.fullmatch(name) is not None


def _sync_folder(folder: Path) -> None:
    """Makes renames survive a power failure, where the system can open a folder (Windows cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
