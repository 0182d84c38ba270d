"""Changes the settings of the whole process for a training program."""

import contextlib
import logging
import os
import resource
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import jax
import jaxlib.version

from configs.base import Config
from train.process.distributed import connect
from train.process.errors import UserError
from train.process.home import user_cache
from train.process.malloc import trim_after_compiling
from train.process.signals import add_unraisable_hook
from w2jax.cpu import keep_freed_memory


def prepare_process(config: Config) -> None:
    """Changes all settings of this process that a training program needs. Call this before JAX uses a device.

    `config` must have passed `train.config.checks.check_ranges`.

    These settings change for the whole process:

    - The logging of JAX, absl, asyncio and orbax, and the hooks for uncaught errors of threads and callbacks.
    - glibc's malloc returns the compiler's memory after each long compilation. If the CPU is one device, it keeps all
      other freed memory.
    - The soft limit of open files becomes the hard limit, because a dataset may have thousands of files.
    - The process connects to the other processes of the run, if `config.distributed` or a launcher names any.
    - JAX's number of CPU devices (`config.mesh.cpu_devices`) and its compilation cache.

    The training programs call this function (`train.engine.main`). `train.engine.loop.fit` does not, so in a notebook
    the settings stay as they are unless you call it.

    Raises:
        UserError: if the other processes cannot be reached.
    """
    silence_libraries()
    trim_after_compiling()
    raise_open_file_limit()
    connect(config.distributed)
    split_cpu_into_devices(config)
    if getattr(jax.config, "jax_num_cpu_devices", -1) <= 1:
        keep_freed_memory()  # It would slow several devices (w2jax/cpu.py).
    enable_compilation_cache(config.run.compilation_cache)


def silence_libraries() -> None:
    """Keeps messages of libraries out of the training log. Errors of JAX and of the ONNX export are still shown.

    Orbax raises an error if a save fails, and `train/engine/checkpoint.py` handles it. Each thread and task of orbax
    would also log the error, a thousand lines in total.
    """
    for name in ("jax", "jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("absl", "asyncio", "orbax"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _silence_orbax_threads()


@cache
def _silence_orbax_threads() -> None:
    threading.excepthook = _thread_failed
    add_unraisable_hook(_callback_failed)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if not type(failure.thread).__module__.startswith("orbax."):
        threading.__excepthook__(failure)


def _callback_failed(next_hook: Callable[[Any], object], failure: Any) -> None:
    # tensorstore prints this after the failure of another array has closed the event loop.
    if "Event loop is closed" not in str(failure.exc_value):
        next_hook(failure)


def raise_open_file_limit() -> None:
    """Raises the soft limit of open files of this process and its later children to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS reports no hard limit, but has one. Some sandboxes refuse.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def enable_compilation_cache(option: Literal["auto", "on", "off"]) -> None:
    """Makes JAX cache compiled programs on disk. "auto" does this only on accelerators.

    The folder is $JAX_COMPILATION_CACHE_DIR, which JAX reads itself. By default it is a folder for this version of
    jaxlib, because programs compiled by another version may crash on CPU.
    """
    if option == "off":
        jax.config.update("jax_enable_compilation_cache", False)
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ and (option == "on" or jax.default_backend() != "cpu"):
        cache = user_cache()
        if cache is not None:
            jax.config.update("jax_compilation_cache_dir", str(cache / f"jaxlib-{jaxlib.version.__version__}"))
        elif option == "on":
            raise UserError(
                "--run.compilation-cache on needs a folder, but this user has no home. Set the environment variable "
                "JAX_COMPILATION_CACHE_DIR to a folder"
            )


def split_cpu_into_devices(config: Config) -> None:
    """Splits the CPU into several JAX devices, which compute in parallel. Call this before JAX uses a device.

    XLA's CPU backend runs many small operations of a program on one core (benchmarks/README.md). The number of devices
    is the largest divisor of the batch size that is at most `config.mesh.cpu_devices` and at most the number of cores.
    Nothing changes if the number is already set, or there are several processes.
    """
    is_set = getattr(jax.config, "jax_num_cpu_devices", -1) != -1
    is_flagged = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if is_set or is_flagged or jax.distributed.is_initialized():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    accumulate = getattr(getattr(config, "optim", None), "accumulate", 1)
    counts = range(min(config.mesh.cpu_devices, cores), 1, -1)
    fitting = (count for count in counts if config.run.batch_size % (count * accumulate) == 0)
    with contextlib.suppress(RuntimeError):  # JAX has already started, as in a notebook. Its devices stay unchanged.
        jax.config.update("jax_num_cpu_devices", next(fitting, 1))
