"""Read and write .pt, .pth, .ckpt, .tar and .bin files: a dict of tensors as torch.save writes it.

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

from w2jax.convert.lazy_tensor import BFLOAT16, TORCH_DTYPES, LazyTensor, check_count, from_arrays, read_checked

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_MODELS = ("student", "teacher", "encoder", "target_encoder")  # several models in one file, as in DINO and I-JEPA
_AVERAGES = ("state_dict_ema", "model_ema")  # as in timm, the average over the training is preferred
# In torch before 2.10 a file could run code even with weights_only=True (CVE-2025-32434, CVE-2026-24747).
_SAFE = (2, 10)
_MAX_UNKNOWN = 1000  # classes of other objects in a file
_MAX_CALLS = 500_000  # in a pickle; torch's reader needs 75 µs for a tensor, which has two calls


def read_torch(path: Path, average: bool = True) -> tuple[dict[str, LazyTensor], list[str]]:
    """Read a state dict: return (tensors, notes for the user).

    The state dict is the content of the file, or a dict in it: with `average` the one under "state_dict_ema" or
    "model_ema" if the file has it, else the one under "state_dict", "model" or "model_state_dict". If the file has the
    dicts "student", "teacher", "encoder" or "target_encoder" instead, these words are put before the tensors' names.

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
        if zipped and _is_torchscript(path):
            raise _TorchScript
        _check_calls(path, zipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about old file formats
            # Only torch's zip format can be memory-mapped and read lazily, and its other objects can be listed.
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
            with torch.serialization.safe_globals(_inert(unknown)):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _TorchScript:
        raise ValueError(
            f"{path} is a TorchScript archive, which contains code, as OpenAI's releases of CLIP do. Save its weights, "
            f'if you trust it: torch.save(torch.jit.load("{path}", map_location="cpu").state_dict(), "weights.pt")'
        ) from None
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} must contain a dict of tensors by name, but it is broken or has other objects ({_reason(error)}). "
            "Save only the state_dict()"
        ) from error
    except Exception as error:  # for broken bytes torch may raise any exception, such as KeyError(101)
        raise ValueError(
            f"{path} is not a complete file of torch.save ({_reason(error)}). Download it again"
        ) from error
    try:
        state, notes = _state_dict(content, torch.Tensor, average)
        # A file may set attributes on its tensors. detach() creates tensors without them.
        aliases = {key: torch.Tensor.detach(x) if isinstance(x, torch.Tensor) else x for key, x in state.items()}
        return from_arrays(aliases), notes
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _TorchScript(Exception):
    """The file is an archive of torch.jit.save."""


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Ignored:
    """Stands for an object of a class that the file names, such as argparse.Namespace. Nothing of the class is run."""

    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Ignore the content of the object."""


def _inert(names: list[str]) -> list[tuple[Any, str]]:
    """Return for each class or function that a file names one that does nothing, in the form of `safe_globals`."""
    if len(names) > _MAX_UNKNOWN:
        raise ValueError(f"the file must have objects of at most {_MAX_UNKNOWN} other classes, got {len(names)}")
    # A defaultdict is filled after the call, which torch allows only for a dict.
    inert = {name: type(name.rpartition(".")[2], (_Ignored,), {}) for name in names}
    return [(_empty_dict if name == "collections.defaultdict" else cls, name) for name, cls in inert.items()]


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _check_calls(path: Path, zipped: bool) -> None:
    """Raise a ValueError for a compressed zip archive, which torch never writes, and for dangerous calls in a pickle.

    These are more calls than a state dict needs, which would take minutes, and any call of `bytearray`.

    `bytearray` is the only call allowed by weights_only that can allocate any amount of memory.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_count("the archive", len(members))
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("the archive is compressed, but torch does not compress files")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("members of the archive overlap")
            pickles = [archive.read(member) for member in members if member.filename.endswith(".pkl")]
            calls = sum(pickled.count(pickle.REDUCE) for pickled in pickles)  # and the letters R in names
            if calls > _MAX_CALLS:
                raise ValueError(f"its pickle must have at most {_MAX_CALLS} calls, got {calls}")
    else:
        pickles = [path.read_bytes()]
    if any(b"\nbytearray\n" in pickled for pickled in pickles):
        raise pickle.UnpicklingError("Unsupported bytearray")


def _state_dict(content: Any, tensor: type, average: bool) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(content, dict):
        raise ValueError(f"the file must contain a dict of tensors by name, got {type(content).__name__}")
    content = dict(dict.items(content))  # not content.items(): a file can overwrite methods of an OrderedDict
    others = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, tensor)]
    if not others:
        return content, []
    averages = [key for key in _AVERAGES if isinstance(content.get(key), dict) and content[key]]
    inner = averages[:1] if average and averages else [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if len(inner) == 1:  # the other keys are the rest of a checkpoint, which is ignored
        state = dict(dict.items(content[inner[0]]))
        if wrong := [key for key in state if not isinstance(key, str)]:
            raise ValueError(f"{inner[0]!r} must be a dict of tensors by name, got the name {wrong[0]!r}")
        if averages and average:
            if {key.startswith("module.") for key in state if key != "n_averaged"} == {True}:  # torch's AveragedModel
                state.pop("n_averaged", None)
            return state, [
                f"read the averaged weights under {inner[0]!r}, not the raw weights (for those, convert the file with "
                "python -m w2jax.convert --raw)"
            ]
        ignored = [f"the raw weights under {inner[0]!r} were read; {averages[0]!r} was ignored"] if averages else []
        return state, ignored
    models = [key for key in _MODELS if isinstance(content.get(key), dict)]
    if models and not inner:
        return {f"{model}.{key}": value for model in models for key, value in dict.items(content[model])}, []
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
