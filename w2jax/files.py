"""Read strict JSON, and write files atomically: a file has either its old or its new content. Imports no JAX."""

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

MAX_JSON = 100_000_000  # bytes; the safetensors library has the same limit for its header
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the content is not a JSON object, has a duplicate key, or is longer than `MAX_JSON`.
    """
    with path.open("rb") as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise ValueError(f"{path} must be a JSON file of at most {MAX_JSON} bytes, got a longer file")
    return json_object(str(path), content)


def json_object(source: str, content: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: `content` is not a JSON object or has a duplicate key. The message begins with `source`.
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
    """Return `value` if it is a dict with string keys and string values, else None."""
    valid = isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)
    return value if valid else None


def write_files_atomic(files: Mapping[Path, Callable[[io.BufferedWriter], object]]) -> None:
    """Write several files, each with its own function. If one write fails, all files keep their old content.

    Each file is first written to a temporary file in the same folder. Then the temporary files are renamed in the
    given order, because several files cannot be replaced in one step. Put the file that makes the others valid last.
    If the process is killed, temporary files may remain; `is_temporary` recognises their names.

    Args:
        files: for each path, a function that writes the content to an open binary file.
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
    """Return True if `name` is the name of a temporary file of `write_files_atomic`."""
    return _TEMPORARY.fullmatch(name) is not None


def _sync_folder(folder: Path) -> None:
    """Write renames in a folder to disk, so that they survive a power failure. Windows cannot do this."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
