"""Settings of the whole process that a training program makes before it starts."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jaxlib.version

from configs.base import Config
from train.process.distributed import connect
from train.process.malloc import keep_freed_memory, trim_after_compiling


def prepare_process(config: Config) -> None:
    """Makes every setting of the process that a training program uses. Call it before JAX uses a device.

    `config` has passed `train.config.checks.check_ranges`.

    It changes, for the whole process:

    - logging of JAX, absl, asyncio and orbax, and the hooks for uncaught errors of threads and callbacks
    - glibc's malloc: it keeps freed memory, and returns the compiler's after each long compilation
    - the connection to the run's other processes, if `config.distributed` or a launcher names any
    - JAX's number of CPU devices (`config.mesh.cpu_devices`) and its compilation cache

    The programs call it (`train.engine.main`), and `train.engine.loop.fit` never does: a notebook calls it only if it
    wants these settings.

    Raises:
        UserError: the other processes cannot be reached.
    """
    silence_libraries()
    keep_freed_memory()
    trim_after_compiling()
    connect(config.distributed)
    split_cpu_into_devices(config)
    enable_compilation_cache(config.run.compilation_cache)


def silence_libraries() -> None:
    """Keeps the libraries' notices out of the training log; JAX's errors still show.

    An error in a save of orbax is raised to us (`train/engine/checkpoint.py`). Orbax would also log it from each of its
    threads and tasks, a thousand lines in all.
    """
    logging.getLogger("jax").setLevel(logging.ERROR)
    for name in ("absl", "asyncio", "orbax"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _silence_orbax_threads()


@cache
def _silence_orbax_threads() -> None:
    threading.excepthook = _thread_failed
    sys.unraisablehook = partial(_callback_failed, sys.unraisablehook)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if not type(failure.thread).__module__.startswith("orbax."):
        threading.__excepthook__(failure)


def _callback_failed(next_hook: Callable[[Any], object], failure: Any) -> None:
    # tensorstore's message when the event loop was closed by another array's failure.
    if "Event loop is closed" not in str(failure.exc_value):
        next_hook(failure)


def enable_compilation_cache(option: Literal["auto", "on", "off"]) -> None:
    """Makes JAX keep compiled programs on disk; "auto" does so only on accelerators.

    The folder is $JAX_COMPILATION_CACHE_DIR, which JAX reads itself, or one for this version of jaxlib: programs
    compiled by another may crash on CPU.
    """
    if option == "off":
        jax.config.update("jax_enable_compilation_cache", False)
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ and (option == "on" or jax.default_backend() != "cpu"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "w2jax" / f"jaxlib-{jaxlib.version.__version__}"))


def split_cpu_into_devices(config: Config) -> None:
    """Makes JAX count this CPU as several devices, which compute in parallel. Call it before JAX uses a device.

    XLA's CPU backend computes many small operations of a program on one core (benchmarks/README.md). The number is the
    largest up to `config.mesh.cpu_devices` and the number of cores that divides the batch. A number set elsewhere
    stays, and so do the devices of several processes.
    """
    is_set = getattr(jax.config, "jax_num_cpu_devices", -1) != -1
    is_flagged = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if is_set or is_flagged or jax.distributed.is_initialized():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    accumulate = getattr(getattr(config, "optim", None), "accumulate", 1)
    counts = range(min(config.mesh.cpu_devices, cores), 1, -1)
    fitting = (count for count in counts if config.run.batch_size % (count * accumulate) == 0)
    with contextlib.suppress(RuntimeError):  # JAX has started, as in a notebook: its devices stay as they are.
        jax.config.update("jax_num_cpu_devices", next(fitting, 1))
