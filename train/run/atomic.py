"""Writes a file completely or not at all, and refuses links inside a run folder."""

from pathlib import Path

from train.process.errors import UserError
from w2jax.files import write_files_atomic


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces a file. Readers find either the old or the new content, even after the machine crashes."""
    write_files_atomic({path: lambda file: file.write(content.encode() if isinstance(content, str) else content)})


def check_no_link(folder: Path, within: Path) -> None:
    """Raises UserError if `folder`, or a folder between it and `within`, is a symbolic link.

    A run folder from someone else may contain links to places outside. `folder` may lie outside `within`. Then the user
    chose it, and it may be a link.
    """
    folder, within = folder.absolute(), within.absolute()
    for place in (folder, *folder.parents):
        if place == within or within not in place.parents:
            return
        if place.is_symlink():
            raise UserError(f"{place} must be a folder inside {within}, got a symbolic link. Choose another --out")
