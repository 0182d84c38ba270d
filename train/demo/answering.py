"""How the page calls the model: one request at a time, and a problem is a text on the page."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from train.demo import html
from train.process.errors import UserError

AT_ONCE: dict[str, Any] = {
    "trigger_mode": "always_last",  # While the model answers, only the latest change waits.
    "show_progress": "hidden",
    "concurrency_id": "model",  # All events of the page share one place in the queue.
    "concurrency_limit": 1,
    "api_visibility": "private",
}
"""The options of every event of the page in Gradio."""


def answering(function: Callable[..., str]) -> Callable[..., str]:
    """Returns a function that shows a UserError of `function` as its answer."""

    @wraps(function)
    def answer(*arguments: Any) -> str:
        try:
            return function(*arguments)
        except UserError as error:
            return html.problem(error)

    return answer


def file_problem(error: UserError, path: Path) -> str:
    """The error for a dropped file, without the path at which Gradio stores it."""
    return str(error).removeprefix(f"{path} ")
