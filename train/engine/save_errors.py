"""Makes orbax's handlers report an error of a save at once.

With several processes, orbax raises an error only after all processes have reached the same point. But the others wait
for files that the failed process cannot write. They would wait until a timeout of 20 minutes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import orbax.checkpoint as ocp

Report = Callable[[BaseException], None]
Handler = TypeVar("Handler", ocp.PyTreeCheckpointHandler, ocp.JsonCheckpointHandler)


class _Future:
    """A part of a save in progress. `result` waits for it."""

    def __init__(self, future: Any, report: Report):
        self._future, self._report = future, report

    def result(self, timeout: float | None = None) -> Any:
        with _reported(self._report):
            return self._future.result(timeout)


def reporting(handler: Handler, report: Report) -> Handler:
    """Returns the handler, which from now on passes each error of a save to `report`, in a thread of orbax."""
    async_save, finalize = handler.async_save, handler.finalize

    async def save(*arguments: Any, **options: Any) -> list[Any]:
        return [_Future(future, report) for future in await async_save(*arguments, **options) or ()]

    def finish(directory: Any) -> None:
        with _reported(report):
            finalize(directory)

    # Orbax finds a handler's arguments by its class, so it would not accept a subclass.
    vars(handler).update(async_save=save, finalize=finish)
    return handler


@contextmanager
def _reported(report: Report) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        report(error)
        raise
