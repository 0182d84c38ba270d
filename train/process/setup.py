"""Settings of the process that a training program wants before it starts."""

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
from train.config.checks import batch_unit
from train.process.distributed import connect
from train.process.malloc import keep_freed_memory, trim_after_compiling


def silence_libraries() -> None:
    """Keeps the libraries' notices out of the training log; JAX's errors still show.

    What fails while orbax saves is raised to us (`train/engine/checkpoint.py`). On its way it would be told a thousand lines
    long, by each of orbax's threads and tasks.
    """
    logging.getLogger("jax").setLevel(logging.ERROR)
    for name in ("absl", "asyncio", "orbax"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _quiet_threads()


@cache
def _quiet_threads() -> None:
    threading.excepthook = _thread_failed
    sys.unraisablehook = partial(_callback_failed, sys.unraisablehook)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if not type(failure.thread).__module__.startswith("orbax."):
        threading.__excepthook__(failure)


def _callback_failed(otherwise: Callable[[Any], object], failure: Any) -> None:
    # tensorstore's word to a loop that ended at another array's failure.
    if "Event loop is closed" not in str(failure.exc_value):
        otherwise(failure)


def enable_compilation_cache(option: Literal["auto", "on", "off"]) -> None:
    """Lets JAX keep compiled programs on disk and find them there; "auto" does so where an accelerator runs them.

    The folder is $JAX_COMPILATION_CACHE_DIR, which JAX reads by itself, or one of this jaxlib's version: programs of
    another may crash on CPU.
    """
    if option == "off":
        jax.config.update("jax_enable_compilation_cache", False)
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ and (option == "on" or jax.default_backend() != "cpu"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "w2jax" / f"jaxlib-{jaxlib.version.__version__}"))


def split_cpu_into_devices(config: Config) -> None:
    """Lets JAX count this CPU as several devices, which compute side by side; to be called before JAX starts.

    XLA's CPU backend computes many small operations of a program on one core (benchmarks/README.md). A number of
    devices that JAX was told otherwise stays as it is, and so do the devices of several processes.
    """
    told = getattr(jax.config, "jax_num_cpu_devices", -1) != -1
    flagged = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if told or flagged or jax.distributed.is_initialized():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most, size = min(config.mesh.cpu_devices, cores), config.run.batch_size
    fitting = (n for n in range(most, 1, -1) if size % batch_unit(config, n) == 0)
    with contextlib.suppress(RuntimeError):  # It has started, as in a notebook: the devices it has then have to do.
        jax.config.update("jax_num_cpu_devices", next(fitting, 1))


def prepare_process(config: Config) -> None:
    """Settings of a training program's process, before JAX starts."""
    silence_libraries()
    keep_freed_memory()
    trim_after_compiling()
    connect(config.distributed)
    split_cpu_into_devices(config)
    enable_compilation_cache(config.run.compilation_cache)
