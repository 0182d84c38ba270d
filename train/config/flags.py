"""Flags with a value, as in `--augment.flip=True`: the form in which W&B's sweeps pass options."""

from collections.abc import Collection, Sequence
from typing import get_type_hints

from train.process.errors import UserError


def flags_of(options: type) -> list[str]:
    """The flags of a dataclass of options, such as --skip-corrupt for the field `skip_corrupt`."""
    return [f"--{name.replace('_', '-')}" for name, kind in get_type_hints(options).items() if kind is bool]


def negation(flag: str) -> str:
    """The flag that sets an option to False: --augment.no-flip for --augment.flip."""
    group, dot, last = flag.removeprefix("--").rpartition(".")
    return f"--{group}{dot}no-{last}"


def without_values(arguments: Sequence[str], flags: Collection[str], has_negations: bool) -> list[str]:
    """Arguments in which each `FLAG=True` is replaced by FLAG and each `FLAG=False` by its negation.

    Args:
        arguments: a command line. The value may be in any case; the flag may have underscores.
        flags: the flags, with dashes.
        has_negations: whether each flag has a negation. If not, all are False by default, and `FLAG=False` also
            cancels an earlier FLAG.

    Raises:
        UserError: the value of a flag is neither True nor False.
    """
    words: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        flag = name.replace("_", "-")
        if not equals or flag not in flags:
            words.append(argument)
        elif value.lower() == "true":
            words.append(flag)
        elif value.lower() != "false":
            raise UserError(f"{flag} must be True or False, got {value or 'no value'}")
        elif has_negations:
            words.append(negation(flag))
        else:
            words = [word for word in words if word.replace("_", "-") != flag]
    return words
