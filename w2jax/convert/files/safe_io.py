"""What all file formats need: files that stay as they were, strict JSON, and writing all or nothing."""

import io
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

MAX_JSON = 100_000_000  # bytes; that many are the most that the safetensors library takes for a header


class FileVersion(NamedTuple):
    """Which file was read, so that what is read later is of the same."""

    size: int
    modified: int
    number: int


def seen(file: io.BufferedReader) -> FileVersion:
    """Which file an open one is, as it stands now."""
    status = os.fstat(file.fileno())
    return FileVersion(status.st_size, status.st_mtime_ns, status.st_ino)


@contextmanager
def reopened(path: Path, before: FileVersion) -> Iterator[io.BufferedReader]:
    """The file again; ValueError if it is another than before, where the places of tensors may be others too."""
    with path.open("rb") as file:
        if seen(file) != before:
            raise ValueError(f"{path} has changed since its header was read; read it anew")
        yield file


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it is none, or larger than any that describes weights.
    """
    with path.open("rb") as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise ValueError(f"{path}: wanted at most {MAX_JSON} bytes of JSON, got more")
    return json_object(str(path), content)


def json_object(where: str, content: bytes) -> dict[str, Any]:
    """Parses a JSON object of which no key stands twice.

    Raises:
        ValueError: it is none; `where` is named.
    """
    try:
        found = json.loads(content.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: wanted JSON, but {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: wanted a JSON object, got {type(found).__name__}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} stands twice")
    return found


def strings(found: Any) -> dict[str, str] | None:
    """The value itself if it maps strings to strings, else None."""
    whole = isinstance(found, dict) and all(isinstance(text, str) for pair in found.items() for text in pair)
    return found if whole else None


def write_files_atomic(files: Mapping[Path, Callable[[io.BufferedWriter], object]]) -> None:
    """Writes files, each by its function; if one fails, all targets stay as they were and no other file is left.

    Several files cannot be replaced in one stroke. So all are written beside their targets first, and then renamed in
    the order given: put what makes the others valid last.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, write in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path] = path.with_name(f".{secrets.token_hex(8)}.tmp")
            with staged[path].open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in staged.items():
            temporary.replace(path)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)
