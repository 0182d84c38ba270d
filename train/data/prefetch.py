"""Worker processes that decode ahead: each makes its rows of every batch, in order.

Images come through memory that a worker shares with the program, all else through a pipe. The memory belongs to an
unnamed file, so that nothing is left behind however a process ends; it lies on disk where a container is short of
shared memory.
"""

import contextlib
import ctypes
import multiprocessing
import signal
from collections.abc import Callable, Generator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from train.process.errors import RunStopped

Batch = dict[str, np.ndarray]
MakeBatch = Callable[[int, np.ndarray], Batch]
"""From a step and the rows wanted to those rows of its batch; it must be picklable."""

# Sent to all processes of a group; but the program ends its workers itself, when it has saved.
_FOR_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AHEAD = 3  # Batches that are made or wait to be taken.


def prefetch(
    make: MakeBatch, rows: np.ndarray, image_shape: tuple[int, ...], steps: range, workers: int
) -> Generator[Batch, None, None]:
    """The batches `make(step, rows)` of those steps, in order, made by `workers` processes.

    Raises:
        RunStopped: a worker was ended from outside; or what `make` raises.
    """
    context = multiprocessing.get_context("spawn")  # A fork would copy the locks of JAX's threads.
    parts = [part for part in np.array_split(rows, workers) if len(part)] or [rows]
    started, ends, buffers = [], [], []
    try:
        for part in parts:
            shape = (_AHEAD, len(part), *image_shape)
            memory = context.RawArray(ctypes.c_uint8, max(int(np.prod(shape)), 1))
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(make, part, steps, memory, shape, theirs), daemon=True)
            with _signals_blocked():
                process.start()
            theirs.close()  # So that the pipe ends with the worker.
            started.append(process)
            ends.append(ours)
            buffers.append(_images(memory, shape))
        for count, _ in enumerate(steps):
            found = [_received(end) for end in ends]
            for part, images in zip(found, buffers, strict=True):
                part["image"] = images[count % _AHEAD]
            batch = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
            for end in ends:
                _allow(end)
            yield batch
    finally:
        for process, end in zip(started, ends, strict=True):
            end.close()
            process.kill()
            process.join()


@contextlib.contextmanager
def _signals_blocked() -> Generator[None]:
    """Inside, a process is started that does not hear the signals, not even before it can ignore them."""
    resource_tracker.ensure_running()  # When it starts, with the first process, it lets the signals through again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _images(memory: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Shared memory as images of `shape`."""
    return np.frombuffer(memory, np.uint8)[: int(np.prod(shape))].reshape(shape)


def _received(end: Connection) -> dict[str, Any]:
    """A worker's next part without its images."""
    try:
        found = end.recv()
    except (EOFError, ConnectionError) as error:
        raise RunStopped(
            "a process that decodes images was ended from outside, perhaps for want of memory; "
            "the same command goes on, with fewer of them by --data.workers"
        ) from error
    if isinstance(found, Exception):
        raise found
    return found


def _allow(end: Connection) -> None:
    """Tells a worker that it may write over the images that were taken; one that has made its last is gone."""
    with contextlib.suppress(ConnectionError):
        end.send_bytes(b".")


def _work(
    make: MakeBatch, rows: np.ndarray, steps: range, memory: Any, shape: tuple[int, ...], end: Connection
) -> None:
    """A worker's life; it ends with the program, as then its pipe does."""
    for number in _FOR_ALL:
        signal.signal(number, signal.SIG_IGN)
    images = _images(memory, shape)
    try:
        for count, step in enumerate(steps):
            if count >= _AHEAD:
                end.recv_bytes()
            try:
                batch = make(step, rows)
                images[count % _AHEAD] = batch.pop("image")
            except Exception as error:
                end.send(error)
                return
            end.send(batch)
    except (EOFError, ConnectionError):
        return
