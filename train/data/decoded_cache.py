"""Splits kept decoded on disk: decoding takes longer than anything else that a second start does again."""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from w2jax.convert.files.npz import read_npz

_WORTH = 0.3  # Seconds of decoding from which a split is kept.
_MOST = 4 * 2**30  # Bytes of all that is kept.
_FORMAT = 1  # To be raised when `decode` gives other values for the same file.


def cached(files: Sequence[Any], settings: Any, shape: Sequence[int], decode: Callable[[], Mapping[str, np.ndarray]]):
    """What `decode` returns, from the user's cache if it was decoded before.

    An entry is found by the contents of the split's files, not by their names or times, and its checksums are compared
    as it is read; one that is damaged is decoded anew. Nothing is kept, and nothing said, where nothing can be written.
    What was used longest ago is removed first.

    Args:
        files: TFDS's file instructions of the split.
        settings: all else that the values depend on.
        shape: [N, h, w, C] of the images.
        decode: gives "image" uint8 of that shape and "label" int32 [N].
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "w2jax" / "decoded"
    path = folder / f"{_fingerprint(files, settings)}.npz"
    with suppress(OSError, ValueError, KeyError):
        found, _ = read_npz(path)
        image, label = found["image"], found["label"]
        if (image.shape, label.shape) == (tuple(shape), tuple(shape[:1])):
            split = {"image": image.read(), "label": label.read()}
            path.touch()
            return split
    started = time.perf_counter()
    split = decode()
    if time.perf_counter() - started > _WORTH:
        with suppress(OSError):
            _keep(path, split)
    return split


def _fingerprint(files: Sequence[Any], settings: Any) -> str:
    """Says which records of which contents are decoded how."""
    parts = [str((_FORMAT, PIL.__version__, settings))]
    for file in files:
        with Path(file.filename).open("rb") as content:
            parts.append(f"{file.skip} {file.take} {hashlib.file_digest(content, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _keep(path: Path, split: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.new")  # Another process may be at the same split.
    try:
        with scratch.open("wb") as file:
            np.savez(file, image=split["image"], label=split["label"])
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    total = 0
    for entry in sorted(path.parent.iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True):
        total += entry.stat().st_size
        if total > _MOST and entry != path:
            entry.unlink(missing_ok=True)
