"""Modules as JSON: the class and the fields of a Linen module, as configs, run folders and weight files keep them."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flax import linen as nn

import w2jax
from w2jax.module import field_names
from w2jax.text import nearest

# Classes by the names that files written before 0.1.0 have for them.
_RENAMED = {"Encoder": "AAEEncoder", "Decoder": "AAEDecoder", "Discriminator": "AAEDiscriminator"}


@cache
def module_classes() -> dict[str, type[nn.Module]]:
    """Every Linen module class that a file of the package `w2jax` defines, by name."""
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
    """The Linen module class of `w2jax` with that name, or with its name of today.

    The name is only looked up among `w2jax`'s own classes: nothing that a file says is imported.

    Raises:
        ValueError: there is none; the nearest name is in the message.
    """
    classes = module_classes()
    known = _RENAMED.get(name, name) if isinstance(name, str) else None
    if known in classes:
        return classes[known]
    close = nearest(name[:100], classes) if isinstance(name, str) else []
    raise ValueError(
        f"a module's class must be one of w2jax, got {name!r}" + (f"; the nearest is {close[0]!r}" if close else "")
    )


def with_fields(module: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """The module with other values of some fields.

    Raises:
        ValueError: it has no such field; the nearest name is in the message.
    """
    check_field_names(type(module), values)
    return module.clone(**values)


def check_field_names(cls: type[nn.Module], names: Mapping[str, Any]) -> None:
    """ValueError if a name is not that of a field of the class."""
    known = field_names(cls)
    for name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            raise ValueError(f'{cls.__name__} has no field "{name}"{hint}')


def module_to_json(module: nn.Module) -> dict[str, Any]:
    """The class and the fields of a module; tuples stay tuples, which JSON writes as arrays."""
    values = {name: getattr(module, name) for name in field_names(module)}
    return {"class": type(module).__name__} | {
        name: module_to_json(value) if isinstance(value, nn.Module) else value for name, value in values.items()
    }


def module_from_json(tree: Mapping[str, Any]) -> nn.Module:
    """The module that `module_to_json` described; missing fields get their defaults.

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
        raise ValueError(f"the description of {cls.__name__} lacks a field: {str(error).splitlines()[0]}") from error


def _field_value(field: str, value: Any, expected: Any) -> Any:
    """A JSON value as a field of type `expected`; ValueError if it does not fit."""
    if isinstance(value, Mapping) and _module_type(value) in (expected, *get_args(expected)):
        return module_from_json(value)
    value = tuple(value) if isinstance(value, list) else value
    if not _is(value, expected):
        raise ValueError(f"{field} must be {getattr(expected, '__name__', expected)}, got {value!r}")
    types = (expected, *get_args(expected))
    return float(value) if type(value) is int and float in types and int not in types else value


def _module_type(tree: Mapping[str, Any]) -> type[nn.Module] | None:
    """The class that a description names, None if there is none."""
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
    return type(value) is expected and (expected is not int or 0 <= value < 2**31)  # True is not a number
