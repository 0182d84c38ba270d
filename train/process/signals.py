"""Handles the signals that end a program: immediately, or in training after the current step."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import CodeType, FrameType
from typing import Any

from train.process.errors import Interrupted

# A closed terminal sends SIGHUP; schedulers, containers and preempted machines send SIGTERM.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

is_ending = False
"""Whether the program is ending, so that its handlers raise nothing."""

_hooks: set[CodeType] = set()
"""The functions that `add_unraisable_hook` got."""

_SECOND = b"Saving. Send the signal again to stop without saving.\n"


def raise_on_signals() -> None:
    """Makes each of the signals raise Interrupted. A signal that is ignored, as under nohup, stays ignored."""
    global is_ending
    is_ending = False
    for number in _not_ignored():
        signal.signal(number, _raise_interrupted)
    add_unraisable_hook(_print_no_interrupt)


def add_unraisable_hook(function: Callable[[Callable[[Any], object], Any], None]) -> None:
    """Makes Python call `function(next_hook, failure)` for an exception that it cannot raise.

    An exception of the function itself would print a traceback, so no signal raises Interrupted within it.
    """
    _hooks.add(function.__code__)
    sys.unraisablehook = partial(function, sys.unraisablehook)


def set_handlers(handler: signal.Handlers) -> None:
    """Gives the signals one of the system's two handlers, SIG_IGN or SIG_DFL, when a program ends."""
    for number in _not_ignored():
        signal.signal(number, handler)


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    if is_ending:
        return
    while frame is not None:
        if frame.f_code in _hooks:
            return _resend(number)
        frame = frame.f_back
    raise _Raised(number)


class _Raised(Interrupted):
    """The exception that a handler raises. It sends its signal again if Python or a library ignores it.

    A handler can run within a callback whose exceptions are ignored: JAX's hook of the garbage collector, a library's
    audit hook, or a `__del__`. The exception is then freed, and no code has handled it.
    """

    is_handled = False

    def __del__(self) -> None:
        if not self.is_handled and not is_ending:
            _resend(self.number)


def _print_no_interrupt(next_hook: Callable[[Any], object], failure: Any) -> None:
    if not isinstance(failure.exc_value, Interrupted):
        next_hook(failure)


def _resend(number: int) -> None:
    threading.Timer(0.02, _send, (number,)).start()


def _send(number: int) -> None:
    """Sends a signal to the main thread, if the signal would still reach one of the handlers of this module."""
    handler = signal.getsignal(number)
    if not is_ending and getattr(handler, "__func__", handler) in (_raise_interrupted, DeferredSignals._handle):
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def set_handled(error: BaseException | None) -> None:
    """Marks an exception, and those during whose handling it was raised, as handled: their signals are not sent again.

    Otherwise each signal is sent again when its exception is freed.
    """
    while error is not None:
        if isinstance(error, _Raised):
            error.is_handled = True
        error = error.__context__


def _not_ignored() -> list[signal.Signals]:
    """Returns the signals that are not ignored. Outside the main thread Python allows no handlers, so returns []."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


class DeferredSignals:
    """A context in which a training run handles its signals.

    At first each signal raises Interrupted immediately. Within `deferred`, the first signal waits until the loop calls
    `after`, between two steps. The second one only prints how to stop without saving. The third one raises Interrupted
    immediately.

    With several processes, nothing is deferred: Ctrl-C and SIGHUP raise Interrupted immediately, and JAX handles
    SIGTERM, so that all processes stop after the same step.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._count = 0
        self._deferring = False

    def __enter__(self) -> "DeferredSignals":
        import jax  # Late import, as in `after`: programs that only read files also handle signals, but need no JAX.

        handled = [number for number in _not_ignored() if jax.process_count() == 1 or number != signal.SIGTERM]
        self._can_defer = jax.process_count() == 1
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        set_handled(error)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferring:
            return _raise_interrupted(number, frame)
        self._count += 1
        self._number = self._number or number
        if self._count == 2:
            with suppress(OSError):
                os.write(2, _SECOND)  # sys.stderr raises an error if the signal interrupts another write to it.
        if self.is_urgent:
            _raise_interrupted(number, frame)

    @property
    def is_urgent(self) -> bool:
        """Whether a third signal came, so that the run must end without waiting for a save."""
        return self._count > 2

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context that defers signals. At its end a deferred signal raises Interrupted.

        If an exception ends the context, signals stay deferred until the end of the run, so that it can save and close
        its files.
        """
        self._deferring = self._can_defer
        yield
        self._deferring = self._number is not None
        if self._number is not None:
            raise Interrupted(self._number)

    def defer_after(self, first: Interrupted) -> None:
        """Defers signals from now on. The signal that raised `first` counts as the first."""
        set_handled(first)
        self._number, self._count = first.number, max(self._count, 1)
        self._deferring = self._can_defer

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
        """A context in which signals, also deferred ones, raise Interrupted immediately. Use it to only read state.

        Afterwards they are deferred again.
        """
        deferring, self._deferring = self._deferring, False
        try:
            if self._number is not None:
                raise Interrupted(self._number)
            yield
        except Interrupted as error:
            self.defer_after(error)
            raise
        finally:
            self._deferring = deferring
