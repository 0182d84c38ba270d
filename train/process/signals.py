"""The signals by which a user or a system ends a program: at once, or where steps would be lost, after the step."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from train.process.errors import Interrupted

# A closed terminal sends SIGHUP; schedulers, containers and preempted machines send SIGTERM.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _at_once(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def raise_on_signals() -> None:
    """Makes each of the signals raise Interrupted, from now on; those that are ignored, as under nohup, stay so."""
    for number in _heeded():
        signal.signal(number, _at_once)
    sys.unraisablehook = partial(_send_again, sys.unraisablehook)


def _send_again(otherwise: Callable[[Any], object], failure: Any) -> None:
    """Python ignores what is raised in a callback, as JAX has one of the garbage collector: the signal comes again."""
    if isinstance(failure.exc_value, Interrupted):
        main = threading.main_thread().ident
        threading.Timer(0.02, signal.pthread_kill, (main, failure.exc_value.number)).start()
    else:
        otherwise(failure)


def _heeded() -> list[signal.Signals]:
    """The signals that are not ignored; none outside of the main thread, where Python lets nobody handle any."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


class DeferredSignals:
    """Holds the signals back while it is entered, for a loop that asks between two steps whether there was one.

    A second signal raises Interrupted at once. Among several processes SIGTERM to any of them stops all of them after
    the same step; this is JAX's own doing, which leaves no other handler of it in place.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._held = False

    def __enter__(self) -> "DeferredSignals":
        import jax  # Late, as in `after`: programs that only look at files handle signals too, and do without it.

        handled = [number for number in _heeded() if jax.process_count() == 1 or number != signal.SIGTERM]
        self._before = {number: signal.signal(number, self._handle) for number in handled}
        self._held = jax.process_count() == 1
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number is not None or not self._held:
            raise Interrupted(number)
        self._number = number

    def after(self, step: int, count: int) -> int | None:
        """The signal that ends the run after this step, the last of the `count` steps of a call; None: it goes on."""
        import jax

        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # Each step is asked for, as the processes agree on one of them.
            reached = [multihost_utils.reached_preemption_sync_point(s) for s in range(step - count + 1, step + 1)]
            return signal.SIGTERM if any(reached) else None
        return self._number

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Inside, a signal raises Interrupted at once, also one that is held back; for what only reads the state."""
        held, self._held = self._held, False
        try:
            if self._number is not None:
                raise Interrupted(self._number)
            yield
        finally:
            self._held = held
