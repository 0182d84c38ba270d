"""The three ways in which a program ends early, each reported in one line and without a traceback."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The user's mistake: what was wanted, what was got, what to do. Exit status 2."""


class RunStopped(Exception):
    """A run that cannot go on for a reason that is not a mistake in its command. Exit status 1."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end. Exit status 128 + its number: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int, where: str = ""):
        """`number` is the signal's; `where` says what is left of the run."""
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"{name}: {where}" if where else name)
        self.number = number


@contextmanager
def as_user_error() -> Iterator[None]:
    """Makes a UserError of the model's or optax's ValueError: options that do not fit each other or the images."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error).splitlines()[0]) from error


# A full disk, an exceeded quota, a read-only or a failing file system.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def cannot_write(error: OSError) -> bool:
    """Whether an error says that the disk takes no more, rather than that the program is wrong."""
    return error.errno in _CANNOT_WRITE
