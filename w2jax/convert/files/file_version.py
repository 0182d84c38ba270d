"""Detect that a file has changed since its header was read, so that lazy reads never mix two versions."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class FileVersion(NamedTuple):
    """Properties of a file that change when the file is written or replaced."""

    size: int  # Size in bytes.
    modified: int  # Time of the last modification in nanoseconds.
    inode: int  # Inode number.


def file_version(file: io.BufferedReader) -> FileVersion:
    """Return the version of an open file."""
    status = os.fstat(file.fileno())
    return FileVersion(status.st_size, status.st_mtime_ns, status.st_ino)


@contextmanager
def reopen(path: Path, version: FileVersion) -> Iterator[io.BufferedReader]:
    """Open the file again; raise a ValueError if its version has changed, because tensors may be at other places."""
    with path.open("rb") as file:
        if file_version(file) != version:
            raise ValueError(f"{path} has changed since its header was read. Read it again")
        yield file
