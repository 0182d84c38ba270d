"""Configs as flat tables, option by option. Imports no JAX."""

from collections.abc import Collection, Mapping
from typing import Any


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a config's JSON tree by their dotted option names; the class of a module is not an option."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    options = {key: value for key, value in tree.items() if key != "class"}
    return {name: leaf for key, value in options.items() for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def differing(one: Mapping[str, Any], other: Mapping[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """The sorted names whose values differ between two flat configs, or that only one of them has."""
    names = sorted((one.keys() | other.keys()) - set(ignored))
    return [name for name in names if one.get(name, "absent") != other.get(name, "absent")]
