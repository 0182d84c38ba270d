"""Readers of the files that MNIST and CIFAR are published in; each checks all that a file says about itself."""

import gzip
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from train.errors import UserError


class Raw:
    """Raw files by name: of a folder, of a tar archive read in place (nothing of it is written to disk), or given."""

    def __init__(self, place: Path, files: Mapping[str, Path] | None = None) -> None:
        """Opens a folder or an archive (.tar, .tar.gz); `files` says where some lie that are not in `place`.

        Raises:
            UserError: `place` is neither.
        """
        self._place, self._files = place, files or {}
        self._archive = None if place.is_dir() else _archive(place)

    def read(self, *names: str) -> tuple[str, bytes]:
        """The first file of those names that is there: where it is and its bytes, a gzip file's expanded.

        Raises:
            UserError: none is there, or it cannot be read or expanded.
        """
        for name in names:
            path = self._files.get(name, self._place / name)
            try:
                content = path.read_bytes() if self._archive is None else _member(self._archive, name)
                return str(path), gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            except (KeyError, FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
                raise UserError(f"{path} cannot be read whole ({error}); fetch it again") from error
        raise UserError(f"{self._place} has no file {' or '.join(names)}; give the folder of the raw files by --from")


def _archive(place: Path) -> tarfile.TarFile:
    try:
        archive = tarfile.open(place)  # noqa: SIM115  It stays open as long as its Raw.
        archive.getmembers()
    except FileNotFoundError as error:
        raise UserError(f"--from: wanted a folder or a .tar.gz, got {place}, which does not exist") from error
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{place} is not a whole tar archive ({str(error).splitlines()[0]}); fetch it again") from error
    return archive


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """A file of an archive; KeyError where there is none of that name, or it is a folder or a link that leads out."""
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def idx(where: str, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Parses an idx file of bytes, the format of MNIST.

    Args:
        where: the file's name, for errors.
        content: two zeros, the type 8, the number of axes, each axis as a big-endian uint32, the values.
        shape: the axes wanted.

    Returns:
        uint8, of that shape.

    Raises:
        UserError: it is no such file, has other axes, or is cut short or too long.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UserError(f"{where} is not an idx file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}")
    axes, start = content[3], 4 + 4 * content[3]
    found = tuple(int(size) for size in np.frombuffer(content[4:start].ljust(4 * axes, b"\0"), ">u4"))
    if found != shape:
        raise UserError(f"{where}: wanted an idx file of {_by(shape)} values, got {_by(found)}")
    values = len(content) - start
    if values != np.prod(shape):
        raise UserError(f"{where}: wanted {np.prod(shape)} values after the header, got {values}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def cifar(where: str, content: bytes, count: int, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Parses a file of CIFAR's binary version: per image its label bytes, then 3 planes of 32 x 32.

    Args:
        where: the file's name, for errors.
        content: the file.
        count: images wanted.
        label_bytes: 1 for CIFAR-10; 2 for CIFAR-100, the coarse label first.

    Returns:
        Images uint8 [count, 32, 32, 3] and labels uint8 [count, label_bytes].

    Raises:
        UserError: the file has another size.
    """
    record = label_bytes + 3 * 32 * 32
    if len(content) != count * record:
        raise UserError(f"{where}: wanted {count} records of {record} bytes, got {len(content)} bytes; fetch it again")
    table = np.frombuffer(content, np.uint8).reshape(count, record)
    return table[:, label_bytes:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1), table[:, :label_bytes]


def names(where: str, content: bytes, count: int) -> list[str]:
    """Label names, one a line; UserError if they are not `count` different names."""
    try:
        found = [line.strip() for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not a text of label names ({error})") from error
    if len(found) != count or len(set(found)) != count:
        raise UserError(f"{where}: wanted {count} different label names, got {len(found)}")
    return found


def check_labels(labels: np.ndarray, where: str, classes: int) -> None:
    """UserError, with the first record, unless all labels int [N] lie in 0..classes-1."""
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise UserError(f"{where}, record {wrong[0]}: wanted a label in 0..{classes - 1}, got {labels[wrong[0]]}")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no"
