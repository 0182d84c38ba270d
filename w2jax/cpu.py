"""Makes training on a CPU under Linux faster: glibc's malloc keeps freed memory.

In each call of a program, XLA allocates its intermediate results as one block. By default, glibc gets such a large
block from Linux at each call and returns it afterwards, and Linux zeroes the block every time.
"""

import ctypes
import os
import sys

HUGE_PAGES = "glibc.malloc.hugetlb"
"""Name of glibc's setting for pages of 2 MiB, in the environment variable GLIBC_TUNABLES."""

# Constants from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next allocation. Call this before JAX computes anything.

    A training step on a CPU with one JAX device takes up to a third less time (benchmarks/README.md). But memory gets
    fragmented: the process may need up to twice as much. Do not call this if the CPU is split into several devices
    (`w2jax.micro_batches`): they would wait for each other when they allocate. The function changes nothing if malloc
    is not glibc's, or if it uses huge pages.
    """
    libc = glibc()
    if libc is None or HUGE_PAGES in os.environ.get("GLIBC_TUNABLES", ""):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 2**26)
    # Otherwise each XLA thread gets a separate heap of at most 64 MiB, and glibc returns such heaps to the kernel
    # whatever the threshold is. glibc reads this setting once, when a second thread first allocates.
    libc.mallopt(_M_ARENA_MAX, 1)


def glibc() -> ctypes.CDLL | None:
    """Return the C library of this process; None if it is not glibc."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
