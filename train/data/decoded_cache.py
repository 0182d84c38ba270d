"""Caches decoded splits on disk, because decoding takes most of the time when a split is opened again."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from train.process.home import user_cache
from w2jax.convert.files.npz import read_npz
from w2jax.files import write_files_atomic

_MIN_SECONDS = 0.3  # Splits that decode faster are not cached.
_MAX_BYTES = 4 * 2**30  # Limit of the whole cache.
_NAMES = ("image", "label", "converted")
_FORMAT = 1  # Increase this number when `decode` returns different values for the same file.


def cached(files: Sequence[Any], settings: Any, shape: Sequence[int], decode: Callable[[], Mapping[str, np.ndarray]]):
    """Returns the result of `decode`, from the user's cache if an earlier call stored it there.

    The cache key depends on the contents of the split's files, not on their names or times. Reading verifies
    checksums; a damaged entry is decoded again. If the cache cannot be written, the result is not cached, and no
    message is printed. A full cache removes its least recently used entries first.

    Args:
        files: TFDS's file instructions for the split.
        settings: everything else that the decoded values depend on.
        shape: shape of the images, [N, h, w, C].
        decode: function that returns "image" (uint8 of that shape), "label" (int32 [N]) and "converted" (an int, the
            number of converted images).
    """
    cache = user_cache()
    if cache is None:
        return decode()
    path = cache / "decoded" / f"{_fingerprint(files, settings)}.npz"
    with suppress(OSError, ValueError, KeyError):
        arrays, _ = read_npz(path)
        if tuple(arrays[name].shape for name in _NAMES) == (tuple(shape), tuple(shape[:1]), ()):
            split = {name: arrays[name].read() for name in _NAMES}
            path.touch()
            return split
    started = time.perf_counter()
    split = decode()
    if time.perf_counter() - started > _MIN_SECONDS:
        with suppress(OSError):
            _store(path, split)
    return split


def _fingerprint(files: Sequence[Any], settings: Any) -> str:
    """Returns a hash of the record files and of the decoding settings."""
    parts = [str((_FORMAT, PIL.__version__, settings))]
    for file in files:
        with Path(file.filename).open("rb") as content:
            parts.append(f"{file.skip} {file.take} {hashlib.file_digest(content, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _store(path: Path, split: Mapping[str, np.ndarray]) -> None:
    arrays = {name: split[name] for name in _NAMES}
    write_files_atomic({path: lambda file: np.savez(file, allow_pickle=False, **arrays)})
    total = 0
    for entry in sorted(path.parent.iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True):
        total += entry.stat().st_size
        if total > _MAX_BYTES and entry != path:
            entry.unlink(missing_ok=True)
