"""Readers of the files that MNIST and CIFAR are published in; each checks all that a file says about itself."""

import gzip
import io
import math
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import numpy as np

from train.process.errors import UserError

_MOST_ARCHIVE = 2**28  # Bytes, expanded; CIFAR's archives have 184 million.
_TORN = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError)  # ValueError: of a header that tarfile trusts.


class Raw:
    """Raw files by name: of a folder, of a tar archive read in place (nothing of it is written to disk), or given."""

    def __init__(self, place: Path, files: Mapping[str, Path] | None = None) -> None:
        """Opens a folder or an archive (.tar, .tar.gz); `files` says where some lie that are not in `place`.

        Raises:
            UserError: `place` is neither, or is larger than the archives of CIFAR can be.
        """
        self._place, self._files = place, files or {}
        self._archive = None if place.is_dir() else _archive(place)

    def read(self, *names: str, most: int) -> tuple[str, bytes]:
        """The first file of those names that is there: where it is and its bytes, a gzip file's expanded.

        Args:
            names: of one file.
            most: bytes that it may have; no more than one beyond is read or expanded.

        Raises:
            UserError: none is there, it cannot be read or expanded, or it has more bytes.
        """
        for name in names:
            path = self._files.get(name, self._place / name)
            try:
                if self._archive is not None:
                    member = self._archive.getmember(name)
                    found = self._archive.extractfile(member) if member.isfile() else None  # No link is followed.
                else:
                    found = path.open("rb") if path.is_file() else None
                if found is not None:
                    return str(path), _bounded(found, path, most)
            except KeyError:
                continue
            except _TORN as error:
                raise UserError(f"{path} cannot be read whole ({error}); fetch it again") from error
        raise UserError(f"{self._place} has no file {' or '.join(names)}; give the folder of the raw files by --from")


def _archive(place: Path) -> tarfile.TarFile:
    """An archive in memory, where what it says of its parts' sizes cannot ask for more."""
    try:
        archive = tarfile.open(fileobj=io.BytesIO(_bounded(place.open("rb"), place, _MOST_ARCHIVE)), mode="r:")  # noqa: SIM115
        archive.getmembers()
    except FileNotFoundError as error:
        raise UserError(f"--from: wanted a folder or a .tar.gz, got {place}, which does not exist") from error
    except _TORN as error:
        why = " ".join(str(error).split())
        raise UserError(f"{place} is not a whole tar archive ({why}); fetch it again") from error
    return archive


def _bounded(file: IO[bytes], path: Path, most: int) -> bytes:
    """The bytes of a file, expanded if it is gzipped; closes it."""
    with file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if packed else nullcontext(file) as plain:
            content = plain.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: wanted at most {most:,} bytes, got more; fetch it again")
    return content


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
    if values != math.prod(shape):
        raise UserError(f"{where}: wanted {math.prod(shape)} values after the header, got {values}; fetch it again")
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
    record = cifar_record(label_bytes)
    if len(content) != count * record:
        raise UserError(f"{where}: wanted {count} records of {record} bytes, got {len(content)} bytes; fetch it again")
    table = np.frombuffer(content, np.uint8).reshape(count, record)
    return table[:, label_bytes:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1), table[:, :label_bytes]


def cifar_record(label_bytes: int) -> int:
    """Bytes of one image in a CIFAR file, with its labels."""
    return label_bytes + 3 * 32 * 32


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
