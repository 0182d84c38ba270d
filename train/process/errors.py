"""The three ways in which a program ends early. Each prints one line and no traceback."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# A full disk, an exceeded quota, a read-only or a failing file system.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class UserError(Exception):
    """A mistake in the command or its files: what was expected, what was found, what to do. Exit status 2."""


class RunStopped(Exception):
    """A run that cannot continue although its command is right. Exit status 1."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the program. Exit status 128 + its number: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int, message: str = ""):
        """`number` is the signal's; `message` says what was saved."""
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"{name}: {message}" if message else name)
        self.number = number


@contextmanager
def as_user_error() -> Iterator[None]:
    """Turns a ValueError of the model or optax into a UserError: options that do not fit each other or the images."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error).splitlines()[0]) from error


def cannot_write(error: OSError) -> bool:
    """Whether an error comes from the disk, and not from a mistake in the program."""
    return error.errno in _CANNOT_WRITE
