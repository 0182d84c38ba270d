"""The short help of `python -m train.TASK`: the presets, what most people change, and the names of all the rest."""

import ast
import importlib
import inspect
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from itertools import pairwise
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from configs.base import Config
from train.run.files import flattened
from train.run.folder import config_tree

# What most people change, as far as the task has it; the first sentence under the field explains it.
OFTEN = (
    *("labels", "num_labels", "init_from"),
    *("data.name", "data.dir"),
    *("run.steps", "run.batch_size", "run.seed", "run.dir", "run.tensorboard", "run.wandb"),
    *("optim.learning_rate", "optim.ema"),
)
_WIDTH, _COLUMN = 80, 27


def short_help(task: str, presets: Mapping[str, Config], preset: str) -> str:
    """The help of a task, for a terminal of 80 columns; its values are those of the preset."""
    config = presets[preset]
    values = flattened(config_tree(config))
    shown = [name for name in OFTEN if name in values]
    return "\n".join(
        [
            f"usage: python -m train.{task} [PRESET] [--OPTION VALUE ...]",
            "",
            *textwrap.wrap(str(type(config).__doc__), _WIDTH),
            "",
            *_presets(presets, importlib.import_module(f"configs.{task}").ABOUT),
            "",
            f"options, with their values in {preset}:",
            *(line for name in shown for line in _option(config, name, values[name])),
            "",
            "more, which --help-all explains:",
            *_names([name for name in values if name not in shown]),
        ]
    )


def _presets(presets: Mapping[str, Config], about: Mapping[str, str]) -> list[str]:
    rows = [("PRESET", "data", "steps × batch", "about; time on 2 CPU cores")]
    for name, config in presets.items():
        length = f"{config.run.steps:,} × {config.run.batch_size:,}"
        rows.append((name + " (default)" * (name == "sample"), config.data.name, length, about[name]))
    names, data, lengths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [f"{name:{names}}  {of:{data}}  {length:>{lengths}}  {text}" for name, of, length, text in rows]


def _option(config: Any, name: str, value: Any) -> list[str]:
    *groups, last = name.split(".")
    for group in groups:
        config = getattr(config, group)
    option = f"  --{name.replace('_', '-')}{_value(value, get_type_hints(type(config))[last])}"
    sentence = _texts(type(config))[last].split(". ")[0].rstrip(".")
    lines = textwrap.wrap(sentence, _WIDTH - _COLUMN, break_on_hyphens=False)
    first = [f"{option:{_COLUMN}}{lines.pop(0)}"] if len(option) < _COLUMN else [option]
    return first + [" " * _COLUMN + line for line in lines]


def _value(value: Any, kind: Any) -> str:
    """What stands behind an option, with a space before it: its value, or what kind of value it takes."""
    if isinstance(value, bool):
        return ""
    if value is not None:
        return " " + shlex.join(map(str, value if isinstance(value, list) else [value]))
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (option for option in get_args(kind) if option is not type(None))
    return "".join(f" {getattr(part, '__name__', 'VALUE').upper()}" for part in get_args(kind) or (kind,))


def _names(names: Sequence[str]) -> list[str]:
    """The options by their groups; groups of the same options as one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        group, _, last = name.replace("_", "-").rpartition(".")
        groups.setdefault(f"--{group}." if group else "", []).append(last)
    alike: dict[tuple[str, ...], list[str]] = {}
    for group, options in groups.items():
        alike.setdefault(tuple(options), []).append(f"{group}*")
    told = [
        f"{' '.join(of)} {', '.join(options)}" if of != ["*"] else ", ".join(f"--{option}" for option in options)
        for options, of in alike.items()
    ]
    wrapper = textwrap.TextWrapper(_WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return [line for text in told for line in wrapper.wrap(text)]


@cache
def _texts(config_type: type) -> dict[str, str]:
    """The texts under the fields of a config's class and of those that it extends."""
    texts = {}
    for cls in (cls for cls in reversed(config_type.__mro__) if is_dataclass(cls)):
        module = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
        body = next(node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return texts
