"""How glibc's malloc, from which XLA has its buffers on CPU, gets its memory from the kernel.

XLA allocates the temporaries of a step anew each time, and glibc maps blocks that large, and unmaps them when they are
freed: clearing their pages again, 4 KiB at a time, takes a third of a step (benchmarks/README.md).
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_TUNABLE = "glibc.malloc.hugetlb"
# The mode in brackets is the kernel's: huge pages for all memory, for what is asked for, or none.
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name for the event
_LONG = 0.2  # seconds; a trim takes some hundredths
# Names from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that let glibc ask the kernel for pages of 2 MiB; none where nobody would heed them.

    glibc reads them once, as a process starts. What `environ` says already stays as it is.
    """
    told = environ.get("GLIBC_TUNABLES", "")
    name = "CS_GNU_LIBC_VERSION"
    glibc = (os.confstr(name) or "") if name in getattr(os, "confstr_names", ()) else ""
    version = tuple(int(part) for part in glibc.removeprefix("glibc ").split(".") if part.isdigit())
    asked = _KERNEL.exists() and "[madvise]" in _KERNEL.read_text()
    if _TUNABLE in told or version < (2, 35) or not asked:
        return {}
    return {"GLIBC_TUNABLES": f"{told}:{_TUNABLE}=1".lstrip(":")}


def restart_with_huge_pages() -> None:
    """Starts `python -m train.…` over with `huge_pages`; to be called before anything else is imported."""
    locating = sys.argv[:1] == ["-m"]  # Python is about to run a module of the package that calls this.
    if locating and (variables := huge_pages(os.environ)):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables})


def keep_freed_memory() -> None:
    """Lets glibc hand freed memory to the next allocation instead of to the kernel; to be called before JAX starts.

    For a process that had to start without huge pages, such as a notebook's: as fast, but memory falls to pieces, and
    up to twice as much is held. Does nothing where malloc is not glibc's.
    """
    libc = _glibc()
    if libc is None or _TUNABLE in os.environ.get("GLIBC_TUNABLES", ""):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 2**26)
    # Else XLA's threads get heaps of their own, of at most 64 MiB, which go back to the kernel whatever the threshold.
    # glibc reads this once, when a second thread first allocates.
    libc.mallopt(_M_ARENA_MAX, 1)


@cache
def trim_after_compiling() -> None:
    """Lets glibc give the kernel what XLA's compiler has freed, each time that it has compiled for long.

    Else it is held as long as the program runs: more than 100 MiB of a train step. Does nothing where malloc is not
    glibc's.
    """
    libc = _glibc()
    if libc is None:
        return
    import jax  # Imported late: huge pages must have been asked for before.

    def trim(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and duration_secs > _LONG:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
