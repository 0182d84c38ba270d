"""Tyro's framed error messages as one line in the project's form: `X must be Y, got Z. Do W.`"""

import re
from collections.abc import Callable

_TYPES = {"None": "None", "INT": "a whole number", "FLOAT": "a number", "STR": "a text", "INT INT": "two whole numbers"}


def plain_message(box: str) -> str:
    """The message of a framed error that tyro printed."""
    lines = [line.removeprefix("│").removesuffix("│").rstrip() for line in box.splitlines()]
    lines = [line for line in lines if line.strip() and line[0] not in "╭╰"]
    # A rule ends the message. The part after the rule can suggest the nearest option, at an indentation of 5 spaces.
    rule = next((number for number, line in enumerate(lines) if line.strip()[0] == "─"), len(lines))
    message = " ".join(line.strip() for line in lines[:rule])
    if missing := re.fullmatch(r"Missing from (python -m \S+(?: \w+)?).*?: .*", message):
        return f"{' and '.join(_indented(lines[:rule]))} must be given. See {missing[1]} --help"
    if unknown := re.match(r"Unrecognized options: (-[^,]*)", message):
        near = [name.split()[0] for name in _indented(lines[rule:]) if name.startswith("--")]
        hint = f'Did you mean "{near[0]}"?' if near else "See --help"
        return f'there is no option "{unknown[1]}". {hint}'
    for pattern, plain in _MESSAGES.items():
        if match := re.fullmatch(pattern, message):
            return plain(*match.groups())
    return message


def _indented(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if re.match(r" {5}\S", line)]


def _invalid(option: str, types: str, values: str) -> str:
    """The error of an option of a union of types, such as "{None}|{INT INT}"."""
    names = [name.strip("{}") for name in types.split("|")]
    return f"{option} must be {' or '.join(_TYPES.get(name, name) for name in names)}, got {values or 'no value'}"


_MESSAGES: dict[str, Callable[..., str]] = {
    r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)": "{} must be a whole number, got {}".format,
    r"Error parsing (\S+): could not convert string to float: (.*)": "{} must be a number, got {}".format,
    r"Error parsing (\S+): no type matching (.+) could be instantiated from \[(.*?)\]\..*": _invalid,
    r"Missing value for argument '(\S+)'\..*": "{} must have a value, got none".format,
    r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)\.": (
        lambda value, option, choices: f"{option} must be one of {choices}, got {value}"
    ),
    r"Unrecognized options: ([^,]*).*": 'unexpected argument "{}". See --help'.format,
}
