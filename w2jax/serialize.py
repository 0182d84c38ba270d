"""Convert Linen modules to JSON and back: their class and fields, for configs, run folders and weight files."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flax import linen as nn

import w2jax
from w2jax.image_spec import ImageSpec
from w2jax.module import field_names
from w2jax.text import nearest, shorten

# Class names in files written before version 0.1.0, and their names today.
_RENAMED = {"Encoder": "AAEEncoder", "Decoder": "AAEDecoder", "Discriminator": "AAEDiscriminator"}


@cache
def module_classes() -> dict[str, type[nn.Module]]:
    """Return all Linen module classes that the files of the package `w2jax` define, by name."""
    classes: dict[str, type[nn.Module]] = {}
    for info in pkgutil.iter_modules(w2jax.__path__):
        if info.ispkg:
            continue
        defined = vars(importlib.import_module(f"w2jax.{info.name}"))
        classes |= {
            name: value
            for name, value in defined.items()
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == defined["__name__"]
        }
    return classes


def module_class(name: Any) -> type[nn.Module]:
    """Return the Linen module class of `w2jax` with this name, which may be a name from before version 0.1.0.

    The name is only looked up among the classes of `w2jax`. A name from a file never imports other code.

    Raises:
        ValueError: no class has this name. The message suggests the most similar name.
    """
    classes = module_classes()
    known = _RENAMED.get(name, name) if isinstance(name, str) else None
    if known in classes:
        return classes[known]
    close = nearest(name[:100], classes) if isinstance(name, str) else []
    raise ValueError(
        f"the class of a module must be a Linen module of w2jax, got {name!r}"
        + (f"; did you mean {close[0]!r}?" if close else "")
    )


def with_fields(module: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """Return a copy of the module in which the fields in `values` have new values.

    Raises:
        ValueError: the module has no such field. The message suggests the most similar name.
    """
    check_field_names(type(module), values)
    return module.clone(**values)


def check_field_names(cls: type[nn.Module], names: Mapping[str, Any]) -> None:
    """Raise a ValueError if one of the names is not a field of the class."""
    known = field_names(cls)
    for name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            raise ValueError(f'{cls.__name__} has no field "{name}"{hint}')


def module_to_json(module: nn.Module) -> dict[str, Any]:
    """Return the class name and the fields of a module. Tuples stay tuples, and JSON writes them as arrays."""
    values = {name: getattr(module, name) for name in field_names(module)}
    return {"class": type(module).__name__} | {
        name: module_to_json(value) if isinstance(value, nn.Module) else value for name, value in values.items()
    }


def module_from_json(tree: Mapping[str, Any]) -> nn.Module:
    """Build the module that `module_to_json` described. Missing fields get their default values.

    Raises:
        ValueError: the class or a field is unknown, a value has the wrong type, or a field without default is missing.
    """
    cls = module_class(tree.get("class"))
    values = {name: value for name, value in tree.items() if name != "class"}
    unknown = values.keys() - set(field_names(cls))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(map(repr, sorted(unknown)))}")
    types = get_type_hints(cls)
    converted = {name: _field_value(f"{cls.__name__}.{name}", value, types[name]) for name, value in values.items()}
    try:
        return cls(**converted)
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"a field of {cls.__name__} is missing in its JSON description: {reason}") from error


def spec_from_json(tree: Mapping[str, Any]) -> ImageSpec:
    """Build the `ImageSpec` whose fields are in a JSON object. Missing fields get their default values.

    Raises:
        ValueError: a field is unknown or missing, or has a wrong value.
    """
    types = get_type_hints(ImageSpec)
    names = [field.name for field in fields(ImageSpec)]
    required = [field.name for field in fields(ImageSpec) if field.default is MISSING]
    wrong = [name for name in tree if name not in names] + [name for name in required if name not in tree]
    if wrong:
        raise ValueError(
            f"the description of images must have {' and '.join(required)}, and may have {', '.join(names)}, got "
            f"{shorten(', '.join(tree))}"
        )
    return ImageSpec(**{name: _field_value(name, value, types[name]) for name, value in tree.items()})


def _field_value(field: str, value: Any, expected: Any) -> Any:
    """Convert a JSON value to a field of type `expected`; raise a ValueError if its type is wrong."""
    if isinstance(value, Mapping) and _module_type(value) in (expected, *get_args(expected)):
        return module_from_json(value)
    value = tuple(value) if isinstance(value, list) else value
    if not _is(value, expected):
        raise ValueError(f"{field} must be {getattr(expected, '__name__', expected)}, got {value!r}")
    types = (expected, *get_args(expected))
    return float(value) if type(value) is int and float in types and int not in types else value


def _module_type(tree: Mapping[str, Any]) -> type[nn.Module] | None:
    """Return the class that a JSON description names, or None if the class is unknown."""
    try:
        return module_class(tree.get("class"))
    except ValueError:
        return None


def _is(value: Any, expected: Any) -> bool:
    arguments = get_args(expected)
    if get_origin(expected) is Literal:
        return isinstance(value, str) and value in arguments
    if get_origin(expected) in (Union, UnionType):
        return any(_is(value, argument) for argument in arguments)
    if get_origin(expected) is tuple:
        types = arguments[:1] * len(value) if isinstance(value, tuple) and arguments[-1] is ... else arguments
        return isinstance(value, tuple) and len(value) == len(types) and all(map(_is, value, types))
    if expected is float:
        return type(value) in (int, float) and abs(value) < 1e30
    return type(value) is expected and (expected is not int or 0 <= value < 2**31)  # type(): True is not an int
