"""Weights in files: .safetensors, whole or in shards, .npz, torch's .pt, and folders as on the Hugging Face hub."""

import io
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from w2jax.convert.files.npz import read_npz, write_npz
from w2jax.convert.files.safe_io import read_json, strings, write_files_atomic
from w2jax.convert.files.safetensors import read_safetensors, write_safetensors
from w2jax.convert.files.torch_file import read_torch, write_torch
from w2jax.convert.lazy_tensor import LazyTensor, brief, byte_size

_INDEX = ".safetensors.index.json"
_TORCH = (".pt", ".pth", ".bin")
_KNOWN = (".safetensors", _INDEX, ".npz", *_TORCH)
_FIRST = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin", "model.npz")  # in a folder
_WITH_CONFIG = re.compile(r"model.*\.safetensors(\.index\.json)?|pytorch_model.*\.bin")
_SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")
_LONGEST = 500  # characters of a tensor's name
_MAX_GROWTH, _SMALL = 100, 2**30  # times the bytes of its files that weights may unpack to, where that is not small


class Weights(NamedTuple):
    """What a file of weights holds."""

    path: Path  # the file that was read, or the index of several; in a folder the one that was chosen
    tensors: dict[str, LazyTensor]  # by the file's own keys; nothing is read before it is wanted
    metadata: dict[str, str]  # what the file says of itself
    config: dict[str, Any] | None  # config.json beside it


def read_weights(path: str | Path) -> Weights:
    """Reads what a file says of its tensors; a tensor is read by its read().

    Args:
        path: a .safetensors, .safetensors.index.json, .npz, .pt, .pth or .bin file, or a folder that has one of
            model.safetensors.index.json, model.safetensors, pytorch_model.bin and model.npz, or one file alone.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is of no known kind, not whole, or holds more than tensors; a folder leaves open which to read.
        ImportError: it is torch's and torch is not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = _chosen(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a file of weights or a folder with one")
    try:
        weights = _read(path)
        _check(weights)
    except ValueError as error:
        raise ValueError(brief(str(error))) from error
    return weights


def _read(path: Path) -> Weights:
    if not path.is_file():  # to open a pipe would wait for ever
        raise ValueError(f"{path} is no file; give a file of weights or a folder with one")
    if path.name.endswith(_INDEX):
        tensors, metadata = _read_shards(path)
    elif path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
    elif path.suffix == ".npz":
        tensors, metadata = read_npz(path)
    elif path.suffix in _TORCH:
        tensors, metadata = read_torch(path)
    else:
        raise ValueError(f"{path}: wanted a folder or one of {', '.join(_KNOWN)}, got {path.suffix or 'no suffix'}")
    return Weights(path, tensors, metadata, _config(path))


def _check(weights: Weights) -> None:
    """ValueError if names cannot be shown in a line, or the tensors claim far more memory than the file has bytes."""
    path, tensors, *_ = weights
    for key in tensors:
        if len(key) > _LONGEST or not key.isprintable():
            raise ValueError(f"{path}, {key!r}: wanted names of at most {_LONGEST} printable characters")
    if path.suffix in (".npz", *_TORCH):  # of the others every byte has been counted
        claimed, there = sum(map(byte_size, tensors.values())), path.stat().st_size
        if claimed > max(_SMALL, _MAX_GROWTH * there):
            raise ValueError(f"{path} is refused: its {there} bytes would become {claimed} in memory")


def _chosen(folder: Path) -> Path:
    for name in _FIRST:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.name.endswith(_KNOWN) and path.is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{folder}: wanted {', '.join(_FIRST)} or one file of {', '.join(_KNOWN)}, got {names}")
    return found[0]


def _config(path: Path) -> dict[str, Any] | None:
    """config.json beside a file that is named as on the Hugging Face hub, where it describes that file."""
    config = path.with_name("config.json")
    if not _WITH_CONFIG.fullmatch(path.name) or not config.is_file():
        return None
    return read_json(config)


def _read_shards(index: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The tensors of all shards, in the index's order, and the metadata on which the shards agree."""
    places = strings(read_json(index).get("weight_map"))
    if places is None:
        raise ValueError(f"{index}: wanted weight_map as an object of file names by key")
    names = sorted(set(places.values()))
    for name in names:  # none may lead out of the index's folder
        shown = name.isprintable() and len(name.encode()) <= 255
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors") or not shown:
            raise ValueError(f"{index}: wanted names of .safetensors files beside it, got {name!r}")
    missing = [name for name in names if not index.with_name(name).is_file()]
    if missing:
        raise ValueError(f"{index}: wanted the shards that it names, missing {', '.join(missing)}; fetch them")
    found, metadata = {}, None
    for name in names:
        tensors, said = read_safetensors(index.with_name(name))
        found |= {(key, name): tensor for key, tensor in tensors.items()}
        metadata = said if metadata is None else {key: said[key] for key in said if metadata.get(key) == said[key]}
    wrong = found.keys() ^ places.items()
    if wrong:
        key, name = min(wrong)
        problem = "holds it, the index says otherwise" if (key, name) in found else "does not hold it"
        raise ValueError(f"{index}, {key!r}: wanted each key where the index says, but {name} {problem}")
    return {key: found[key, name] for key, name in places.items()}, metadata or {}


def write_weights(
    path: str | Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Writes tensors, one in memory at a time except for torch's files. If it fails, the old files stay whole.

    Args:
        path: a .safetensors, .npz, .pt, .pth or .bin file; or a folder (one that exists, or a path without suffix),
            which gets model.safetensors or shards of it with their index. What it had of these is replaced.
        tensors: by the keys that the file shall have.
        metadata: what the file shall say of itself; torch's files have no place for it.
        config: written to config.json beside files that are named as on the Hugging Face hub.
        shard_bytes: the most bytes of tensors that a file in a folder shall have; a larger tensor has its own file.

    Raises:
        ValueError: the path is of no known kind, or a file cannot hold a tensor, the metadata or the config.
        ImportError: it is torch's and torch is not installed.
    """
    path, metadata = Path(path), dict(metadata or {})
    folder = path.is_dir() or not path.suffix
    if strings(metadata) is None:
        raise ValueError(f"{path}: wanted metadata as strings by name, got {metadata}")
    if shard_bytes is not None and (shard_bytes < 1 or not folder):
        raise ValueError(f"shard_bytes is a number from 1 for a folder's files, got {shard_bytes} for {path}")
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
        raise ValueError(f"{path}: wanted a folder or one of {known}, got {path.suffix}")
    if config is not None and not _WITH_CONFIG.fullmatch(path.name):
        raise ValueError(f"{path}: a config is kept beside model.safetensors; write a folder, or leave it out")
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
        # Last, so that the folder's reader meets the new shards only when all are there.
        files[folder / f"model{_INDEX}"] = partial(_write_json, index)
    write_files_atomic(files)
    # What an earlier write left goes now, its index first: until then it hides a new model.safetensors.
    for path in sorted(folder.iterdir(), key=lambda path: not path.name.endswith(_INDEX)):
        if path not in files and (path.name in _FIRST[:2] or _SHARD.fullmatch(path.name)):
            path.unlink()


def _shards(tensors: Mapping[str, LazyTensor], shard_bytes: int | None) -> list[dict[str, LazyTensor]]:
    """The tensors in their order, cut where the next one would be too much."""
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
        raise ValueError(f"{Path(file.name).parent}: wanted a config that JSON can hold, but {error}") from error
