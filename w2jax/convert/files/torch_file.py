""".pt, .pth and .bin: a dict of tensors as torch.save writes it. The only file here that imports torch."""

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
# Before 2.10 a file could run code in spite of weights_only (CVE-2025-32434, CVE-2026-24747).
_SAFE = (2, 10)


def read_torch(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The tensors of a state dict, alone or under one of the usual names in a checkpoint; the metadata is always {}.

    Raises:
        ValueError: it is not a complete file, or holds more than tensors.
        ImportError: torch is not installed, or too old to read files safely.
    """
    torch = _torch(f"reading {path}")
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < _SAFE:
        raise ImportError(
            f"reading {path} needs torch 2.10 or newer, got {torch.__version__}, in which a file can run code. "
            "Run pip install -U torch, or give a .safetensors file"
        )
    zipped = zipfile.is_zipfile(path)
    try:
        _check_calls(path, zipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the file
            # Only torch's zip format can be mapped into memory and read lazily.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is broken or holds more than tensors ({_reason(error)}), and loading it could run "
            "code. Save the state_dict() alone"
        ) from error
    except Exception as error:  # torch may raise anything for broken bytes, such as KeyError(101)
        raise ValueError(
            f"{path} is not a complete file of torch.save ({_reason(error)}). Download it again"
        ) from error
    try:
        state = _state_dict(content, torch.Tensor)
        # A file may set any attributes on its tensors; aliases have none of them.
        aliases = {key: torch.Tensor.detach(x) if isinstance(x, torch.Tensor) else x for key, x in state.items()}
        return from_arrays(aliases), {}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_calls(path: Path, zipped: bool) -> None:
    """ValueError if a zip archive is compressed, which torch's never is, or the pickle calls `bytearray`.

    It is the one call allowed by weights_only that allocates any amount of memory.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("torch compresses no files")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("its members overlap")
            pickles = [archive.read(member) for member in members if member.filename.endswith(".pkl")]
    else:
        pickles = [path.read_bytes()]
    if any(b"\nbytearray\n" in pickled for pickled in pickles):
        raise pickle.UnpicklingError("Unsupported bytearray")


def _state_dict(content: Any, tensor: type) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"it must hold a dict of tensors by name, got {type(content).__name__}")
    content = dict(dict.items(content))  # a file may have overwritten the methods of an OrderedDict
    others = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, tensor)]
    if not others:
        return content
    inner = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if len(inner) == 1:  # the other keys are the rest of a checkpoint
        state = dict(dict.items(content[inner[0]]))
        if wrong := [key for key in state if not isinstance(key, str)]:
            raise ValueError(f"{inner[0]!r} must be a dict of tensors by name, got the name {wrong[0]!r}")
        return state
    raise ValueError(
        f"it must hold a dict of tensors by name, or have one under {', '.join(_WRAPPERS)}; "
        f"got a {type(content[others[0]]).__name__} under {others[0]!r} and such a dict under {inner or 'none'}"
    )


def write_torch(file: io.BufferedWriter, tensors: Mapping[str, LazyTensor], path: Path) -> None:
    """Writes a dict of torch tensors; torch needs all of them in memory.

    Raises:
        ValueError: torch cannot store a tensor, or its read() returns another shape or dtype than it has.
        ImportError: torch is not installed.
    """
    torch = _torch(f"writing {path}")
    for key, tensor in tensors.items():
        if tensor.dtype not in TORCH_DTYPES.values():
            raise ValueError(
                f"{key!r} must be one of {', '.join(TORCH_DTYPES)} for a file of torch, got {tensor.dtype}"
            )
    content = {}
    for key, tensor in tensors.items():
        array = read_checked(key, tensor)
        array = array if array.flags.writeable else array.copy()  # torch warns of others
        if array.dtype == BFLOAT16:
            content[key] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            content[key] = torch.from_numpy(array)
    torch.save(content, file)


def _torch(task: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{task} needs torch: pip install torch") from error
    return torch


def _reason(error: Exception) -> str:
    """The line of a long message that has the reason."""
    line = re.search(r"(Unsupported|Trying to)[^\n]*", str(error))
    return line[0] if line else (str(error) or type(error).__name__).splitlines()[0]
