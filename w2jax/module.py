"""Helpers for Linen modules: copy fields to a submodule, describe example inputs, check sizes, rates and meshes."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

Dtype = Literal["float32", "bfloat16", "float64"]
"""Name of a data type of activations and matrix products. "float64" needs JAX's option jax_enable_x64."""

Size = Callable[[str, int, int], int]
"""A function (parameter path, axis, default) → size of that axis, or the default if the parameter is unknown."""

MAX_LAYERS = 10_000
"""Largest depth of a model. Tracing more layers would take hours, and no published model has more."""

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


def compute_dtype(name: str) -> np.dtype:
    """Return the data type with this name.

    Raises:
        ValueError: the name is "float64", but JAX would compute in float32.
    """
    dtype = jnp.dtype(name)
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "dtype must be float32 or narrower while jax_enable_x64 is off, got float64. "
            'Call jax.config.update("jax_enable_x64", True) first'
        )
    return dtype


def at_least_float32(x: Array) -> Array:
    """Convert narrower floats to float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_sizes(at_least: int = 1, at_most: int = 2**30, **sizes: int | float | None) -> None:
    """Raise a ValueError that names the first size outside its range, or the first NaN. None is no size.

    The default is small enough that the sum of two sizes is an int32.
    """
    for name, size in sizes.items():
        if size is not None and not size >= at_least:
            raise ValueError(f"{name} must be at least {at_least}, got {size}")
        if size is not None and size > at_most:
            raise ValueError(f"{name} must be at most {at_most}, got {size}")


def check_mesh(x: Array) -> None:
    """Raise a ValueError if x is sharded over an axis of type Explicit, which JAX cannot propagate through a model."""
    if any(jax.typeof(x).sharding.spec):  # axes of type Auto are not part of the type
        raise ValueError(
            f"the input must not be sharded over mesh axes of type Explicit, got {jax.typeof(x)}. Create the mesh with "
            "axis_types=(jax.sharding.AxisType.Auto,), one for each axis, or wrap the call in jax.sharding.auto_axes "
            "(see 'On many devices' in docs/python.md)"
        )


def check_rates(**rates: float) -> None:
    """Raise a ValueError that names the first rate outside [0, 1)."""
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name} must be at least 0 and below 1, got {rate}")
