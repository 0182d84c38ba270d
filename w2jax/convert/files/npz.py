"""Read and write .npz files as NumPy does: a zip archive of .npy files. Pickled objects are never read."""

import io
import json
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from w2jax.convert.files.file_version import FileVersion, file_version, reopen
from w2jax.convert.lazy_tensor import BFLOAT16, TORCH_DTYPES, LazyTensor, check_count, read_checked
from w2jax.files import json_object, string_map

_RAW_BFLOAT16 = np.dtype("V2")  # the dtype of bfloat16 in a .npy file
_MAX_COMMENT = 65_535  # bytes; the limit of the zip format
_MAX_RATIO = 1032  # maximum compression ratio of deflate
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_HEADER = 10_100  # bytes: NumPy's maximum, plus the magic bytes before it


def read_npz(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Read the headers of an .npz file: return (tensors in the archive's order, metadata in the archive's comment).

    Each tensor's `read` reads only its own member.

    Raises:
        ValueError: the file is not a complete .npz file with arrays of numbers.
    """
    with path.open("rb") as file:
        version = file_version(file)
        with _archive(path, file) as archive:
            members = archive.infolist()
            check_count(path, len(members))
            tensors = {}
            for member in members:
                key = member.filename.removesuffix(".npy")
                tensors[key] = _tensor(path, version, archive, member)
            if len(tensors) < len(members):
                raise ValueError(f"{path} must have one array per name, got several arrays with the same name")
            # zipfile accepts a truncated comment, so check its length, which is stored before the comment.
            file.seek(-2 - len(archive.comment), io.SEEK_END)
            if int.from_bytes(file.read(2), "little") != len(archive.comment):
                raise ValueError(f"{path} is not a complete .npz file (its end is missing). Write it again")
            return tensors, _metadata(archive.comment)


@contextmanager
def _archive(path: Path, file: io.BufferedReader) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and convert every exception of zipfile and NumPy for a broken archive to a ValueError."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, RuntimeError),
        *(ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, OverflowError),
    ) as error:
        if str(error).startswith(str(path)):  # raised by this module
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a complete .npz file ({reason}). Write it again") from error


def _tensor(path: Path, version: FileVersion, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> LazyTensor:
    name = f"{path}, {member.filename!r}"
    if not member.filename.endswith(".npy"):
        raise ValueError(f"{name} must be a .npy file")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{name} must be uncompressed or compressed with deflate, got the compression {member.compress_type}"
        )
    shape, dtype, start = _header(name, archive, member)
    needed = start + math.prod(shape) * dtype.itemsize
    # Check this before memory is allocated, because a wrong header could request any amount of memory.
    if member.file_size != needed or needed > _MAX_RATIO * version.size:
        raise ValueError(f"{name} must have {needed} bytes according to its header, got {member.file_size}")
    native = BFLOAT16 if dtype == _RAW_BFLOAT16 else dtype.newbyteorder("=")
    return LazyTensor(shape, native, partial(_read, path, version, member.filename, native))


def _header(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype, int]:
    """Read a header: return (shape, dtype, offset of the values in bytes)."""
    with archive.open(member) as opened:
        beginning = io.BytesIO(opened.read(_MAX_HEADER))  # NumPy would read a header of any length
    version = np.lib.format.read_magic(beginning)
    if version not in _HEADERS:
        raise ValueError(f"{name} must be an array of numbers, got the .npy version {version}")
    try:
        shape, _, dtype = _HEADERS[version](beginning)
    except MemoryError as error:  # raised by Python's parser for deep nesting
        raise ValueError(f"{name} has a broken header") from error
    if dtype.hasobject:
        raise ValueError(f"{name} must be an array of numbers, got pickled objects, which could run code")
    if dtype.newbyteorder("=") not in TORCH_DTYPES.values() and dtype != _RAW_BFLOAT16:
        raise ValueError(f"{name} must be an array of numbers, got the dtype {dtype}")
    if not all(type(size) is int and size >= 0 for size in shape):  # type(): True is not an int
        raise ValueError(f"{name} must have a shape of integers from 0, got {shape}")
    return shape, dtype, beginning.tell()


def _read(path: Path, version: FileVersion, name: str, dtype: np.dtype) -> np.ndarray:
    with reopen(path, version) as file, _archive(path, file) as archive, archive.open(name) as opened:
        array = np.lib.format.read_array(opened, allow_pickle=False)  # at the end, zipfile compares the checksum
    return array.view(dtype) if dtype == BFLOAT16 else array.astype(dtype, copy=False)


def _metadata(comment: bytes) -> dict[str, str]:
    """Parse the comment as metadata; {} if another program wrote the comment."""
    try:
        return string_map(json_object("comment", comment)) or {}
    except ValueError:
        return {}


def write_npz(file: io.BufferedWriter, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, with only one of them in memory at a time.

    Raises:
        ValueError: the format cannot store a tensor or the metadata, or a `read` returns another shape or dtype.
    """
    for key, tensor in tensors.items():
        if tensor.dtype.kind not in "biufc" and tensor.dtype != BFLOAT16:
            raise ValueError(f"{key!r} must have a numeric dtype or bfloat16 for an .npz file, got {tensor.dtype}")
        if "\0" in key:
            raise ValueError(f"{key!r} must not have the character 0, which ends names in zip files. Rename it")
        if PurePosixPath(key).is_absolute() or ".." in re.split(r"[/\\]", key):
            raise ValueError(f"{key!r} must not be a path that is unpacked outside of the folder. Rename it")
    comment = json.dumps(dict(metadata)).encode() if metadata else b""
    if len(comment) > _MAX_COMMENT:
        raise ValueError(
            f"the metadata of an .npz file must have at most {_MAX_COMMENT} bytes, got {len(comment)}. Shorten it"
        )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for key, tensor in tensors.items():
            array = read_checked(key, tensor)
            with archive.open(f"{key}.npy", "w", force_zip64=True) as opened:
                np.lib.format.write_array_header_1_0(opened, np.lib.format.header_data_from_array_1_0(array))
                opened.write(array.reshape(-1).view(np.uint8).data)  # NumPy's write_array would copy the array
            del array  # free the memory before the next tensor is read
