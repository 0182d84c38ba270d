"""Writes metrics.jsonl and timing.jsonl: JSON-lines files to which a resumed run appends."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.run.atomic import write_atomic
from train.run.files import read_lines
from train.run.lock import is_at


class JsonLines:
    """A JSON-lines file. A resumed run appends to it after the rows of its checkpoint.

    If the disk is full, rows stay in memory and are written with the next row. `sync` raises an error if they still
    cannot be written.
    """

    def __init__(self, path: Path, step: int, writes: bool = True):
        """Reads the rows up to `step`. `__enter__` deletes the later rows, because those steps run again.

        If `writes` is False, the file is only read.
        """
        self.restored = [line for line in read_lines(path) if line["step"] <= step]
        """The rows of earlier processes."""
        self.count = len(self.restored)
        """Current number of rows."""
        self._path, self._writes, self._unwritten = path, writes, b""
        self._file: io.FileIO | None = None
        self._digest = hashlib.sha256(b"".join(map(_encoded, self.restored)))

    @property
    def checksum(self) -> str:
        """SHA-256 of all rows, as hexadecimal digits."""
        return self._digest.hexdigest()

    def write(self, **line: Any) -> None:
        """Appends one row."""
        self.count += 1
        row = _encoded(line, allow_nan=False)
        self._digest.update(row)
        if self._file is not None:
            self._unwritten += row
            try:
                self._flush()
            except OSError:
                return  # The next row tries again, and `sync` raises the error.

    def sync(self) -> None:
        """Waits until every row is on disk. If someone has deleted or replaced the file, writes it again.

        Raises:
            OSError: if a row cannot be written.
        """
        if self._file is None:
            return
        self._flush()
        if not is_at(self._file.fileno(), self._path):
            self._file.seek(0)
            write_atomic(self._path, self._file.read())
            self._file.close()
            self._file = _open(self._path)
        os.fsync(self._file.fileno())

    def _flush(self) -> None:
        while self._file is not None and self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def __enter__(self) -> "JsonLines":
        if self._writes:
            write_atomic(self._path, b"".join(map(_encoded, self.restored)))
            self._file = _open(self._path)
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()


def checksum(lines: Sequence[dict[str, Any]]) -> str:
    """Returns the `JsonLines.checksum` of a file with these rows."""
    return hashlib.sha256(b"".join(map(_encoded, lines))).hexdigest()


def _encoded(line: dict[str, Any], allow_nan: bool = True) -> bytes:
    return f"{json.dumps(line, allow_nan=allow_nan)}\n".encode()


def _open(path: Path) -> io.FileIO:
    """Opens a file to append to it. It can also be read, even after someone has deleted it."""
    return io.FileIO(os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC), "r+")
