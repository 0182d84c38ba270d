"""Writes metrics.jsonl and timing.jsonl: JSON-lines files to which a resumed run appends."""

import json
import os
from pathlib import Path
from typing import Any

from train.run.atomic import write_atomic
from train.run.files import read_lines


class JsonLines:
    """A JSON-lines file. A resumed run appends to it after the rows of its checkpoint.

    If the disk is full, rows stay in memory and are written with the next row. `sync` raises an error if they still
    cannot be written.
    """

    def __init__(self, path: Path, step: int, writes: bool = True):
        """Deletes the rows after `step`, because those steps run again. If `writes` is False, only reads the file."""
        self.restored = [line for line in read_lines(path) if line["step"] <= step]
        """The rows of earlier processes."""
        self.count = len(self.restored)
        """Current number of rows."""
        self._file, self._unwritten = None, b""
        if writes:
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in self.restored))
            self._file = path.open("ab", buffering=0)

    def write(self, **line: Any) -> None:
        """Appends one row."""
        self.count += 1
        if self._file is not None:
            self._unwritten += f"{json.dumps(line, allow_nan=False)}\n".encode()
            try:
                self._flush()
            except OSError:
                return  # The next row tries again, and `sync` raises the error.

    def sync(self) -> None:
        """Waits until every row is on disk.

        Raises:
            OSError: if a row cannot be written.
        """
        if self._file is not None:
            self._flush()
            os.fsync(self._file.fileno())

    def _flush(self) -> None:
        while self._file is not None and self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()
