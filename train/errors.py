"""The two ways in which a program ends early, each told to the user in one line and without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The user's mistake: what was wanted, what was got, what to do. Exit status 2."""


class RunStopped(Exception):
    """A run that cannot go on for a reason that is not a mistake in its command. Exit status 1."""


@contextmanager
def misfits() -> Iterator[None]:
    """Makes a UserError of the model's or optax's ValueError: options that do not fit each other or the images."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error).splitlines()[0]) from error
