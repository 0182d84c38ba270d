"""The three exceptions that end a program early. Each prints one line and no traceback."""

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UserError(Exception):
    """An error in the command or its files. The message says what is wrong and what to do. Exit status 2."""


class RunStopped(Exception):
    """A run cannot continue, although its command is correct. Exit status 1."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the program. Exit status 128 + its number: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int, message: str = ""):
        """`number` is the number of the signal. `message` says what was saved."""
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"{name}. {message}" if message else name)
        self.number = number


@contextmanager
def as_user_error(flags: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turns a ValueError of the model or optax into a UserError, because options or images caused it.

    The error of a model names its fields. `flags` maps the name of a field to the option that sets it, such as
    patch_size to --model.patch-size. A name without an underscore may be a plain word, so it counts only as the first
    word of the message.
    """
    try:
        yield
    except ValueError as error:
        message = str(error).splitlines()[0]
        for name, flag in (flags or {}).items():
            message = re.sub(rf"\b{name}\b" if "_" in name else rf"^{name}\b", flag, message)
        raise UserError(message) from error
