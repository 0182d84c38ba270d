"""Writes a file completely or not at all."""

from pathlib import Path

from w2jax.files import write_files_atomic


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces a file. Readers find either the old or the new content, even after the machine crashes."""
    write_files_atomic({path: lambda file: file.write(content.encode() if isinstance(content, str) else content)})
