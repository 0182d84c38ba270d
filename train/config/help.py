"""The short help of `python -m train.TASK`: examples, presets, common options, and the names of all other options."""

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from configs.base import Preset
from configs.options import Rule
from train.config.options import Option, options_of
from train.config.tasks import task_examples

_WIDTH, _COLUMN = 80, 27


def short_help(task: str, presets: Mapping[str, Preset], preset: str) -> str:
    """The help of a task, at most 80 columns wide. The values shown are those of the preset."""
    config = presets[preset].config
    options = options_of(config)
    # The task's own options come first. Options of nested groups, such as the AAE's phases, would fill the screen.
    common = (option for option in options.values() if _is_common(option))
    shown = sorted(common, key=lambda option: "." in option.name)
    return "\n".join(
        [
            f"usage: python -m train.{task} [PRESET] [--OPTION VALUE ...]",
            *task_examples(task),
            "",
            *textwrap.wrap(str(type(config).__doc__), _WIDTH),
            "",
            *_presets(presets),
            "",
            f"common options, with their values in preset {preset}:",
            *(line for option in shown for line in _option(option)),
            "",
            "more options (see --help-all):",
            *_names([name for name, option in options.items() if option not in shown]),
        ]
    )


def _is_common(option: Option) -> bool:
    # The model of a photo's classifier needs the number of classes. A field of a model has no rules.
    is_common = Rule.COMMON in option.rules or option.name == "model.num_classes"
    return is_common and option.name.count(".") < 2


def _presets(presets: Mapping[str, Preset]) -> list[str]:
    rows = [("PRESET", "data", "steps × batch", "description*")]
    for name, preset in presets.items():
        config, about = preset.config, preset.about
        run = config.run
        length = f"{run.steps:,}" if run.epochs is None else f"{run.epochs:g} epochs"
        length += f" × {run.batch_size:,}"
        rows.append((name + " (default)" * (name == "sample"), config.data.name, length, about))
    names, data, lengths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    table = [f"{name:{names}}  {of:{data}}  {length:>{lengths}}  {about}" for name, of, length, about in rows]
    return [*table, "* Results on the test set, and times on 2 CPU cores (docs/results.md)."]


def _option(option: Option) -> list[str]:
    start = f"  {option.flag}{_value(option.value, option.type)}"
    sentence = option.text.split(". ")[0].rstrip(".")
    lines = textwrap.wrap(sentence, _WIDTH - _COLUMN, break_on_hyphens=False)
    first = [f"{start:{_COLUMN}}{lines.pop(0)}"] if len(start) < _COLUMN else [start]
    return first + [" " * _COLUMN + line for line in lines]


def _value(value: Any, kind: Any) -> str:
    """The text after an option, starting with a space: its value, or the type of value that it accepts."""
    if isinstance(value, bool):
        return ""
    if value is not None:
        return " " + shlex.join(map(str, value if isinstance(value, list | tuple) else [value]))
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (option for option in get_args(kind) if option is not type(None))
    return "".join(f" {getattr(part, '__name__', 'VALUE').upper()}" for part in get_args(kind) or (kind,))


def _names(names: Sequence[str]) -> list[str]:
    """The options by group. Groups with the same options share one entry."""
    groups: dict[str, list[str]] = {}
    for name in names:
        group, _, last = name.replace("_", "-").rpartition(".")
        groups.setdefault(f"--{group}." if group else "", []).append(last)
    alike: dict[tuple[str, ...], list[str]] = {}
    for group, options in groups.items():
        alike.setdefault(tuple(options), []).append(f"{group}*")
    listed = [
        f"{' '.join(of)} {', '.join(options)}" if of != ["*"] else ", ".join(f"--{option}" for option in options)
        for options, of in alike.items()
    ]
    wrapper = textwrap.TextWrapper(_WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return [line for text in listed for line in wrapper.wrap(text)]
