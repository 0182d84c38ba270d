"""Read and write .pt, .pth and .bin files: a dict of tensors as torch.save writes it.

Only this module of the package imports torch.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from w2jax.convert.lazy_tensor import BFLOAT16, TORCH_DTYPES, LazyTensor, from_arrays, read_checked

_WRAPPERS = ("state_dict", "model", "model_state_dict")
# In torch before 2.10 a file could run code even with weights_only=True (CVE-2025-32434, CVE-2026-24747).
_SAFE = (2, 10)


def read_torch(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Read a state dict: return (tensors, {}). The metadata is always empty.

    The state dict is the content of the file, or a dict in it under "state_dict", "model" or "model_state_dict".

    Raises:
        ValueError: the file is not complete or contains more than tensors.
        ImportError: torch is not installed, or too old to read files safely.
    """
    torch = _torch(f"reading {path}")
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < _SAFE:
        raise ImportError(
            f"reading {path} needs torch 2.10 or newer, got {torch.__version__}, with which a file can run code. "
            "Run pip install -U torch, or use a .safetensors file"
        )
    zipped = zipfile.is_zipfile(path)
    try:
        _check_calls(path, zipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about old file formats
            # Only torch's zip format can be memory-mapped and read lazily.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} must contain only tensors, but it is broken or has other objects ({_reason(error)}), which could "
            "run code. Save only the state_dict()"
        ) from error
    except Exception as error:  # for broken bytes torch may raise any exception, such as KeyError(101)
        raise ValueError(
            f"{path} is not a complete file of torch.save ({_reason(error)}). Download it again"
        ) from error
    try:
        state = _state_dict(content, torch.Tensor)
        # A file may set attributes on its tensors. detach() creates tensors without them.
        aliases = {key: torch.Tensor.detach(x) if isinstance(x, torch.Tensor) else x for key, x in state.items()}
        return from_arrays(aliases), {}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_calls(path: Path, zipped: bool) -> None:
    """Raise a ValueError for a compressed zip archive, which torch never writes, or a pickle that calls `bytearray`.

    `bytearray` is the only call allowed by weights_only that can allocate any amount of memory.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("the archive is compressed, but torch does not compress files")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("members of the archive overlap")
            pickles = [archive.read(member) for member in members if member.filename.endswith(".pkl")]
    else:
        pickles = [path.read_bytes()]
    if any(b"\nbytearray\n" in pickled for pickled in pickles):
        raise pickle.UnpicklingError("Unsupported bytearray")


def _state_dict(content: Any, tensor: type) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"the file must contain a dict of tensors by name, got {type(content).__name__}")
    content = dict(dict.items(content))  # not content.items(): a file can overwrite methods of an OrderedDict
    others = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, tensor)]
    if not others:
        return content
    inner = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if len(inner) == 1:  # the other keys are the rest of a checkpoint, which is ignored
        state = dict(dict.items(content[inner[0]]))
        if wrong := [key for key in state if not isinstance(key, str)]:
            raise ValueError(f"{inner[0]!r} must be a dict of tensors by name, got the name {wrong[0]!r}")
        return state
    dicts = f"dicts under {' and '.join(map(repr, inner))}" if inner else "no dict under these names"
    raise ValueError(
        f"the file must contain a dict of tensors by name, or exactly one such dict under {', '.join(_WRAPPERS)}; "
        f"got {type(content[others[0]]).__name__} under {others[0]!r} and {dicts}"
    )


def write_torch(file: io.BufferedWriter, tensors: Mapping[str, LazyTensor], path: Path) -> None:
    """Write a dict of torch tensors. torch needs all of them in memory at once.

    Raises:
        ValueError: torch cannot store a tensor, or a `read` returns another shape or dtype.
        ImportError: torch is not installed.
    """
    torch = _torch(f"writing {path}")
    for key, tensor in tensors.items():
        if tensor.dtype not in TORCH_DTYPES.values():
            raise ValueError(
                f"{key!r} must have one of the dtypes {', '.join(TORCH_DTYPES)} for a file of torch, got {tensor.dtype}"
            )
    content = {}
    for key, tensor in tensors.items():
        array = read_checked(key, tensor)
        array = array if array.flags.writeable else array.copy()  # torch warns about read-only arrays
        if array.dtype == BFLOAT16:
            content[key] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            content[key] = torch.from_numpy(array)
    torch.save(content, file)


def _torch(task: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{task} needs torch. Run pip install torch") from error
    return torch


def _reason(error: Exception) -> str:
    """Return the line of a long error message that contains the reason."""
    line = re.search(r"(Unsupported|Trying to)[^\n]*", str(error))
    return line[0] if line else (str(error) or type(error).__name__).splitlines()[0]
