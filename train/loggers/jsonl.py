"""metrics.jsonl and timing.jsonl: append-only JSON lines that a resumed run continues."""

import json
import os
from pathlib import Path
from typing import Any

from train.run.atomic import write_atomic
from train.run.files import read_lines


class JsonLines:
    """A JSON-lines file that a resumed run continues at its checkpoint.

    Bytes that a full disk does not take wait in memory and are written with the next line. `sync` raises if they
    cannot be.
    """

    def __init__(self, path: Path, step: int, writes: bool = True):
        """Drops the lines after `step`, whose steps will be repeated. Without `writes` it only reads the file."""
        self.restored = [line for line in read_lines(path) if line["step"] <= step]
        """The lines of earlier processes."""
        self.count = len(self.restored)
        """How many lines there are now."""
        self._file, self._unwritten = None, b""
        if writes:
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in self.restored))
            self._file = path.open("ab", buffering=0)

    def write(self, **line: Any) -> None:
        """Appends one object."""
        self.count += 1
        if self._file is not None:
            self._unwritten += f"{json.dumps(line, allow_nan=False)}\n".encode()
            try:
                self._flush()
            except OSError:
                return  # The next line tries again, and `sync` raises.

    def sync(self) -> None:
        """Returns when every line is on disk.

        Raises:
            OSError: if they cannot be written.
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
