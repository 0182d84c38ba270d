"""The options of a config by dotted name, with their type, text, range and rules (`configs/options.py`)."""

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from configs.options import Range, Rule


@dataclass(frozen=True)
class Option:
    """One option of a config."""

    name: str
    """The dotted name, such as run.batch_size."""
    value: Any
    type: Any
    """The type of the field, without the metadata of `Annotated`."""
    text: str
    """The docstring below its field, or the comment on the line of a model's field."""
    range: Range | None
    rules: frozenset[Rule]
    """The option's own rules and the rules of its groups."""

    @property
    def flag(self) -> str:
        """The option on the command line, such as --run.batch-size."""
        return f"--{self.name.replace('_', '-')}"


def options_of(config: Any) -> dict[str, Option]:
    """All options of a config by their dotted names, in the order of the fields."""
    return {option.name: option for option in _options(config, "", frozenset())}


def names_with(config: Any, rule: Rule) -> set[str]:
    """The names of the options that have this rule."""
    return {name for name, option in options_of(config).items() if rule in option.rules}


def model_flags(config: Any) -> dict[str, str]:
    """The option of each field of the model, such as patch_size: --model.patch-size. A name must be unique."""
    options = [option for option in options_of(config).values() if option.name.startswith("model.")]
    names = [option.name.rpartition(".")[2] for option in options]
    return {name: option.flag for name, option in zip(names, options, strict=True) if names.count(name) == 1}


def changeable_groups(config: Any) -> tuple[str, ...]:
    """The groups whose options may all change when a run resumes, such as "mesh."."""
    annotated = get_type_hints(type(config), include_extras=True)
    return tuple(f"{name}." for name, kind in annotated.items() if Rule.CHANGEABLE_ON_RESUME in extras_of(kind))


def _options(config: Any, prefix: str, inherited: frozenset[Rule]) -> Iterator[Option]:
    annotated, plain = get_type_hints(type(config), include_extras=True), get_type_hints(type(config))
    texts = texts_of(type(config))
    for field in fields(config):
        if field.name in ("parent", "name") and hasattr(config, "clone"):  # Every Linen module has these fields.
            continue
        value, extras = getattr(config, field.name), list(extras_of(annotated[field.name]))
        rules = inherited | {extra for extra in extras if isinstance(extra, Rule)}
        if is_dataclass(value) and not isinstance(value, type):
            yield from _options(value, f"{prefix}{field.name}.", rules)
            continue
        range_ = next((extra for extra in extras if isinstance(extra, Range)), None)
        text = texts.get(field.name, "")
        yield Option(prefix + field.name, value, plain[field.name], text, range_, rules)


def extras_of(annotation: Any) -> Iterator[Any]:
    """The metadata of `Annotated` in a type and in the members of a union."""
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
        annotation = annotation.__origin__
    for argument in get_args(annotation):
        yield from extras_of(argument)


@cache
def texts_of(config_type: type) -> dict[str, str]:
    """The docstrings below the fields of a class and of its base classes, or the comments on their lines."""
    texts = {}
    for cls in (cls for cls in reversed(config_type.__mro__) if is_dataclass(cls)):
        source = inspect.getsource(sys.modules[cls.__module__])
        module, lines = ast.parse(source), source.splitlines()
        classes = {node.name: node.body for node in module.body if isinstance(node, ast.ClassDef)}
        for field, text in pairwise(classes.get(cls.__name__, [])):
            if not isinstance(field, ast.AnnAssign):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
            elif comment := lines[(field.end_lineno or field.lineno) - 1].partition("  # ")[2]:
                texts[ast.unparse(field.target)] = comment
    return texts
