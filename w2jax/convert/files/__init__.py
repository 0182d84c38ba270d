"""Read and write weight files: .safetensors (one file or shards), .npz, torch's .pt, and Hugging Face folders."""

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
from w2jax.convert.lazy_tensor import LazyTensor, byte_size, check_count
from w2jax.files import check_growth, read_json, string_map, write_files_atomic
from w2jax.text import shorten

_INDEX = ".safetensors.index.json"
_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # .tar for .pth.tar
KNOWN = (".safetensors", _INDEX, ".npz", *_TORCH)  # how the names of weight files end
_PREFERRED = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin", "model.npz")  # in a folder
_PREFERRED += ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_WITH_CONFIG = re.compile(r"model.*\.safetensors(\.index\.json)?|pytorch_model.*\.bin")
_SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")
_MAX_NAME = 500  # characters of a tensor's name

_RUN_FOLDER = "To export a run folder, run: python -m train.export DIR --format F --out FILE"


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors, .safetensors.index.json or .npz file; {} for any other file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is broken.
    """
    if path.name.endswith(_INDEX):
        return _read_shards(path)[1]
    read = {".safetensors": read_safetensors, ".npz": read_npz}.get(path.suffix)
    return {} if read is None else read(path)[1]


class Weights(NamedTuple):
    """The content of a weight file."""

    path: Path  # The file that was read (in a folder, the chosen file), or the index of the shards.
    tensors: dict[str, LazyTensor]  # Tensors by their names in the file.
    metadata: dict[str, str]  # Metadata of the file.
    config: dict[str, Any] | None  # Content of the config.json (open_clip_config.json) next to the file, or None.
    own_config: bool  # The file has a name of the Hugging Face hub or of open_clip, so the config belongs to it.
    notes: list[str]  # Messages for the user.


def has_weights(path: Path) -> bool:
    """Return whether the path is a file, or a folder with a file whose name is that of weights."""
    return path.is_file() or (path.is_dir() and any(entry.name.endswith(KNOWN) for entry in path.iterdir()))


def read_weights(path: str | Path, average: bool = True) -> Weights:
    """Read the header of a weight file. Each tensor is loaded later, by its `read`.

    Args:
        path: a .safetensors, .safetensors.index.json, .npz, .pt, .pth or .bin file. Or a folder that contains
            model.safetensors.index.json, model.safetensors, pytorch_model.bin or model.npz, or exactly one weight file.
        average: read the averaged weights of a torch file that has raw and averaged ones. False: the raw ones.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file type is unknown, the file is broken or contains more than tensors, or a folder has no
            weight file or several.
        ImportError: the file is torch's, and torch is not installed or too old to read files safely.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Pass a weight file or a folder with one")
    try:
        path = _file_in(path) if path.is_dir() else path
        weights = _read(path, average)
        _check(weights)
    except ValueError as error:
        raise ValueError(shorten(str(error))) from error
    return weights


def _read(path: Path, average: bool) -> Weights:
    metadata, notes = {}, []
    if not path.is_file():  # opening a pipe would never return
        raise ValueError(f"{path} is not a file. Pass a weight file or a folder with one")
    if path.name.endswith(_INDEX):
        tensors, metadata = _read_shards(path)
    elif path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
    elif path.suffix == ".npz":
        tensors, metadata = read_npz(path)
    elif path.suffix in _TORCH:
        tensors, notes = read_torch(path, average)
    else:
        raise ValueError(
            f"{path} must be a folder or end with {', '.join(KNOWN)}, got the suffix {path.suffix or '(none)'}"
        )
    return Weights(path, tensors, metadata, _config(path), _has_own_config(path), notes)


def _check(weights: Weights) -> None:
    """Raise a ValueError if a name cannot be printed, or the tensors need much more memory than the file's size."""
    path, tensors, *_ = weights
    for key in tensors:
        if len(key) > _MAX_NAME or not key.isprintable():
            raise ValueError(f"tensor names must have at most {_MAX_NAME} printable characters, got {key!r} in {path}")
    if path.suffix in (".npz", *_TORCH):  # in other files each byte belongs to only one tensor
        check_growth(path, sum(map(byte_size, tensors.values())), path.stat().st_size)


def _file_in(folder: Path) -> Path:
    """Return the weight file in a folder; raise a ValueError if there is no file, or several possible files."""
    for name in _PREFERRED:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.name.endswith(KNOWN) and path.is_file())
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise ValueError(
            f"{folder} must contain {', '.join(_PREFERRED)} or exactly one file that ends with {', '.join(KNOWN)}, "
            f"got {names}. {_RUN_FOLDER}"
        )
    return files[0]


def _config(path: Path) -> dict[str, Any] | None:
    """Read the config.json next to a file; next to a file with a name of open_clip, its open_clip_config.json.

    Next to a file with another name than those of the Hugging Face hub, a config.json can be that of any program.
    There, one that is no JSON object is ignored.
    """
    config = path.with_name("open_clip_config.json" if path.name.startswith("open_clip_") else "config.json")
    if not config.is_file():
        return None
    try:
        return read_json(config)
    except (OSError, ValueError):
        if _has_own_config(path):
            raise
        return None


def _has_own_config(path: Path) -> bool:
    return path.name.startswith("open_clip_") or _WITH_CONFIG.fullmatch(path.name) is not None


def _read_shards(index: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Read all shards: return the tensors in the order of the index, and the metadata that all shards share."""
    places = shard_map(index)
    names = sorted(set(places.values()))
    missing = [name for name in names if not index.with_name(name).is_file()]
    if missing:
        raise ValueError(f"{index} names shards that are missing: {', '.join(missing)}. Download them")
    tensors, metadata = {}, None
    for name in names:
        shard, own = read_safetensors(index.with_name(name))
        tensors |= {(key, name): tensor for key, tensor in shard.items()}
        check_count(index, len(tensors))
        metadata = own if metadata is None else {key: own[key] for key in own if metadata.get(key) == own[key]}
    wrong = tensors.keys() ^ places.items()
    if wrong:
        key, name = min(wrong)
        if (key, name) in tensors:
            raise ValueError(f"{index}: {key!r} is in the shard {name}, but the index does not name this shard for it")
        raise ValueError(f"{index}: {key!r} must be in the shard {name}, but the shard does not have it")
    return {key: tensors[key, name] for key, name in places.items()}, metadata or {}


def shard_map(index: Path) -> dict[str, str]:
    """Return the file name of the shard of each tensor. Only files in the folder of the index are allowed.

    Raises:
        OSError: the index cannot be read.
        ValueError: it is not an index, or names other files.
    """
    places = string_map(read_json(index).get("weight_map"))
    if places is None:
        raise ValueError(f"{index}: weight_map must be an object with a file name for each tensor name")
    check_count(index, len(places))
    for name in set(places.values()):
        valid = name.isprintable() and len(name.encode()) <= 255
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors") or not valid:
            raise ValueError(f"{index}: weight_map must name .safetensors files in the same folder, got {name!r}")
    return places


def write_weights(
    path: str | Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str] | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write tensors to a file or a folder. If the write fails, the old files are unchanged.

    Only one tensor is in memory at a time, except for torch's files.

    Args:
        path: a .safetensors, .npz, .pt, .pth or .bin file. Or a folder (an existing one, or a path without suffix):
            model.safetensors, or shards and their index, are written to it and replace earlier ones.
        tensors: tensors by their names in the file.
        metadata: strings by name. torch's files cannot store metadata.
        configs: content of config.json and other JSON files by name, for files with a name of the Hugging Face hub.
        shard_bytes: maximum bytes of tensors in each file of a folder; a larger tensor gets its own file. None: one
            file.

    Raises:
        ValueError: the file type is unknown, there are too many tensors, or the file cannot store a tensor, the
            metadata or the config.
        ImportError: the file is torch's, and torch is not installed.
    """
    path, metadata, configs = Path(path), dict(metadata or {}), configs or {}
    check_count(path, len(tensors))
    folder = is_folder(path)
    if string_map(metadata) is None:
        raise ValueError(f"metadata for {path} must be a dict of strings, got {metadata}")
    if shard_bytes is not None and shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    if shard_bytes is not None and not folder:
        raise ValueError(f"shard_bytes must be None for a single file, got {shard_bytes} for {path}. Write a folder")
    if folder:
        return _write_folder(path, tensors, metadata, configs, shard_bytes)
    if path.suffix == ".safetensors":
        write = partial(write_safetensors, tensors=tensors, metadata=metadata)
    elif path.suffix == ".npz":
        write = partial(write_npz, tensors=tensors, metadata=metadata)
    elif path.suffix in _TORCH:
        write = partial(write_torch, tensors=tensors, path=path)
    else:
        known = ", ".join(suffix for suffix in KNOWN if suffix != _INDEX)
        raise ValueError(f"{path} must be a folder or end with {known}, got the suffix {path.suffix}")
    if configs and not _WITH_CONFIG.fullmatch(path.name):
        raise ValueError(
            f"{path} must be a folder or model.safetensors to have a config. Write a folder, or omit the config"
        )
    return write_files_atomic(_config_files(path.parent, configs) | {path: write})


def _write_folder(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: dict[str, str],
    configs: Mapping[str, Mapping[str, Any]],
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
    } | _config_files(folder, configs)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(byte_size, tensors.values()))},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        # The index is written last, so readers see the new shards only when all of them exist.
        files[folder / f"model{_INDEX}"] = partial(_write_json, index)
    write_files_atomic(files)
    # Remove files of an earlier write, the old index first: readers would prefer it to the new model.safetensors.
    for path in sorted(folder_files(folder), key=lambda path: not path.name.endswith(_INDEX)):
        if path not in files:
            path.unlink()


def is_folder(path: Path) -> bool:
    """Return whether `write_weights` writes a folder: an existing one, or a path without suffix."""
    return path.is_dir() or not path.suffix


def folder_files(folder: Path) -> list[Path]:
    """Return the existing files that `write_weights` replaces or removes when it writes to a folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return [path for path in paths if path.name in _PREFERRED[:2] or _SHARD.fullmatch(path.name)]


def _shards(tensors: Mapping[str, LazyTensor], shard_bytes: int | None) -> list[dict[str, LazyTensor]]:
    """Split the tensors, in their order, into shards of at most `shard_bytes`."""
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        size += byte_size(tensor)
        if shards[-1] and shard_bytes is not None and size > shard_bytes:
            shards.append({})
            size = byte_size(tensor)
        shards[-1][key] = tensor
    return shards


def _config_files(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> dict[Path, Any]:
    return {folder / name: partial(_write_json, content) for name, content in configs.items()}


def _write_json(content: Mapping[str, Any], file: io.BufferedWriter) -> None:
    try:
        file.write(json.dumps(dict(content), indent=2).encode() + b"\n")
    except TypeError as error:
        raise ValueError(f"the config for {Path(file.name).parent} must be JSON: {error}") from error
