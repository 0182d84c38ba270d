"""The tables of the results, in Markdown. The terminal shows the same tables."""

from collections.abc import Mapping
from typing import Any

from benchmarks.accelerator.record import shown
from benchmarks.pages import aligned


def markdown(results: Mapping[str, Any]) -> str:
    """Returns the machine and one table for each part, from the content of the JSON file."""
    return "\n\n".join([machine(results["environment"]), *(of_part(*part) for part in results["parts"].items())])


def machine(environment: Mapping[str, Any]) -> str:
    """Returns one sentence about the machine."""
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items() if number)
    driver = "".join(f", driver {number}" for number in environment["driver"])
    cuda = "".join(f", CUDA {number}" for number in environment["cuda"])
    return f"{environment['count']} × {environment['kind']}{driver}{cuda}. {environment['date']}; {versions}."


def of_part(name: str, part: Mapping[str, Any]) -> str:
    """Returns the table of a part, with a column for each figure of its rows."""
    rows = part["rows"]
    columns = list(dict.fromkeys(column for row in rows for column in row["figures"]))
    lines = [[name, *columns, "status"]]
    for row in rows:
        status = row["status"] + (f": {row['reason']}" if row["reason"] else "")
        lines.append([row["row"], *(shown(row["figures"].get(column)) for column in columns), status])
    return aligned(lines)
