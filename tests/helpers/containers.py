import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w2jax.convert.files import read_weights


def peak(work: Callable[[], Any]) -> int:
    """Returns the peak of traced memory while `work` runs, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def container(header: Any, data: bytes = b"") -> bytes:
    """Returns the bytes of a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(path: Path, content: bytes | None = None) -> str:
    """Returns the one-line error of reading the file and its tensors; writes `content` to the file first."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        for tensor in read_weights(path).tensors.values():
            tensor.read()
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def npy(shape: str, data: bytes = b"", descr: str = "<f4") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data
