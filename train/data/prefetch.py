"""Worker processes that decode ahead. Each worker makes its rows of every batch, in order.

A worker sends images through shared memory and everything else through a pipe. The memory belongs to an unnamed file,
so nothing remains after a process ends, even if it is killed. If /dev/shm is too small, the file is on disk.
"""

import contextlib
import ctypes
import multiprocessing
import signal
from collections.abc import Callable, Generator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from train.process.errors import RunStopped

Batch = dict[str, np.ndarray]
MakeBatch = Callable[[int, np.ndarray], Batch]
"""Function from a step and row numbers to these rows of the step's batch. It must be picklable."""

# A terminal or scheduler sends these signals to the whole process group. Workers ignore them, because the main process
# kills its workers after it has saved.
_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BUFFERS = 3  # Number of batches in shared memory.


class _Worker(NamedTuple):
    """A worker process, as the main process sees it."""

    process: Any
    pipe: Connection
    images: np.ndarray
    """uint8 [_BUFFERS, m, h, w, C] in shared memory. Batch k is in images[k % _BUFFERS]."""


def prefetch(
    make: MakeBatch, rows: np.ndarray, image_shape: tuple[int, ...], steps: range, workers: int
) -> Generator[Batch, None, None]:
    """Yields the batches `make(step, rows)` in the order of `steps`, made by `workers` processes.

    Raises:
        RunStopped: a worker process was killed.
        Any exception that `make` raises in a worker.
    """
    started: list[_Worker] = []
    try:
        for share in [share for share in np.array_split(rows, workers) if len(share)] or [rows]:
            started.append(_start(make, share, image_shape, steps))
        for count, _ in enumerate(steps):
            parts = [_receive(worker.pipe) for worker in started]
            for worker, part in zip(started, parts, strict=True):
                part["image"] = worker.images[count % _BUFFERS]
            batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for worker in started:
                _release_buffer(worker.pipe)
            yield batch
    finally:
        for worker in started:
            worker.pipe.close()
            worker.process.kill()
            worker.process.join()


def _start(make: MakeBatch, rows: np.ndarray, image_shape: tuple[int, ...], steps: range) -> _Worker:
    context = multiprocessing.get_context("spawn")  # A fork would copy locks that JAX's threads hold.
    shape = (_BUFFERS, len(rows), *image_shape)
    memory = context.RawArray(ctypes.c_uint8, max(int(np.prod(shape)), 1))
    pipe, worker_pipe = context.Pipe()
    process = context.Process(target=_work, args=(make, rows, steps, memory, shape, worker_pipe), daemon=True)
    with _signals_blocked():
        process.start()
    worker_pipe.close()  # Now only the worker has this end open, so the pipe closes when the worker ends.
    return _Worker(process, pipe, _as_images(memory, shape))


@contextlib.contextmanager
def _signals_blocked() -> Generator[None]:
    """Blocks signals while a process starts. The process inherits the block, so no signal can kill it early."""
    resource_tracker.ensure_running()  # Start the tracker before blocking, because its start unblocks signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_images(memory: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns shared memory as an array of images with this shape."""
    return np.frombuffer(memory, np.uint8)[: int(np.prod(shape))].reshape(shape)


def _receive(pipe: Connection) -> dict[str, Any]:
    """Receives a worker's next part of a batch, without the images."""
    try:
        message = pipe.recv()
    except (EOFError, ConnectionError) as error:
        raise RunStopped(
            "a process that decodes images was killed, perhaps because memory ran out. "
            "Run the same command again to resume. Set a smaller --data.workers to use less memory."
        ) from error
    if isinstance(message, Exception):
        raise message
    return message


def _release_buffer(pipe: Connection) -> None:
    """Allows a worker to overwrite the images that were copied. After its last batch, the worker may have ended."""
    with contextlib.suppress(ConnectionError):
        pipe.send_bytes(b".")


def _work(
    make: MakeBatch, rows: np.ndarray, steps: range, memory: Any, shape: tuple[int, ...], pipe: Connection
) -> None:
    """Main function of a worker. It returns if the main process ends, because this closes the pipe."""
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    images = _as_images(memory, shape)
    try:
        for count, step in enumerate(steps):
            if count >= _BUFFERS:
                pipe.recv_bytes()
            try:
                batch = make(step, rows)
                images[count % _BUFFERS] = batch.pop("image")
            except Exception as error:
                pipe.send(error)
                return
            pipe.send(batch)
    except (EOFError, ConnectionError):
        return
