"""Handles the signals that end a program: immediately, or in training after the current step."""

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


def raise_on_signals() -> None:
    """Makes each of the signals raise Interrupted. A signal that is ignored, as under nohup, stays ignored."""
    for number in _not_ignored():
        signal.signal(number, _raise_interrupted)
    sys.unraisablehook = partial(_resend_if_swallowed, sys.unraisablehook)


def _raise_interrupted(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def _resend_if_swallowed(next_hook: Callable[[Any], object], failure: Any) -> None:
    """Sends a signal again if its exception was raised in a callback, where Python ignores exceptions.

    JAX's garbage collector hook is such a callback.
    """
    if isinstance(failure.exc_value, Interrupted):
        main = threading.main_thread().ident
        threading.Timer(0.02, signal.pthread_kill, (main, failure.exc_value.number)).start()
    else:
        next_hook(failure)


def _not_ignored() -> list[signal.Signals]:
    """Returns the signals that are not ignored. Outside the main thread Python allows no handlers, so returns []."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


class DeferredSignals:
    """A context that delays signals until the loop calls `after`, between two steps.

    A second signal raises Interrupted immediately. With several processes, a SIGTERM to one of them stops all of them
    after the same step. JAX's handler does this, so it is not replaced.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._deferring = False

    def __enter__(self) -> "DeferredSignals":
        import jax  # Late import, as in `after`: programs that only read files also handle signals, but need no JAX.

        handled = [number for number in _not_ignored() if jax.process_count() == 1 or number != signal.SIGTERM]
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        self._deferring = jax.process_count() == 1
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number is not None or not self._deferring:
            raise Interrupted(number)
        self._number = number

    def after(self, step: int, count: int) -> int | None:
        """Returns the signal that ends the run after `step`, the last of a call's `count` steps; None if none came."""
        import jax

        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # Every step is a sync point, because the processes must agree on one step.
            reached = [multihost_utils.reached_preemption_sync_point(s) for s in range(step - count + 1, step + 1)]
            return signal.SIGTERM if any(reached) else None
        return self._number

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """A context in which signals, also delayed ones, raise Interrupted immediately. Use it to only read state."""
        deferring, self._deferring = self._deferring, False
        try:
            if self._number is not None:
                raise Interrupted(self._number)
            yield
        finally:
            self._deferring = deferring
