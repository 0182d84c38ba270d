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
    """The tensors of a state dict, alone or under one of the usual names in a checkpoint; there is no metadata.

    Raises:
        ValueError: it is no whole file, or holds more than tensors.
        ImportError: torch is not installed, or too old to read files safely.
    """
    torch = _torch(f"reading {path}")
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < _SAFE:
        raise ImportError(
            f"reading {path} needs torch 2.10 or newer, got {torch.__version__}: files can run code in older ones; "
            "pip install -U torch, or give a .safetensors file"
        )
    zipped = zipfile.is_zipfile(path)
    try:
        _check_calls(path, zipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how old the file is
            # Only torch's zip format can be mapped into memory, so that pages are read when they are touched.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is broken or holds more than tensors ({_reason(error)}); loading it could run "
            "code, so save the state_dict() alone"
        ) from error
    except Exception as error:  # torch raises whatever its walk through broken bytes ran into, KeyError(101) for one
        raise ValueError(f"{path} is not a whole file of torch.save ({_reason(error)}); fetch it again") from error
    try:
        state = _state_dict(content, torch.Tensor)
        # A file may give a tensor attributes of any name and value, an alias has none of them.
        alone = {key: torch.Tensor.detach(x) if isinstance(x, torch.Tensor) else x for key, x in state.items()}
        return from_arrays(alone), {}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_calls(path: Path, zipped: bool) -> None:
    """ValueError if a zip archive is packed, which torch's never is, or the pickle asks for bytes by their number.

    `bytearray` is the one call allowed by weights_only that fills any amount of memory.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("torch packs no files")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("its members overlap")
            pickles = [archive.read(member) for member in members if member.filename.endswith(".pkl")]
    else:
        pickles = [path.read_bytes()]
    if any(b"\nbytearray\n" in pickled for pickled in pickles):
        raise pickle.UnpicklingError("Unsupported bytearray")


def _state_dict(content: Any, tensor: type) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"wanted a dict of tensors by name, got {type(content).__name__}")
    content = dict(dict.items(content))  # an OrderedDict of a file may have methods of its own
    strange = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, tensor)]
    if not strange:
        return content
    inner = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if len(inner) == 1:  # the rest is the checkpoint's bookkeeping
        state = dict(dict.items(content[inner[0]]))
        if wrong := [key for key in state if not isinstance(key, str)]:
            raise ValueError(f"wanted a dict of tensors by name under {inner[0]!r}, got the name {wrong[0]!r}")
        return state
    raise ValueError(
        f"wanted a dict of tensors by name, or one under one of {', '.join(_WRAPPERS)}; "
        f"got a {type(content[strange[0]]).__name__} under {strange[0]!r} and such a dict under {inner or 'none'}"
    )


def write_torch(file: io.BufferedWriter, tensors: Mapping[str, LazyTensor], path: Path) -> None:
    """Writes a dict of torch tensors; torch wants them all in memory.

    Raises:
        ValueError: torch cannot hold a tensor, or a tensor's read() gives other than it says.
        ImportError: torch is not installed.
    """
    torch = _torch(f"writing {path}")
    for key, tensor in tensors.items():
        if tensor.dtype not in TORCH_DTYPES.values():
            raise ValueError(f"{key!r}: a file of torch holds {', '.join(TORCH_DTYPES)}, not {tensor.dtype}")
    content = {}
    for key, tensor in tensors.items():
        array = read_checked(key, tensor)
        array = array if array.flags.writeable else array.copy()  # torch warns of others
        if array.dtype == BFLOAT16:
            content[key] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            content[key] = torch.from_numpy(array)
    torch.save(content, file)


def _torch(doing: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{doing} needs torch: pip install torch") from error
    return torch


def _reason(error: Exception) -> str:
    """The line of a long message that says what was wrong."""
    telling = re.search(r"(Unsupported|Trying to)[^\n]*", str(error))
    return telling[0] if telling else (str(error) or type(error).__name__).splitlines()[0]
