"""The two ways in which a program ends early, each told to the user in one line and without a traceback."""


class UserError(Exception):
    """The user's mistake: what was wanted, what was got, what to do. Exit status 2."""


class RunStopped(Exception):
    """A run that cannot go on for a reason that is not a mistake in its command. Exit status 1."""
