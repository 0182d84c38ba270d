"""The user's home: the folder of cached files, and paths that begin with "~"."""

import os
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from train.process.errors import UserError

Options = TypeVar("Options")


def user_cache() -> Path | None:
    """Returns `$XDG_CACHE_HOME/w2jax` or `~/.cache/w2jax`; None if the user has no home, as in some containers."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "w2jax"
    except RuntimeError:
        return None


def with_homes(options: Options) -> Options:
    """Returns a dataclass of options in which each path that begins with "~" begins with that user's home.

    A shell expands "~" only at the beginning of a word, so not in `--run.dir=~/x`.

    Raises:
        UserError: if there is no such home.
    """
    return _expanded(options)


def _expanded(value: Any) -> Any:
    if isinstance(value, str | Path):
        return type(value)(_home(str(value))) if str(value).startswith("~") else value
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(_expanded, value))
    is_model = hasattr(value, "apply")  # A Linen module is a dataclass too, but has no paths.
    if is_dataclass(value) and not isinstance(value, type) and not is_model:
        return replace(value, **{field.name: _expanded(getattr(value, field.name)) for field in fields(value)})
    return value


def _home(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise UserError(
            f"a path that begins with ~ must name a user with a home folder, got {path}. Write the absolute path"
        ) from None
