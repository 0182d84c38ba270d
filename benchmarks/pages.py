"""Tables in Markdown, and the marks between which programs write them into the pages."""

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first line has the names of the columns."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    widths[-1] = 3  # The last cell may be long, so it is not padded.
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(f"| {line} |" for line in [padded[0], " | ".join("-" * width for width in widths), *padded[1:]])


def with_table(text: str, name: str, table: str) -> str:
    """Returns the text of a page with a new table between the marks of `name`.

    Raises:
        ValueError: the page does not have these marks exactly once.
    """
    start, end = f"<!-- start of the table {name} -->\n", f"<!-- end of the table {name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the page must have the marks of the table {name} once. Add {start.strip()} and {end}")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n{table}\n\n{end}{rest.partition(end)[2]}"
