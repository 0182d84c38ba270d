"""Ends a program quietly if Ctrl-C comes while Python still imports its modules. Imports no other module of w2jax."""

import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


def exit_on_interrupt(package: str) -> None:
    """Make Ctrl-C end the process with status 130 and no traceback, until the program sets its own handler.

    The imports of a package take a second. Call this before them. It does nothing unless Python runs `-m PACKAGE` or a
    module of the package in this way, so importing the package in another program changes nothing.
    """
    if not runs_module(package):
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as it is under nohup
        signal.signal(signal.SIGINT, _exit)
    if hasattr(signal, "pthread_sigmask"):  # A restart blocks the signal (train/process/malloc.py).
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def runs_module(package: str) -> bool:
    """Return whether Python is importing the package to run it, or one of its modules, with -m."""
    # Until Python has found the module, argv[0] is "-m". The module's name comes before the arguments, as a separate
    # word or joined, such as -mtrain.vit.
    if sys.argv[:1] != ["-m"]:
        return False
    return f"{sys.orig_argv[-len(sys.argv)].removeprefix('-m')}.".startswith(f"{package}.")


def run_main(main: Callable[[], int]) -> NoReturn:
    """Run a program's main function and exit with its status. Ctrl-C prints one line and gives the status 130."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # None if the program's output is closed.
        sys.stdout.reconfigure(errors="backslashreplace")  # Paths may have characters that the encoding lacks.
    try:
        status = main()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted by Ctrl-C", file=sys.stderr, flush=True)
        _exit(signal.SIGINT)
    sys.exit(status)


def _exit(number: int, frame: FrameType | None = None) -> NoReturn:
    os._exit(128 + number)  # An exception would be printed with a traceback, or be ignored in a callback.
