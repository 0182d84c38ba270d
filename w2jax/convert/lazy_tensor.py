"""Lazy tensors: named arrays of NumPy, JAX or torch that are loaded when they are read."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_dtypes import bfloat16

BFLOAT16 = np.dtype(bfloat16)
# Dtypes that both torch and NumPy have (bfloat16 from ml_dtypes), with the same names.
TORCH_DTYPES = {"bfloat16": BFLOAT16} | {
    name: np.dtype(name)
    for name in (
        *("bool", "float16", "float32", "float64", "complex64", "complex128"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}


MAX_TENSORS = 200_000  # in one file; a model of 671 billion parameters has 100,000


class LazyTensor(NamedTuple):
    """An array that is loaded when `read` is called."""

    shape: tuple[int, ...]  # Shape of the array.
    dtype: np.dtype  # Dtype of the array, in the machine's byte order.
    read: Callable[[], np.ndarray]  # Function that loads the array; it may return a view of shared memory.


def from_arrays(arrays: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Wrap NumPy arrays, JAX arrays and torch tensors as lazy tensors. No array is copied before it is read.

    Raises:
        ValueError: a value is not such an array, or not a dense array of numbers in memory. The message has its key.
    """
    return {key: _tensor(key, value) for key, value in arrays.items()}


def check_count(path: str | Path, count: int) -> None:
    """Raise a ValueError if a file has more than `MAX_TENSORS` tensors, because to read them would take minutes."""
    if count > MAX_TENSORS:
        raise ValueError(f"{path} must have at most {MAX_TENSORS} tensors, got {count}")


def byte_size(tensor: LazyTensor) -> int:
    """Return the size of the tensor's values in bytes."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def read_checked(key: str, tensor: LazyTensor) -> np.ndarray:
    """Read the tensor as a contiguous array; raise a ValueError if shape or dtype are not as declared."""
    array = np.asarray(tensor.read(), order="C")
    if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
        raise ValueError(
            f"{key!r} must be {tensor.dtype} of shape {tensor.shape}, got {array.dtype} of shape {array.shape} "
            "from its read()"
        )
    return array


def _tensor(key: str, value: Any) -> LazyTensor:
    if hasattr(value, "detach"):  # torch's; torch itself may be absent
        return _torch_tensor(key, value)
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        raise ValueError(f"{key!r} must be an array of NumPy, JAX or torch, got {type(value).__name__}")
    if not (jnp.issubdtype(value.dtype, np.number) or value.dtype == np.bool_):
        raise ValueError(f"{key!r} must be an array of numbers, got the dtype {value.dtype}")
    dtype = np.dtype(value.dtype).newbyteorder("=")
    return LazyTensor(value.shape, dtype, partial(np.asarray, value, dtype))


def _torch_tensor(key: str, value: Any) -> LazyTensor:
    name = str(value.dtype).removeprefix("torch.")
    dense = str(value.layout) == "torch.strided" and not value.is_nested and value.device.type != "meta"
    if not dense or name not in TORCH_DTYPES:
        raise ValueError(
            f"{key!r} must be a dense torch tensor with one of the dtypes {', '.join(TORCH_DTYPES)}, "
            f"got {name}, {value.layout}{', nested' * value.is_nested} on the device {value.device}"
        )
    dtype = TORCH_DTYPES[name]

    def read() -> np.ndarray:
        # numpy() raises an error for bfloat16, which NumPy does not have. So the bits are passed as int16.
        same_bits = value.detach().view(value.new_empty(0).short().dtype) if dtype == BFLOAT16 else value
        return same_bits.numpy(force=True).view(dtype)

    return LazyTensor(tuple(value.shape), dtype, read)
