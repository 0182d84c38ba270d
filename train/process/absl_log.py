"""Silences warnings in the log of absl, which grain and orbax use."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_absl_warnings() -> Iterator[None]:
    """A context in which absl's log shows only errors."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
