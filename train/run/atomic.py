"""Files that are written completely or not at all."""

from pathlib import Path

from w2jax.files import write_files_atomic


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces a file: readers find the old content or the new, also after a crash of the machine."""
    write_files_atomic({path: lambda file: file.write(content.encode() if isinstance(content, str) else content)})
