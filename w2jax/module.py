"""What our modules agree on beyond Flax: fields that a submodule shares with its owner, and example inputs."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

Size = Callable[[str, int, int], int]
"""(path of a parameter, axis, default) → the size of that axis where the parameter is known, else the default."""

Inputs = tuple[jax.ShapeDtypeStruct | None, ...]
"""Shapes of a call's positional arguments; None stands for an argument that is left out."""

M = TypeVar("M", bound=nn.Module)


def field_names(module: nn.Module | type[nn.Module]) -> list[str]:
    """A module's own fields, without `parent` and `name`, which every Linen module has."""
    return [field.name for field in fields(module) if field.name not in ("parent", "name")]


def submodule(cls: type[M], owner: nn.Module, **own: Any) -> M:
    """A module of class `cls` that takes every field that `owner` has too, by name, from it; `own` sets the others.

    So a new option of a block reaches it from each model that declares a field of that name. `own` goes first: it also
    holds `name`, `parent`, and fields that are to differ from the owner's.
    """
    shared = set(field_names(cls)) & set(field_names(owner)) - own.keys()
    return cls(**{name: getattr(owner, name) for name in shared}, **own)


def abstract(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An example input of this shape, without values."""
    return jax.ShapeDtypeStruct(shape, dtype)


def check_rates(**rates: float) -> None:
    """Raises a ValueError for the first rate outside [0, 1), by its name."""
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name} must be at least 0 and below 1, got {rate}")
