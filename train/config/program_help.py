"""The help of a program with a few options, such as `python -m train.predict --help`, at most 80 columns wide."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from train.config.options import extras_of, texts_of

_WIDTH, _COLUMN = 80, 27


def program_help(kind: type, program: str, description: str | None) -> str:
    """The help of `python -m PROGRAM`, whose options are the dataclass `kind`.

    Args:
        kind: the dataclass.
        program: the program's name and the arguments before its options.
        description: paragraphs. Lines that are indented or begin with a dash stay as they are. None: the docstring of
            `kind`.
    """
    annotated, plain, texts = get_type_hints(kind, include_extras=True), get_type_hints(kind), texts_of(kind)
    arguments, options = [], [("-h, --help", "Show this help and exit.")]
    # Options that several programs have follow those of this program.
    for field in sorted(fields(kind), key=lambda field: field.kw_only and field.name not in kind.__annotations__):
        extras = list(extras_of(annotated[field.name]))
        of_tyro = [extra for extra in extras if hasattr(extra, "metavar")]
        given = next((extra.metavar for extra in of_tyro if extra.metavar is not None), None)
        value = "" if plain[field.name] is bool else given or _metavar(plain[field.name])
        text = " ".join(filter(None, [texts.get(field.name, ""), _default(field)]))
        if any(extra is get_args(Positional[int])[1] for extra in extras):
            arguments.append((value, text))
            continue
        name = next((extra.name for extra in of_tyro if extra.name is not None), field.name)
        aliases = [alias for extra in of_tyro for alias in extra.aliases or ()]
        flags = ", ".join([f"--{name.replace('_', '-')}", *aliases])
        options.append((f"{flags} {value}".rstrip(), text))
    usage = " ".join([f"usage: python -m {program}", *(name for name, _ in arguments), "[OPTIONS]"])
    # The first sentence of a module's docstring has the command, which the usage has too.
    about = re.sub(r"^([^\n]*): python -m .*", r"\1.", description or kind.__doc__ or "")
    parts = [[usage], [*_paragraphs(about)]]
    parts += [["arguments:", *_rows(arguments)]] if arguments else []
    return "\n\n".join("\n".join(part) for part in [*parts, ["options:", *_rows(options)]])


def _metavar(kind: Any) -> str:
    """What an option of this type accepts, such as INT or half|clip."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (option for option in get_args(kind) if option is not type(None))
    return "|".join(get_args(kind)) if get_origin(kind) is Literal else kind.__name__.upper()


def _default(field: Field) -> str:
    """The default of an option. If there is no value, the option's text says what happens without it."""
    if field.default is MISSING:
        return "(required)"
    value = field.default
    is_obvious = value is None or value is False or value == ()
    return "" if is_obvious else f"(default: {' '.join(map(str, value)) if isinstance(value, tuple) else value})"


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.strip().split("\n\n")):
        yield from [""] if number else []
        keep = paragraph.startswith((" ", "- "))
        yield from paragraph.rstrip().split("\n") if keep else textwrap.wrap(paragraph, _WIDTH)


def _rows(rows: list[tuple[str, str]]) -> Iterator[str]:
    for name, text in rows:
        lines = textwrap.wrap(text, _WIDTH - _COLUMN, break_on_hyphens=False)
        start = f"  {name}"
        yield f"{start:{_COLUMN}}{lines.pop(0)}" if len(start) < _COLUMN else start
        yield from (" " * _COLUMN + line for line in lines)
