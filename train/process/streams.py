"""Lets a program continue if a standard stream is closed or nobody reads it."""

import errno
import os
import sys
from typing import Any, TextIO, cast

from train.process.errors import RunStopped

# A closed pipe, as after `| head`, and a closed terminal.
_NO_READER = (errno.EPIPE, errno.EIO)


def open_closed_streams() -> None:
    """Opens /dev/null in place of each standard stream that is closed, as after `>&-`.

    Otherwise the next file that the program opens gets the number of the closed stream. What a library then prints to
    its stream, it would write into that file. Call this before the program opens any file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # Python found the stream closed at its start.
            file = os.open(os.devnull, os.O_RDWR)  # gets the smallest free number
            os.set_inheritable(file, True)  # for the restart with huge pages
            setattr(sys, name, os.fdopen(file, mode, closefd=False))


class LastingStream:
    """A text stream that a program can always write to. Text that nobody can read is lost without an error."""

    def __init__(self, stream: TextIO, discard: bool):
        """If the reader of `stream` is gone, all text is lost from then on.

        Any other error, such as a full disk, ends the program, because its output would be incomplete. With `discard`,
        such errors lose the text too, because a training run must not end when its log cannot be written.
        """
        self.stream, self._discard = stream, discard

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _lose(self, error: OSError) -> None:
        # The stream's buffer still contains text, and Python would raise the same error again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        if not self._discard and error.errno not in _NO_READER:
            raise RunStopped(f"cannot write the output: {error.strerror}") from error


def lasting(stream: TextIO, discard: bool = False) -> TextIO:
    """Returns a `LastingStream` with the type of a text stream. If `stream` is one, its own stream is used."""
    return cast(TextIO, LastingStream(stream.stream if isinstance(stream, LastingStream) else stream, discard))
