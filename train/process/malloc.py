"""Settings of glibc's malloc, which allocates XLA's buffers on CPU.

XLA allocates new temporaries in each step. glibc maps such large blocks when they are allocated, and unmaps them when
they are freed. Clearing the new pages, 4 KiB at a time, takes a third of a step (benchmarks/README.md).
"""

import os
import signal
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from w2jax.cpu import HUGE_PAGES, glibc
from w2jax.interrupt import runs_module

SWITCH = "W2JAX_HUGE_PAGES"
"""Environment variable; "0" turns huge pages off."""

# The kernel's mode is the word in brackets: huge pages "always", "never", or only where requested ("madvise").
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name for the event
_LONG_COMPILATION = 0.2  # in seconds; malloc_trim takes a few hundredths of a second


def huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables that make glibc request pages of 2 MiB; {} if they would have no effect.

    glibc reads the variables when a process starts. A setting that is already in `environ` is kept.
    """
    tunables = environ.get("GLIBC_TUNABLES", "")
    name = "CS_GNU_LIBC_VERSION"
    library = (os.confstr(name) or "") if name in getattr(os, "confstr_names", ()) else ""
    version = tuple(int(part) for part in library.removeprefix("glibc ").split(".") if part.isdigit())
    on_request = _KERNEL.exists() and "[madvise]" in _KERNEL.read_text()
    if environ.get(SWITCH) == "0" or HUGE_PAGES in tunables or version < (2, 35) or not on_request:
        return {}
    return {"GLIBC_TUNABLES": f"{tunables}:{HUGE_PAGES}=1".lstrip(":")}


def restart_with_huge_pages() -> None:
    """Restarts `python -m train.…` with the variables of `huge_pages`. Does nothing in any other program.

    `train/__init__.py` calls this before JAX is imported. Set W2JAX_HUGE_PAGES=0 in the environment to turn it off.
    """
    if sys.executable and runs_module("train") and (variables := huge_pages(os.environ)):
        # A Ctrl-C while Python starts again would print a traceback. It waits for `exit_on_interrupt`.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables})
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


@cache
def trim_after_compiling() -> None:
    """Makes glibc return the compiler's freed memory to the kernel after each long compilation.

    Otherwise the process keeps this memory until it ends: more than 100 MiB for a train step. Does nothing if malloc is
    not glibc's.
    """
    libc = glibc()
    if libc is None:
        return
    import jax  # Late import: this module is imported before the restart, and JAX must not be.

    def trim(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and duration_secs > _LONG_COMPILATION:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)
