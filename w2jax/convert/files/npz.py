""".npz as numpy writes it: a zip archive of .npy files. Pickled objects are never read."""

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

from w2jax.convert.files.safe_io import FileVersion, json_object, reopened, seen, strings
from w2jax.convert.lazy_tensor import BFLOAT16, TORCH_DTYPES, LazyTensor, read_checked

_RAW_BFLOAT16 = np.dtype("V2")  # the name under which .npy keeps it
_MAX_COMMENT = 65_535  # zip's
_MAX_RATIO = 1032  # of deflate
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_HEADER = 10_100  # bytes: numpy's most, and what stands before it


def read_npz(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Tensors in the archive's order, and the strings of its comment; each read() reads its own member only.

    Raises:
        ValueError: it is no whole .npz of arrays of numbers.
    """
    with path.open("rb") as file:
        before = seen(file)
        with _archive(path, file) as archive:
            members = archive.infolist()
            tensors = {}
            for member in members:
                key = member.filename.removesuffix(".npy")
                tensors[key] = _tensor(path, before, archive, member)
            if len(tensors) < len(members):
                raise ValueError(f"{path} has members of the same name; wanted one array a name")
            # zipfile takes a comment that is cut short for a whole one; its length stands before it.
            file.seek(-2 - len(archive.comment), io.SEEK_END)
            if int.from_bytes(file.read(2), "little") != len(archive.comment):
                raise ValueError(f"{path} is not a whole .npz file (its end is not where it says); write it anew")
            return tensors, _metadata(archive.comment)


@contextmanager
def _archive(path: Path, file: io.BufferedReader) -> Iterator[zipfile.ZipFile]:
    """The open archive; whatever zipfile and numpy raise over broken ones becomes a ValueError."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, RuntimeError),
        *(ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, OverflowError),
    ) as error:
        if str(error).startswith(str(path)):  # ours
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a whole .npz file ({reason}); write it anew") from error


def _tensor(path: Path, before: FileVersion, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> LazyTensor:
    where = f"{path}, {member.filename!r}"
    if not member.filename.endswith(".npy"):
        raise ValueError(f"{where}: wanted a .npz of .npy files alone")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{where}: wanted it stored or deflated, got the compression {member.compress_type}")
    shape, dtype, start = _header(where, archive, member)
    wanted = start + math.prod(shape) * dtype.itemsize
    # Before memory is taken: a lie here would claim any amount of it.
    if member.file_size != wanted or wanted > _MAX_RATIO * before.size:
        raise ValueError(f"{where}: its header wants {wanted} bytes, the archive has {member.file_size} for it")
    native = BFLOAT16 if dtype == _RAW_BFLOAT16 else dtype.newbyteorder("=")
    return LazyTensor(shape, native, partial(_read, path, before, member.filename, native))


def _header(where: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and dtype from the member's beginning, and where the values begin."""
    with archive.open(member) as opened:
        beginning = io.BytesIO(opened.read(_MAX_HEADER))  # numpy reads a header of any length before it refuses it
    version = np.lib.format.read_magic(beginning)
    if version not in _HEADERS:
        raise ValueError(f"{where}: wanted an array of numbers, got the .npy version {version}")
    try:
        shape, _, dtype = _HEADERS[version](beginning)
    except MemoryError as error:  # Python's parser over deep nesting
        raise ValueError(f"{where} has a broken header") from error
    if dtype.hasobject:
        raise ValueError(f"{where} is refused: it holds pickled objects, and loading them could run code")
    if dtype.newbyteorder("=") not in TORCH_DTYPES.values() and dtype != _RAW_BFLOAT16:
        raise ValueError(f"{where}: wanted an array of numbers, got the dtype {dtype}")
    if not all(type(size) is int and size >= 0 for size in shape):  # true is none
        raise ValueError(f"{where}: wanted a shape of integers from 0, got {shape}")
    return shape, dtype, beginning.tell()


def _read(path: Path, before: FileVersion, name: str, dtype: np.dtype) -> np.ndarray:
    with reopened(path, before) as file, _archive(path, file) as archive, archive.open(name) as opened:
        array = np.lib.format.read_array(opened, allow_pickle=False)  # its last byte makes zipfile check the checksum
    return array.view(dtype) if dtype == BFLOAT16 else array.astype(dtype, copy=False)


def _metadata(comment: bytes) -> dict[str, str]:
    """The comment, if it is ours: anyone may have written another."""
    try:
        return strings(json_object("comment", comment)) or {}
    except ValueError:
        return {}


def write_npz(file: io.BufferedWriter, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> None:
    """Writes one tensor after the other, none held longer.

    Raises:
        ValueError: the format cannot hold a tensor or the metadata, or a read() gives other than its tensor says.
    """
    for key, tensor in tensors.items():
        if tensor.dtype.kind not in "biufc" and tensor.dtype != BFLOAT16:
            raise ValueError(f"{key!r}: a .npz file holds numbers and bfloat16, not {tensor.dtype}")
        if "\0" in key:
            raise ValueError(f"{key!r}: zip cuts names at the character 0; rename it")
        if PurePosixPath(key).is_absolute() or ".." in re.split(r"[/\\]", key):
            raise ValueError(f"{key!r}: unpacked, such a name would lead out of the folder; rename it")
    comment = json.dumps(dict(metadata)).encode() if metadata else b""
    if len(comment) > _MAX_COMMENT:
        raise ValueError(f"the metadata of a .npz has at most {_MAX_COMMENT} bytes, got {len(comment)}; shorten it")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for key, tensor in tensors.items():
            array = read_checked(key, tensor)
            with archive.open(f"{key}.npy", "w", force_zip64=True) as opened:
                np.lib.format.write_array_header_1_0(opened, np.lib.format.header_data_from_array_1_0(array))
                opened.write(array.reshape(-1).view(np.uint8).data)  # numpy's write_array would copy it first
            del array  # before the next one is read
