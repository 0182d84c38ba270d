"""Weights in files: .safetensors, whole or in shards, .npz, torch's .pt, and folders as on the Hugging Face hub."""

import io
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from w2jax.convert.files.npz import read_npz, write_npz
from w2jax.convert.files.safetensors import read_safetensors, write_safetensors
from w2jax.convert.files.torch_file import read_torch, write_torch
from w2jax.convert.lazy_tensor import LazyTensor, byte_size
from w2jax.files import read_json, string_map, write_files_atomic
from w2jax.text import shorten

_INDEX = ".safetensors.index.json"
_TORCH = (".pt", ".pth", ".bin")
_KNOWN = (".safetensors", _INDEX, ".npz", *_TORCH)
_PREFERRED = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin", "model.npz")  # in a folder
_WITH_CONFIG = re.compile(r"model.*\.safetensors(\.index\.json)?|pytorch_model.*\.bin")
_SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")
_MAX_NAME = 500  # characters of a tensor's name
_MAX_GROWTH, _SMALL = 100, 2**30  # weights may unpack to 100 times the bytes of their file, or to 1 GiB


_RUN_FOLDER = "A run folder of python -m train.… is exported by: python -m train.export DIR --format F --out FILE"


class Weights(NamedTuple):
    """The content of a weights file."""

    path: Path  # the file that was read, or the index of several; in a folder the one that was chosen
    tensors: dict[str, LazyTensor]  # by the file's own keys
    metadata: dict[str, str]
    config: dict[str, Any] | None  # config.json next to it


def read_weights(path: str | Path) -> Weights:
    """Reads the header of a file; each tensor is read by its read().

    Args:
        path: a .safetensors, .safetensors.index.json, .npz, .pt, .pth or .bin file, or a folder that has one of
            model.safetensors.index.json, model.safetensors, pytorch_model.bin and model.npz, or one file alone.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it is of no known kind, broken, or holds more than tensors; a folder has none or several files.
        ImportError: it is torch's and torch is not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Give a weights file or a folder with one")
    try:
        weights = _read(path)
        _check(weights)
    except ValueError as error:
        raise ValueError(shorten(str(error))) from error
    return weights


def _read(path: Path) -> Weights:
    if not path.is_file():  # opening a pipe would never return
        raise ValueError(f"{path} is not a file. Give a weights file or a folder with one")
    if path.name.endswith(_INDEX):
        tensors, metadata = _read_shards(path)
    elif path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
    elif path.suffix == ".npz":
        tensors, metadata = read_npz(path)
    elif path.suffix in _TORCH:
        tensors, metadata = read_torch(path)
    else:
        raise ValueError(f"{path} must be a folder or one of {', '.join(_KNOWN)}, got {path.suffix or 'no suffix'}")
    return Weights(path, tensors, metadata, _config(path))


def _check(weights: Weights) -> None:
    """ValueError if a name cannot be printed, or the tensors need far more memory than the file has bytes."""
    path, tensors, *_ = weights
    for key in tensors:
        if len(key) > _MAX_NAME or not key.isprintable():
            raise ValueError(f"{path}, {key!r}: a name must have at most {_MAX_NAME} printable characters")
    if path.suffix in (".npz", *_TORCH):  # in the others each byte belongs to one tensor
        memory, size = sum(map(byte_size, tensors.values())), path.stat().st_size
        if memory > max(_SMALL, _MAX_GROWTH * size):
            raise ValueError(f"{path} is refused: its {size} bytes would become {memory} in memory")


def _file_in(folder: Path) -> Path:
    """The weights file in a folder; ValueError if there is none, or it is not clear which."""
    for name in _PREFERRED:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.name.endswith(_KNOWN) and path.is_file())
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise ValueError(
            f"{folder} is not a weights file or folder: it must have {', '.join(_PREFERRED)} or one file of "
            f"{', '.join(_KNOWN)}, got {names}. {_RUN_FOLDER}"
        )
    return files[0]


def _config(path: Path) -> dict[str, Any] | None:
    """config.json next to a file with a name of the Hugging Face hub, where it describes that file."""
    config = path.with_name("config.json")
    if not _WITH_CONFIG.fullmatch(path.name) or not config.is_file():
        return None
    return read_json(config)


def _read_shards(index: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The tensors of all shards, in the index's order, and the metadata on which the shards agree."""
    places = string_map(read_json(index).get("weight_map"))
    if places is None:
        raise ValueError(f"{index}: weight_map must be an object of file names by key")
    names = sorted(set(places.values()))
    for name in names:  # none may lead out of the index's folder
        valid = name.isprintable() and len(name.encode()) <= 255
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors") or not valid:
            raise ValueError(f"{index}: weight_map must name .safetensors files beside it, got {name!r}")
    missing = [name for name in names if not index.with_name(name).is_file()]
    if missing:
        raise ValueError(f"{index}: the shards {', '.join(missing)} are missing. Download them")
    tensors, metadata = {}, None
    for name in names:
        shard, own = read_safetensors(index.with_name(name))
        tensors |= {(key, name): tensor for key, tensor in shard.items()}
        metadata = own if metadata is None else {key: own[key] for key in own if metadata.get(key) == own[key]}
    wrong = tensors.keys() ^ places.items()
    if wrong:
        key, name = min(wrong)
        problem = "has it" if (key, name) in tensors else "does not have it"
        raise ValueError(f"{index}, {key!r} must be in the shard that the index names, but {name} {problem}")
    return {key: tensors[key, name] for key, name in places.items()}, metadata or {}


def write_weights(
    path: str | Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Writes tensors, one in memory at a time except for torch's files. If it fails, the old files are unchanged.

    Args:
        path: a .safetensors, .npz, .pt, .pth or .bin file; or a folder (one that exists, or a path without suffix),
            for model.safetensors or its shards with their index. Earlier ones in it are replaced.
        tensors: by the keys of the file.
        metadata: strings by name; torch's files have no place for them.
        config: written to config.json next to files with a name of the Hugging Face hub.
        shard_bytes: the most bytes of tensors in a file of a folder; a larger tensor gets its own file.

    Raises:
        ValueError: the path is of no known kind, or the file cannot store a tensor, the metadata or the config.
        ImportError: it is torch's and torch is not installed.
    """
    path, metadata = Path(path), dict(metadata or {})
    folder = path.is_dir() or not path.suffix
    if string_map(metadata) is None:
        raise ValueError(f"{path}: metadata must be strings by name, got {metadata}")
    if shard_bytes is not None and (shard_bytes < 1 or not folder):
        raise ValueError(f"shard_bytes must be a number from 1, for a folder, got {shard_bytes} for {path}")
    if folder:
        return _write_folder(path, tensors, metadata, config, shard_bytes)
    if path.suffix == ".safetensors":
        write = partial(write_safetensors, tensors=tensors, metadata=metadata)
    elif path.suffix == ".npz":
        write = partial(write_npz, tensors=tensors, metadata=metadata)
    elif path.suffix in _TORCH:
        write = partial(write_torch, tensors=tensors, path=path)
    else:
        known = ", ".join(suffix for suffix in _KNOWN if suffix != _INDEX)
        raise ValueError(f"{path} must be a folder or one of {known}, got {path.suffix}")
    if config is not None and not _WITH_CONFIG.fullmatch(path.name):
        raise ValueError(
            f"{path} must be a folder or model.safetensors to have a config. Write a folder, or leave the config out"
        )
    return write_files_atomic(_config_file(path.parent, config) | {path: write})


def _write_folder(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: dict[str, str],
    config: Mapping[str, Any] | None,
    shard_bytes: int | None,
) -> None:
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = {
        folder / name: partial(write_safetensors, tensors=shard, metadata=metadata)
        for name, shard in zip(names, shards, strict=True)
    } | _config_file(folder, config)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(byte_size, tensors.values()))},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        # Last: readers see the new shards only when all of them exist.
        files[folder / f"model{_INDEX}"] = partial(_write_json, index)
    write_files_atomic(files)
    # Files of an earlier write are removed, the index first: it would hide a new model.safetensors.
    for path in sorted(folder.iterdir(), key=lambda path: not path.name.endswith(_INDEX)):
        if path not in files and (path.name in _PREFERRED[:2] or _SHARD.fullmatch(path.name)):
            path.unlink()


def _shards(tensors: Mapping[str, LazyTensor], shard_bytes: int | None) -> list[dict[str, LazyTensor]]:
    """The tensors in their order, split before each one that would make the shard too large."""
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        size += byte_size(tensor)
        if shards[-1] and shard_bytes is not None and size > shard_bytes:
            shards.append({})
            size = byte_size(tensor)
        shards[-1][key] = tensor
    return shards


def _config_file(folder: Path, config: Mapping[str, Any] | None) -> dict[Path, Any]:
    return {} if config is None else {folder / "config.json": partial(_write_json, config)}


def _write_json(content: Mapping[str, Any], file: io.BufferedWriter) -> None:
    try:
        file.write(json.dumps(dict(content), indent=2).encode() + b"\n")
    except TypeError as error:
        raise ValueError(f"{Path(file.name).parent}: the config must be JSON: {error}") from error
