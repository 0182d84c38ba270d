"""Converts configs to the JSON of `config.json` and back."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from flax import linen as nn

from train.config.flat import flatten
from w2jax.serialize import module_from_json, module_to_json

AnyConfig = TypeVar("AnyConfig")


def config_to_tree(config: Any) -> Any:
    """A config as JSON. Dataclasses and Linen modules become objects, modules with a class; tuples become arrays."""
    if is_dataclass(config):
        if isinstance(config, nn.Module):
            return config_to_tree(module_to_json(config))
        return {field.name: config_to_tree(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, dict):
        return {name: config_to_tree(value) for name, value in config.items()}
    return list(config) if isinstance(config, tuple) else config


def flat_config(config: Any) -> dict[str, Any]:
    """The values of a config's options by dotted name."""
    return flatten(config_to_tree(config))


def default_tree(config: Any) -> dict[str, Any]:
    """The default values of a config's fields as a tree. Fields without a default are left out."""
    tree = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if is_dataclass(value) and not isinstance(value, type):
            tree[field.name] = default_tree(value)
        elif default is not MISSING:
            tree[field.name] = config_to_tree(default)
    return tree


def config_from_tree(config_type: type[AnyConfig], tree: Mapping[str, Any]) -> AnyConfig:
    """Inverse of `config_to_tree`. A missing field gets its default.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: `tree` does not describe such a config.
    """
    return _build(config_type, tree)


def _build(kind: Any, value: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if isinstance(kind, type) and is_dataclass(kind):
        if issubclass(kind, nn.Module):
            return module_from_json(value)
        hints = get_type_hints(kind)
        return kind(**{name: _build(hints[name], part) for name, part in value.items()})
    return tuple(value) if isinstance(value, list) else value  # JSON has no tuples, and options are never lists.
