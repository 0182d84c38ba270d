"""Helpers for messages: text on one line, shortened text, sizes with units, and the most similar known name."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def one_line(text: str) -> str:
    """Return `text` on one line: line breaks and unprintable characters become escape sequences."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable(text: str) -> str:
    """Return `text` with its lines, but without control characters: a file could change the terminal with them."""
    return "\n".join(map(one_line, text.split("\n")))


def shorten(text: str, limit: int = 1000) -> str:
    """Return `text` without its middle if it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def first_few(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first five names."""
    return separator.join(names[:5]) + (" and others" if len(names) > 5 else "")


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or the plural, such as "1 tensor" or "2,000 tensors"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.5) -> list[str]:
    """Return up to `count` known names with a spelling similar to `name`, the most similar first."""
    return get_close_matches(name, list(known), n=count, cutoff=cutoff)


def format_bytes(count: int | float) -> str:
    """Format a number of bytes with three or four digits and a binary unit: 1536 becomes "1.50 KiB"."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{count:.0f} B" if size == count else f"{size:.{max(0, 3 - len(str(int(size))))}f} {units[0]}"
