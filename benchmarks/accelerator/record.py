"""The rows of a part: each is measured, printed and written to a file at once, so that a crash loses no earlier row."""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from w2jax.text import one_line, shorten

TIME_BUDGET = "time budget"

Figures = Mapping[str, Any]


class Skipped(Exception):
    """A row cannot be measured here. The message is the reason."""


class Wrong(Exception):
    """A result is wrong."""


@dataclass(frozen=True)
class Setting:
    """What all parts know about the machine and the command."""

    platform: str
    """JAX's name of the platform: "cpu", "gpu" or "tpu"."""
    kind: str
    """JAX's name of the device, such as "NVIDIA H200"."""
    count: int
    """Number of devices."""
    quick: bool
    torch: bool
    """Whether torch is installed."""
    torch_cuda: bool
    """Whether torch finds an NVIDIA GPU."""
    is_nvidia: bool
    """Whether JAX uses NVIDIA GPUs."""

    @property
    def small(self) -> bool:
        """Whether the sizes must suit a CPU."""
        return self.platform == "cpu"


@dataclass
class Row:
    """One result."""

    row: str
    status: str
    """ok, failed or skipped."""
    reason: str = ""
    """One line: the error, or why the row was skipped."""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    traceback: str = ""


def failure(name: str, error: BaseException, seconds: float = 0.0) -> Row:
    """Returns the row of an error."""
    text = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
    return Row(
        name, "failed", shorten(one_line(text), 300), seconds, traceback="".join(traceback.format_exception(error))
    )


class Recorder:
    """Measures the rows of a part within its time budget."""

    def __init__(self, part: str, path: Path, seconds: float):
        """`seconds` is the time budget: after it no row starts, except the first."""
        self.part, self.path, self._until, self._is_first = part, path, time.monotonic() + seconds, True

    def row(self, name: str, measure: Callable[[], Figures]) -> Row:
        """Runs `measure` and records its figures, its error, or why it was skipped."""
        start = time.monotonic()
        if start >= self._until and not self._is_first:
            return self.write(Row(name, "skipped", TIME_BUDGET))
        self._is_first = False
        try:
            figures = measure()
        except Skipped as reason:
            row = Row(name, "skipped", one_line(str(reason)))
        except Exception as error:
            row = failure(name, error, time.monotonic() - start)
        else:
            row = Row(
                name,
                "ok",
                seconds=time.monotonic() - start,
                figures={name: x for name, x in figures.items() if x is not None},
            )
        return self.write(row)

    def skip(self, name: str, reason: str) -> None:
        self.write(Row(name, "skipped", reason))

    def write(self, row: Row) -> Row:
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        what = row.reason or "  ".join(f"{name} {shown(value)}" for name, value in row.figures.items())
        print(f"{self.part:<15} {row.row:<34} {row.status:<8}{row.seconds:6.1f} s  {what}", flush=True)
        return row


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of a file; [] if it does not exist. A process that was killed may leave half a line."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def shown(value: Any) -> str:
    """Formats a figure for a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and 1000 <= abs(value) < 1e6):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
