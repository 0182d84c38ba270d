"""Terminal output of a run: a progress bar on a terminal, plain lines in a pipe, a table at the end."""

import sys

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from train.process.streams import lasting
from w2jax.text import printable


class RunConsole:
    """Prints the progress of a run of `steps` steps. Earlier processes completed `done` of them."""

    def __init__(self, steps: int, done: int, speaks: bool = True):
        """If `speaks` is False, nothing is printed. Only the main process prints.

        If the terminal or pipe is closed, the run continues without output.
        """
        self._steps = steps
        # A notebook is treated as a pipe. Otherwise rich would wrap each line in HTML.
        plain = {"force_jupyter": False, "force_terminal": sys.stdout.isatty()}
        output = lasting(sys.stdout, discard=True)
        self._console = Console(highlight=False, soft_wrap=True, quiet=not speaks, file=output, **plain)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (speaks and self._console.is_terminal),
        )
        self._bar = self._progress.add_task("training", total=steps, completed=done, speed="")

    def __enter__(self) -> "RunConsole":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Prints a message."""
        self._console.print(printable(text), markup=False)
        self._console.file.flush()

    def step(self, step: int) -> None:
        """Moves the progress bar to this step."""
        self._progress.update(self._bar, completed=step)

    def line(self, step: int, split: str, metrics: dict[str, float], note: str = "") -> None:
        """Prints the metrics after `step`, with a note."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"step {step:>{len(str(self._steps))}}/{self._steps}  {split:<5}  {values}  {note}".rstrip())

    def speed(self, examples_per_second: float) -> None:
        """Shows the throughput beside the progress bar."""
        self._progress.update(self._bar, speed=f"{examples_per_second:,.0f} examples/s")

    def table(self, rows: dict[str, str]) -> None:
        """Prints the table at the end of the run, a row for each name."""
        table = Table(show_header=False)
        for name, value in rows.items():
            table.add_row(escape(printable(name)), escape(printable(value)))
        self._console.print(table)
