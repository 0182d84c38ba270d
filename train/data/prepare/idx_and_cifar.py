"""Readers for the file formats of MNIST and CIFAR. They check sizes, headers and labels."""

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
from w2jax.text import one_line

_MAX_ARCHIVE_BYTES = 2**28  # Limit after decompression. CIFAR's archives have 184 million bytes.
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError)  # tarfile raises ValueError on bad headers.


class RawFiles:
    """Raw files in a folder or a tar archive. An archive is read in memory and never extracted to disk."""

    def __init__(self, place: Path, files: Mapping[str, Path] | None = None) -> None:
        """Opens a folder or an archive (.tar, .tar.gz).

        Args:
            place: the folder or archive.
            files: paths of the files that are not in `place`, by name.

        Raises:
            UserError: `place` is not a folder or tar archive, or expands to more than `_MAX_ARCHIVE_BYTES`.
        """
        self._place, self._files = place, files or {}
        self._archive = None if place.is_dir() else _archive(place)

    def read(self, *names: str, max_bytes: int) -> tuple[str, bytes]:
        """Returns the path and the bytes of the first file that exists. A gzip file is decompressed.

        Args:
            names: the possible names of one file.
            max_bytes: largest allowed size. The method reads or decompresses at most one byte more.

        Raises:
            UserError: no file has one of these names, or the file cannot be read or decompressed, or is larger than
                `max_bytes`.
        """
        for name in names:
            path = self._files.get(name, self._place / name)
            try:
                if self._archive is not None:
                    member = self._archive.getmember(name)
                    file = self._archive.extractfile(member) if member.isfile() else None  # Links are ignored.
                else:
                    file = path.open("rb") if path.is_file() else None
                if file is not None:
                    return str(path), _read_bounded(file, path, max_bytes)
            except KeyError:
                continue
            except _DAMAGED as error:
                raise UserError(f"{path} is damaged ({one_line(str(error))}). Download it again.") from error
        raise UserError(f"{self._place} has no file {' or '.join(names)}. Set --from to the folder of the raw files.")


def _archive(place: Path) -> tarfile.TarFile:
    """Opens an archive in memory, so wrong sizes in its headers cannot allocate too much memory."""
    try:
        content = _read_bounded(place.open("rb"), place, _MAX_ARCHIVE_BYTES)
        archive = tarfile.open(fileobj=io.BytesIO(content), mode="r:")  # noqa: SIM115
        archive.getmembers()
    except FileNotFoundError as error:
        raise UserError(f"--from must be a folder or a .tar.gz file, but {place} does not exist.") from error
    except _DAMAGED as error:
        why = one_line(str(error))
        raise UserError(
            f"{place} must be a complete tar archive, but cannot be read ({why}). Download it again."
        ) from error
    return archive


def _read_bounded(file: IO[bytes], path: Path, max_bytes: int) -> bytes:
    """Reads the bytes of a file, decompresses them if they are gzipped, and closes the file."""
    with file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.GzipFile(fileobj=file) if gzipped else nullcontext(file) as expanded:
            content = expanded.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path} must have at most {max_bytes:,} bytes, got more. Download it again.")
    return content


def parse_idx(path: str, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Parses an idx file of bytes, which is MNIST's format.

    Args:
        path: path of the file, for error messages.
        content: content of the file: two zero bytes, the type code 8, the number of axes, the size of each axis as a
            big-endian uint32, then the values.
        shape: the required shape.

    Returns:
        The values as uint8, with this shape.

    Raises:
        UserError: the file is not an idx file of bytes, has the wrong shape, or is too short or too long.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UserError(f"{path} must be an idx file of bytes, but it begins with {content[:4].hex(' ') or 'nothing'}.")
    axes, start = content[3], 4 + 4 * content[3]
    sizes = tuple(int(size) for size in np.frombuffer(content[4:start].ljust(4 * axes, b"\0"), ">u4"))
    if sizes != shape:
        raise UserError(f"{path} must be an idx file of shape {_format_shape(shape)}, got {_format_shape(sizes)}.")
    values = len(content) - start
    if values != math.prod(shape):
        raise UserError(
            f"{path} must have {math.prod(shape)} values after the header, got {values}. Download it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def parse_cifar(path: str, content: bytes, count: int, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Parses a file of CIFAR's binary version. Each image has its label bytes first, then 3 planes of 32 x 32 bytes.

    Args:
        path: path of the file, for error messages.
        content: content of the file.
        count: required number of images.
        label_bytes: 1 for CIFAR-10, 2 for CIFAR-100 (the coarse label comes first).

    Returns:
        Images uint8 [count, 32, 32, 3] and labels uint8 [count, label_bytes].

    Raises:
        UserError: the file has the wrong size.
    """
    record = cifar_record_bytes(label_bytes)
    if len(content) != count * record:
        raise UserError(
            f"{path} must have {count} records of {record} bytes, got {len(content)} bytes. Download it again."
        )
    table = np.frombuffer(content, np.uint8).reshape(count, record)
    return table[:, label_bytes:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1), table[:, :label_bytes]


def cifar_record_bytes(label_bytes: int) -> int:
    """Returns the number of bytes of one image and its labels in a CIFAR file."""
    return label_bytes + 3 * 32 * 32


def parse_label_names(path: str, content: bytes, count: int) -> list[str]:
    """Parses label names, one per line. Raises a UserError if they are not `count` different names."""
    try:
        names = [line.strip() for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be a UTF-8 text file of label names ({error}). Download it again.") from error
    if len(names) != count or len(set(names)) != count:
        raise UserError(f"{path} must have {count} different label names, got {len(names)} names. Download it again.")
    return names


def check_labels(labels: np.ndarray, path: str, classes: int) -> None:
    """Checks that `labels` (int [N]) are in 0..classes-1. Raises a UserError with the first record that is not."""
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise UserError(f"{path}, record {wrong[0]}: the label must be in 0..{classes - 1}, got {labels[wrong[0]]}.")


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no axes"
