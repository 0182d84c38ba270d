"""Lists training runs with their state and their best metric: python -m train.runs [DIR ...]

- python -m train.runs                               # lists the runs in runs/
- python -m train.runs runs /mnt --sort metric       # the best runs first
- python -m train.runs --task vit --state finished   # only these runs
- python -m train.runs --json                        # one JSON object per line
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from train.config.cli import read_options, run_main
from train.process.errors import UserError
from train.run.files import CHECKPOINTS, CONFIG, METRICS, format_duration
from train.run.record import RunState, read_record
from w2jax.text import one_line

_RUN_FILES = {CONFIG, METRICS, CHECKPOINTS}  # A folder that contains one of these is a run folder.
_WIDE_TERMINAL = 120  # columns
STATES = (*get_args(RunState), "damaged")
_HINT = "Run python -m train.vit tiny to make a run in runs/"


@dataclass(frozen=True)
class ListedRun:
    """One run of the list, as printed by `--json`. A value that is not known is None."""

    path: str
    state: str
    """One of STATES."""
    note: str | None = None
    """The process of a running run, or the error of a damaged run."""
    task: str | None = None
    data: str | None = None
    step: int | None = None
    steps: int | None = None
    metric: str | None = None
    best_mode: str | None = None
    best: float | None = None
    last: float | None = None
    written: float | None = None
    """Time of the last write to the run, in seconds since 1970."""
    seconds: float | None = None
    """Wall time of the run in seconds."""
    seed: int | None = None


def find_runs(folder: Path) -> Iterator[ListedRun]:
    """Finds the runs in a folder and its subfolders, in the order of their names. Skips hidden folders and links."""
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as iterator:
                entries = sorted(iterator, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield ListedRun(str(current), "damaged", f"cannot be read: {error.strerror}")
            continue
        if _RUN_FILES & {entry.name for entry in entries}:
            yield list_run(current)
        else:
            subfolders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            pending += [Path(entry.path) for entry in subfolders if not entry.name.startswith(".")]


def list_run(folder: Path) -> ListedRun:
    """Describes the run in `folder`. Its state is "damaged" if its files cannot be read."""
    try:
        run = read_record(folder)
        if run.task is None or run.total_steps is None:
            raise UserError(f"{CONFIG} is from a different program: it has no task or no number of steps")
    except UserError as error:
        return ListedRun(str(folder), "damaged", str(error).replace(f"{folder}{os.sep}", ""))
    return ListedRun(
        path=str(folder),
        state=run.state,
        note=run.process,
        task=run.task,
        data=run.dataset,
        step=run.step,
        steps=run.total_steps,
        metric=run.task_info.best_metric if run.scores else None,
        best_mode=run.task_info.best_mode if run.scores else None,
        best=run.best_score,
        last=next(reversed(run.scores.values()), None),
        written=run.written,
        seconds=run.seconds,
        seed=run.seed,
    )


def sort_runs(runs: Sequence[ListedRun], by: Literal["name", "time", "metric"]) -> list[ListedRun]:
    """Sorts runs by path, by time (latest first) or by metric (best first; runs without a metric come last)."""
    runs = sorted(runs, key=lambda run: run.path)
    if by == "time":
        return sorted(runs, key=lambda run: -(run.written or 0))
    if by == "metric":
        return sorted(runs, key=lambda run: (run.metric is None, run.metric or "", _cost(run)))
    return runs


def _cost(run: ListedRun) -> float:
    """The best score, negated if a high score is better."""
    return (run.best or 0.0) * (-1 if run.best_mode == "max" else 1)


@dataclass(frozen=True)
class Options:
    """Lists training runs with their state and their best metric."""

    dirs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[DIR ...]")] = (Path("runs"),)
    """Folders to search for runs, including their subfolders."""
    sort: Literal["name", "time", "metric"] = "name"
    """Order of the list. name: by path; time: latest first; metric: best first."""
    task: Annotated[str | None, tyro.conf.arg(metavar="TASK", help_behavior_hint="")] = None
    """List only runs of this task, such as vit."""
    state: Annotated[str | None, tyro.conf.arg(metavar="STATE", help_behavior_hint="")] = None
    """List only runs in this state, as the table shows it, such as finished or "stopped early"."""
    json: bool = False
    """Print one JSON object per line for each run instead of a table."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(Options, "train.runs", arguments, __doc__)
    for folder in options.dirs:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"DIR must be a folder with runs, but {folder} {what}. {_HINT}")
    if options.state not in (None, *STATES):
        raise UserError(f"--state must be one of {', '.join(STATES)}, got {options.state}. Choose one of these")
    found = [run for folder in dict.fromkeys(options.dirs) for run in find_runs(folder)]
    wanted = [run for run in found if options.task in (None, run.task) and options.state in (None, run.state)]
    runs = sort_runs(wanted, options.sort)
    where = ", ".join(map(str, options.dirs))
    if not found:
        print(one_line(f"there is no run in {where}. {_HINT}"), file=sys.stderr)
    elif not runs:
        tasks = ", ".join(sorted({run.task for run in found if run.task is not None}))
        print(
            one_line(f"no run in {where} has this task and state. Tasks: {tasks}. Omit --task or --state"),
            file=sys.stderr,
        )
    elif options.json:
        print("\n".join(json.dumps(asdict(run)) for run in runs))
    else:
        print_table(runs)


def print_table(runs: Sequence[ListedRun]) -> None:
    """Prints a table, and below the table the notes on single runs. A narrow terminal gets fewer columns."""
    from rich.console import Console  # Imported late: --json does not need it.
    from rich.table import Table

    # Do not wrap lines in a pipe.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)
    columns = ("run", "task", "state", "steps", "best", "wrote")
    if console.width >= _WIDE_TERMINAL:
        columns = ("run", "task", "state", "steps", "metric", "best", "last", "wrote", "took", "seed")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in columns:
        is_text = name in ("run", "task", "state", "metric")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=name != "run")
    now = time.time()
    for run in runs:
        cells = {
            "run": run.path,
            "task": run.task,
            "state": run.state,
            "metric": run.metric,
            "steps": None if run.steps is None else f"{run.step:,}/{run.steps:,}",
            "best": None if run.best is None else f"{run.best:.4f}",
            "last": None if run.last is None else f"{run.last:.4f}",
            "wrote": None if run.written is None else _ago(now - run.written),
            "took": None if run.seconds is None else format_duration(run.seconds),
            "seed": None if run.seed is None else str(run.seed),
        }
        table.add_row(*(one_line(cells[name] or "") for name in columns))
    console.print(table, soft_wrap=False)
    for run in runs:
        if run.note is not None:
            console.print(one_line(f"{run.path}: {run.state}: {run.note}"))


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


if __name__ == "__main__":
    run_main(main)
