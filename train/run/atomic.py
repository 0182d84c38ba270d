"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces a file: who reads it finds the old content or the new, also after a crash of the machine."""
    scratch = path.with_name(f"{path.name}.new")
    with scratch.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
