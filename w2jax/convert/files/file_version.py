"""Which version of a file was read, so that a lazy read never mixes two of them."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class FileVersion(NamedTuple):
    """What changes when a file is replaced or written to."""

    size: int
    modified: int
    inode: int


def file_version(file: io.BufferedReader) -> FileVersion:
    """The version of an open file."""
    status = os.fstat(file.fileno())
    return FileVersion(status.st_size, status.st_mtime_ns, status.st_ino)


@contextmanager
def reopen(path: Path, version: FileVersion) -> Iterator[io.BufferedReader]:
    """The file again; ValueError if it has another version, in which tensors may lie elsewhere."""
    with path.open("rb") as file:
        if file_version(file) != version:
            raise ValueError(f"{path} has changed since its header was read. Read it again")
        yield file
