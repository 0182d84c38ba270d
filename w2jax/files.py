"""Read files safely, and write files atomically: a file has either its old or its new content. Imports no JAX."""

import errno
import io
import json
import os
import re
import secrets
import stat
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_JSON = 100_000_000  # bytes; the safetensors library has the same limit for its header
_MAX_DEPTH = 100  # levels of nested JSON; config.json files of models have about ten
_MAX_GROWTH, _SMALL = 100, 2**30  # in memory, arrays may have 100 times the size of their file, or 1 GiB
MAX_JSON_PARTS = 10_000_000  # commas and opening brackets; they are parsed in about five seconds
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def read_regular(path: Path, limit: int = MAX_JSON, follow_links: bool = True) -> bytes:
    """Read a regular file of at most `limit` bytes. Reading a pipe or a device might never end.

    Raises:
        OSError: the file cannot be read, or is a symbolic link and `follow_links` is False.
        ValueError: it is not a regular file, or is longer than `limit`.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for its writer
    flags |= 0 if follow_links else getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path} must be a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise ValueError(f"{path} must have at most {limit} bytes, got more")
    return content


def check_growth(path: Path, memory: int, size: int) -> None:
    """Raise a ValueError if the arrays of a file of `size` bytes need much more `memory`, in bytes."""
    limit = max(_SMALL, _MAX_GROWTH * size)
    if memory > limit:
        raise ValueError(
            f"{path} must unpack to at most {limit} bytes, got {memory} (the file has {size} bytes). "
            "The file may be malicious"
        )


def read_json(path: Path, follow_links: bool = True) -> dict[str, Any]:
    """Read a JSON object from a file of at most `MAX_JSON` bytes. Editors on Windows may begin it with a BOM.

    Raises:
        OSError: as in `read_regular`.
        ValueError: as in `read_regular` and `json_object`.
    """
    return json_object(str(path), read_regular(path, follow_links=follow_links).removeprefix(BOM_UTF8))


def json_object(source: str, content: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: `content` is not a JSON object, has a duplicate key, more than `MAX_JSON_PARTS` parts, or nests more
            than 100 levels. The message begins with `source`.
    """
    parts = sum(map(content.count, (b",", b"[", b"{")))
    if parts > MAX_JSON_PARTS:
        raise ValueError(f"{source} must have at most {MAX_JSON_PARTS} commas and opening brackets, got {parts}")
    try:
        value = json.loads(content.decode(), object_pairs_hook=_without_duplicates)
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} must be valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source} must be a JSON object, got a {type(value).__name__}")
    return value


def _check_depth(value: Any) -> None:
    """Raise a ValueError if JSON is nested too deeply for recursive functions, such as those that build a model."""
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        inner = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list)))
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ValueError(f"lists and objects must nest at most {_MAX_DEPTH} levels")


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
    If the process is killed, temporary files may remain; `is_temporary` recognizes their names.

    A symbolic link at a path is replaced. The file that it points to keeps its content.

    Args:
        files: for each path, a function that writes the content to an open binary file.

    Raises:
        OSError: a file cannot be written, or something other than a file, such as /dev/stdout, is at its path.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, write in files.items():
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "it is not a regular file", str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path] = path.with_name(f".{secrets.token_hex(8)}.tmp")
            try:
                with staged[path].open("xb") as file:  # "x" never follows a link or reuses a file
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                error.filename = str(path)  # The temporary name would mean nothing to the user.
                raise
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
