"""Settings of the process that a training program wants before it starts."""

import ctypes
import logging
import sys

# Names from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Lets glibc hand freed memory to the next allocation instead of to the kernel.

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


def quiet_libraries() -> None:
    """Keeps the libraries' notices out of the training log; their errors still show."""
    for name in ("absl", "jax", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)
