"""Settings of glibc's malloc, from which XLA has its buffers on CPU."""

import ctypes
import sys

# Names from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Lets glibc hand freed memory to the next allocation instead of to the kernel; to be called before JAX starts.

    XLA on CPU allocates its temporaries anew each step; mapping and clearing their pages again takes a third of a
    step (benchmarks/README.md). Does nothing where malloc is not glibc's.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 2**26)
    # Else XLA's threads get heaps of their own, of at most 64 MiB, which go back to the kernel whatever the threshold.
    # glibc reads this once, when a second thread first allocates.
    libc.mallopt(_M_ARENA_MAX, 1)
