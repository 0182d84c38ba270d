"""Helpers for Linen modules: copy fields to a submodule, describe example inputs, check rates."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

Size = Callable[[str, int, int], int]
"""A function (parameter path, axis, default) → size of that axis, or the default if the parameter is unknown."""

Inputs = tuple[jax.ShapeDtypeStruct | None, ...]
"""Shapes and dtypes of the positional arguments of `__call__`. None: the argument is not passed."""

M = TypeVar("M", bound=nn.Module)


def field_names(module: nn.Module | type[nn.Module]) -> list[str]:
    """Return the names of a module's fields, without Flax's own fields `parent` and `name`."""
    return [field.name for field in fields(module) if field.name not in ("parent", "name")]


def submodule(cls: type[M], owner: nn.Module, **own: Any) -> M:
    """Create a module of class `cls` and copy the fields from `owner` that both classes have.

    If a block gets a new option, a model passes the option on as soon as it declares a field with that name.

    Args:
        cls: class of the new module.
        owner: module whose field values are copied, by name.
        **own: values for other fields, for `name` and `parent`, and for fields that must differ from the owner's.
    """
    shared = set(field_names(cls)) & set(field_names(owner)) - own.keys()
    return cls(**{name: getattr(owner, name) for name in shared}, **own)


def abstract(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """Describe an example input by its shape and dtype, without values."""
    return jax.ShapeDtypeStruct(shape, dtype)


def check_rates(**rates: float) -> None:
    """Raise a ValueError that names the first rate outside [0, 1)."""
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name} must be at least 0 and below 1, got {rate}")
