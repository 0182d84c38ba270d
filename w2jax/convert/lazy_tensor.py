"""Tensors by name, of any framework, that are read lazily."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_dtypes import bfloat16

BFLOAT16 = np.dtype(bfloat16)
# What both torch and numpy can hold; torch calls them by the same names.
TORCH_DTYPES = {"bfloat16": BFLOAT16} | {
    name: np.dtype(name)
    for name in (
        *("bool", "float16", "float32", "float64", "complex64", "complex128"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}


class LazyTensor(NamedTuple):
    """An array that is loaded by calling `read`."""

    shape: tuple[int, ...]
    dtype: np.dtype  # in the machine's byte order
    read: Callable[[], np.ndarray]  # may return a view of memory that is shared


def from_arrays(arrays: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Numpy arrays, jax arrays and torch tensors as lazy tensors; none is copied before it is read.

    Raises:
        ValueError: a value is something else, or not a dense array of numbers in memory; the message has its key.
    """
    return {key: _tensor(key, value) for key, value in arrays.items()}


def byte_size(tensor: LazyTensor) -> int:
    """Bytes of the tensor's values."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def read_checked(key: str, tensor: LazyTensor) -> np.ndarray:
    """The tensor's array, contiguous; ValueError if its shape or dtype is not the tensor's."""
    array = np.asarray(tensor.read(), order="C")
    if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
        raise ValueError(
            f"{key!r} must be {tensor.dtype} of shape {tensor.shape}, its read() gave {array.dtype} {array.shape}"
        )
    return array


def _tensor(key: str, value: Any) -> LazyTensor:
    if hasattr(value, "detach"):  # torch's; torch itself may be absent
        return _torch_tensor(key, value)
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        raise ValueError(f"{key!r} must be an array of numpy, jax or torch, got {type(value).__name__}")
    if not (jnp.issubdtype(value.dtype, np.number) or value.dtype == np.bool_):
        raise ValueError(f"{key!r} must be an array of numbers, got the dtype {value.dtype}")
    dtype = np.dtype(value.dtype).newbyteorder("=")
    return LazyTensor(value.shape, dtype, partial(np.asarray, value, dtype))


def _torch_tensor(key: str, value: Any) -> LazyTensor:
    name = str(value.dtype).removeprefix("torch.")
    dense = str(value.layout) == "torch.strided" and not value.is_nested and value.device.type != "meta"
    if not dense or name not in TORCH_DTYPES:
        raise ValueError(
            f"{key!r} must be a dense torch tensor of one of {', '.join(TORCH_DTYPES)}, "
            f"got {name}, {value.layout}{', nested' * value.is_nested} on the device {value.device}"
        )
    dtype = TORCH_DTYPES[name]

    def read() -> np.ndarray:
        # numpy() refuses bfloat16, which numpy does not have; the same bits pass as int16.
        same_bits = value.detach().view(value.new_empty(0).short().dtype) if dtype == BFLOAT16 else value
        return same_bits.numpy(force=True).view(dtype)

    return LazyTensor(tuple(value.shape), dtype, read)
