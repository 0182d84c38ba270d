"""Lists the image files of a folder, and says what it leaves out and why."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from train.data.decode import CONVERT_HEIC, HEIC_SUFFIXES, SUFFIXES
from w2jax.text import one_line

HIDDEN = "hidden"
"""Reason for files of the system or of a program, such as a second copy in .ipynb_checkpoints."""

# Folders in which macOS, NAS devices, Windows and Linux keep thumbnails, metadata and deleted files.
_SYSTEM_FOLDERS = {
    "__macosx",
    "@eadir",
    "#recycle",
    "@recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}


class LeftOut(NamedTuple):
    """A file or folder that is not used."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """The files of a folder and its subfolders."""

    images: list[Path] = field(default_factory=list)
    """Files whose names end like an image's, sorted. Their content is not checked, and a broken link is one of them."""
    left_out: list[LeftOut] = field(default_factory=list)
    unreadable: list[LeftOut] = field(default_factory=list)
    """Folders and links that cannot be read, with the system's reason."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder with this name never contains the user's images."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def list_images(place: Path) -> Listing:
    """Lists the files in a folder and its subfolders.

    Links to folders are followed, but each folder is read only once, so links that form a loop end. Only names below
    `place` can make a file hidden, not the name of `place`.
    """
    found = Listing()
    seen: set[tuple[int, int, bool]] = set()
    folders, links = [(place, False)], []
    while folders or links:
        # Links come last, so a file has the name without links if it has one.
        folder, hidden = folders.pop() if folders else links.pop(0)
        try:
            status, paths = folder.stat(), sorted(folder.iterdir())
        except OSError as error:
            found.unreadable.append(LeftOut(folder, _cause(error)))
            continue
        if (identity := (status.st_dev, status.st_ino, hidden)) in seen:
            found.left_out.append(LeftOut(folder, "a link to a folder that is listed already"))
            continue
        seen.add(identity)
        for path in paths:
            is_below_hidden = hidden or is_hidden(path.name)
            try:
                if path.is_dir():
                    (links if path.is_symlink() else folders).append((path, is_below_hidden))
                elif reason := HIDDEN if is_below_hidden else _why_not(path):
                    found.left_out.append(LeftOut(path, reason))
                else:
                    found.images.append(path)
            except OSError as error:
                found.unreadable.append(LeftOut(path, _cause(error)))
    found.images.sort()
    return found


def _why_not(path: Path) -> str | None:
    """Returns why a file is not listed as an image, or None if it is."""
    suffix = path.suffix.lower()
    if suffix in HEIC_SUFFIXES:
        return CONVERT_HEIC
    if suffix not in SUFFIXES:
        return "not a format that is read"
    return None if path.is_file() or not path.exists() else "not a file"


def _cause(error: OSError) -> str:
    return error.strerror or str(error)


def describe(left_out: Iterable[LeftOut]) -> list[str]:
    """Returns one line for each reason: the number of files by extension, and one of the files."""
    by_reason = defaultdict(list)
    for path, reason in left_out:
        by_reason[reason].append(path)
    return [
        one_line(f"{reason}: {_count_by_suffix(paths)}, such as {min(paths)}")
        for reason, paths in sorted(by_reason.items())
    ]


def _count_by_suffix(paths: Iterable[Path]) -> str:
    counts = Counter(path.suffix.lower() for path in paths).most_common()
    shown = [f"{count} {suffix or 'without an extension'}" for suffix, count in counts[:8]]
    if others := sum(count for _, count in counts[8:]):
        shown.append(f"{others} with other extensions")
    return ", ".join(shown)
