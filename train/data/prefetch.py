"""Worker processes that decode ahead: each makes its rows of every batch, in order.

Images go through memory that a worker shares with the main process, everything else through a pipe. The memory belongs
to an unnamed file, so nothing is left behind however a process ends. The file is on disk where /dev/shm is too small.
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
"""From a step and the rows wanted to those rows of its batch; it must be picklable."""

# A terminal or a scheduler sends these to the whole process group. Workers ignore them: the main process kills its
# workers after it has saved.
_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BUFFERS = 3  # Batches in shared memory at a time.


class _Worker(NamedTuple):
    """A worker process, as the main process sees it."""

    process: Any
    pipe: Connection
    images: np.ndarray
    """uint8 [_BUFFERS, m, h, w, C] in shared memory: batch k is in images[k % _BUFFERS]."""


def prefetch(
    make: MakeBatch, rows: np.ndarray, image_shape: tuple[int, ...], steps: range, workers: int
) -> Generator[Batch, None, None]:
    """The batches `make(step, rows)` of those steps, in order, made by `workers` processes.

    Raises:
        RunStopped: a worker process was killed. Any exception of `make` is raised here too.
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
    context = multiprocessing.get_context("spawn")  # A fork would copy the locks of JAX's threads.
    shape = (_BUFFERS, len(rows), *image_shape)
    memory = context.RawArray(ctypes.c_uint8, max(int(np.prod(shape)), 1))
    pipe, worker_pipe = context.Pipe()
    process = context.Process(target=_work, args=(make, rows, steps, memory, shape, worker_pipe), daemon=True)
    with _signals_blocked():
        process.start()
    worker_pipe.close()  # Only the worker has this end open now, so the pipe ends with the worker.
    return _Worker(process, pipe, _as_images(memory, shape))


@contextlib.contextmanager
def _signals_blocked() -> Generator[None]:
    """A process started inside inherits the blocked signals, so it cannot be killed before it ignores them."""
    resource_tracker.ensure_running()  # It starts with the first process, and would unblock the signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_images(memory: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Shared memory as images of `shape`."""
    return np.frombuffer(memory, np.uint8)[: int(np.prod(shape))].reshape(shape)


def _receive(pipe: Connection) -> dict[str, Any]:
    """A worker's next part of a batch, without its images."""
    try:
        message = pipe.recv()
    except (EOFError, ConnectionError) as error:
        raise RunStopped(
            "a process that decodes images was killed, perhaps because memory ran out. "
            "The same command resumes; set a smaller --data.workers to use less memory."
        ) from error
    if isinstance(message, Exception):
        raise message
    return message


def _release_buffer(pipe: Connection) -> None:
    """Lets a worker overwrite the images that were copied; a worker that has made its last batch may be gone."""
    with contextlib.suppress(ConnectionError):
        pipe.send_bytes(b".")


def _work(
    make: MakeBatch, rows: np.ndarray, steps: range, memory: Any, shape: tuple[int, ...], pipe: Connection
) -> None:
    """The main function of a worker. It returns when the main process ends, since the pipe then ends too."""
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
