"""The three exceptions that end a program early. Each prints one line and no traceback."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# Full disk, exceeded quota, file too large, read-only file system, I/O error.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


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
def as_user_error() -> Iterator[None]:
    """Turns a ValueError of the model or optax into a UserError, because options or images caused it."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error).splitlines()[0]) from error


def cannot_write(error: OSError) -> bool:
    """Returns whether an error comes from the disk, not from a bug in the program."""
    return error.errno in _CANNOT_WRITE
