"""Read and write safetensors files.

A file consists of the header's length (8 bytes, little-endian), a JSON header, and the bytes of the tensors without
gaps. The format is documented at <https://github.com/huggingface/safetensors#format>.

This module does not use the safetensors library, because its writer needs all tensors in memory at once, and its reader
accepts duplicate names.
"""

import io
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from w2jax.convert.files.file_version import FileVersion, file_version, reopen
from w2jax.convert.lazy_tensor import BFLOAT16, LazyTensor, byte_size, check_count, read_checked
from w2jax.files import MAX_JSON, json_object, string_map

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("bool"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_AXES = 64  # NumPy's limit


class _Entry(NamedTuple):
    dtype: np.dtype  # little-endian, as in the file
    shape: tuple[int, ...]
    begin: int  # first byte, counted from the end of the header
    end: int  # last byte + 1, counted from the end of the header


def read_safetensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Read the header of a safetensors file: return (tensors in the header's order, metadata).

    Each tensor's `read` reads only its own bytes.

    Raises:
        ValueError: the file does not follow the format.
    """
    with path.open("rb") as file:
        version = file_version(file)
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) == 8 and length > MAX_JSON:
            raise ValueError(
                f"{path} is not a safetensors file: its header must have at most {MAX_JSON} bytes, got {length}"
            )
        start = 8 + length
        if len(prefix) < 8 or version.size < start:
            raise ValueError(
                f"{path} is truncated: its header requires {start} bytes, got {version.size}. Download it again"
            )
        header = json_object(f"{path}, header", file.read(length))

    metadata = string_map(header.pop("__metadata__", {}))
    if metadata is None:
        raise ValueError(f"__metadata__ in {path} must be an object of strings")
    check_count(path, len(header))
    entries = {key: _entry(f"{path}, {key!r}", value) for key, value in header.items()}
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise ValueError(
                f"{path}, {key!r} must begin at byte {end} of the data, the end of the previous tensor, "
                f"got {entry.begin}"
            )
        end = entry.end
    if start + end != version.size:
        problem = "is truncated" if start + end > version.size else "has bytes that do not belong to a tensor"
        raise ValueError(
            f"{path} {problem}: its header requires {start + end} bytes, got {version.size}. Download it again"
        )
    tensors = {
        key: LazyTensor(entry.shape, entry.dtype.newbyteorder("="), partial(_read, path, version, start, entry))
        for key, entry in entries.items()
    }
    return tensors, metadata


def _entry(name: str, value: Any) -> _Entry:
    if not isinstance(value, dict) or not value.keys() >= {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} must be an object with dtype, shape and data_offsets in the header")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"{name} must have one of the dtypes {', '.join(_DTYPES)}, got {kind!r}")
    if not _are_counts(shape) or len(shape) > _MAX_AXES:
        raise ValueError(f"{name} must have a shape of at most {_MAX_AXES} integers from 0, got {shape!r}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} must have data_offsets of two integers from 0, got {offsets!r}")
    dtype, (begin, end) = _DTYPES[kind], offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{name} must have {math.prod(shape) * dtype.itemsize} bytes for {kind} of shape {shape}, got {end - begin}"
        )
    if math.prod(size or 1 for size in shape) * dtype.itemsize >= 2**63:  # NumPy's limit, also for empty arrays
        raise ValueError(f"{name} must have a shape of less than 2**63 bytes, got {shape}")
    return _Entry(dtype, tuple(shape), begin, end)


def _are_counts(values: Any) -> bool:
    """Return True if `values` is a list of integers from 0 to 2**63 - 1. A bool is not an integer here."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _read(path: Path, version: FileVersion, start: int, entry: _Entry) -> np.ndarray:
    content = np.empty(entry.end - entry.begin, np.uint8)
    with reopen(path, version) as file:
        file.seek(start + entry.begin)
        got = file.readinto(content.data) if content.size else 0
    if got != content.size:
        raise ValueError(f"{path} is truncated: a tensor must have {content.size} bytes, got {got}. Download it again")
    array = content.view(entry.dtype).reshape(entry.shape)
    return array.astype(entry.dtype.newbyteorder("="), copy=False)


def write_safetensors(file: io.BufferedWriter, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, with only one of them in memory at a time. Wide dtypes come first, so that all are aligned.

    Raises:
        ValueError: the format cannot store a tensor, or a `read` returns another shape or dtype.
    """
    for key, tensor in tensors.items():
        if key == "__metadata__":
            raise ValueError("a tensor in a safetensors file must not have the name '__metadata__'. Rename it")
        if tensor.dtype not in _NAMES:
            raise ValueError(
                f"{key!r} must have one of the dtypes {', '.join(_DTYPES)} for a safetensors file, got {tensor.dtype}"
            )
    order = sorted(tensors, key=lambda key: -tensors[key].dtype.itemsize)
    offsets, end = {}, 0
    for key in order:
        offsets[key] = [end, end + byte_size(tensors[key])]
        end = offsets[key][1]
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for key, tensor in tensors.items():
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets[key]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_JSON:
        raise ValueError(
            f"the header of a safetensors file must have at most {MAX_JSON} bytes, got {len(text)} for "
            f"{len(tensors)} tensors. Write shards (shard_bytes)"
        )
    file.write(len(text).to_bytes(8, "little") + text)
    for key in order:
        array = read_checked(key, tensors[key])
        file.write(array.astype(_DTYPES[_NAMES[array.dtype]], copy=False).reshape(-1).view(np.uint8).data)
        del array  # free the memory before the next tensor is read
