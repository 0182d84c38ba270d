"""Lists trainings, each with its state and its best metric: python -m train.runs [DIR ...]

- python -m train.runs                               # those below runs/
- python -m train.runs runs /mnt --sort metric       # the best first
- python -m train.runs --json                        # an object a line
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.config.cli import read_options, run_main
from train.process.errors import UserError
from train.run.files import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    METRICS,
    TIMING,
    format_duration,
    is_number,
    read_config_tree,
    read_lines,
)
from train.run.lock import holder
from w2jax.text import one_line

BEST = {"accuracy": max, "reconstruction": min}
"""What a run is judged by, the first that its evaluations have, and which is best; a test holds it against each Task's
`best` and `best_mode`, which this program does not ask as they would cost it the import of JAX."""

_MARKS = {CONFIG, METRICS, CHECKPOINTS}  # One of them makes a folder a run's.
_WRITTEN = (CONFIG, METRICS, TIMING, CHECKPOINTS)  # Making the page anew, or using the model, is no training.
_WIDE = 120  # columns of a terminal
_MAKE_ONE = "python -m train.vit tiny makes a run in runs/"


@dataclass(frozen=True)
class Run:
    """What is to be said of a run folder; None: it is not known."""

    path: str
    state: str
    """"finished", "running", "stopped", "not evaluated", "no checkpoint", or "damaged"."""
    note: str | None = None
    """Of one that is running, which process it is; of a damaged one, what is wrong."""
    task: str | None = None
    data: str | None = None
    step: int | None = None
    """How far it came: the last checkpoint, or of a run at work the last line."""
    steps: int | None = None
    metric: str | None = None
    best: float | None = None
    last: float | None = None
    written: float | None = None
    """When it last wrote, in seconds since 1970."""
    seconds: float | None = None
    """Wall time."""
    seed: int | None = None


def found(folder: Path) -> Iterator[Run]:
    """The runs in and below a folder, by name. Hidden folders are left out, and links are not followed."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as listed:
                entries = sorted(listed, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield Run(str(here), "damaged", f"cannot be read: {error.strerror}")
            continue
        if _MARKS & {entry.name for entry in entries}:
            yield read_run(here)
        else:
            below = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            waiting += [Path(entry.path) for entry in below if not entry.name.startswith(".")]


def read_run(folder: Path) -> Run:
    """The run in that folder, whatever lies there."""
    try:
        return _read_run(folder)
    except UserError as error:
        fault = str(error).replace(f"{folder}{os.sep}", "")
    except OSError as error:
        fault = f"{Path(error.filename or folder).name} cannot be read: {error.strerror}"
    return Run(str(folder), "damaged", fault)


def _read_run(folder: Path) -> Run:
    for name in (CONFIG, METRICS, TIMING, LOCK):  # To read a pipe would take for ever.
        if not (folder / name).is_file() and (name == CONFIG or (folder / name).exists()):
            raise UserError(f"{folder / name} is no file")
    config = read_config_tree(folder)
    model, data, run = (part if isinstance(part := config.get(name), dict) else {} for name in ("model", "data", "run"))
    task, steps, seed = config.get("task"), run.get("steps"), run.get("seed")
    if task is None or type(steps) is not int:
        raise UserError(f"{folder / CONFIG} is another program's: it names no model and steps of ours")
    lines, timing = read_lines(folder / METRICS), read_lines(folder / TIMING)
    saved = max(
        (int(path.name) for path in (folder / CHECKPOINTS).glob("*") if path.name.isdecimal() and path.is_dir()),
        default=None,
    )
    tests = [line for line in lines if line.get("split") == "test"]
    found = {name: [line[name] for line in tests if is_number(line.get(name))] for name in BEST}
    metric = next((name for name, scores in found.items() if scores), None)
    at_work = holder(folder / LOCK)
    if at_work is not None:
        state, step = "running", max([line["step"] for line in lines] + [saved or 0])
    elif tests and tests[-1]["step"] == steps:
        state, step = "finished", steps
    elif saved is None:
        state, step = "no checkpoint", 0
    else:
        state, step = "stopped" if saved < steps else "not evaluated", saved
    seconds = [line["seconds"] for line in timing if is_number(line.get("seconds"))]
    return Run(
        path=str(folder),
        state=state,
        note=at_work,
        task=task,
        data=data["name"] if isinstance(data.get("name"), str) else None,
        step=step,
        steps=steps,
        metric=metric,
        best=None if metric is None else BEST[metric](found[metric]),
        last=None if metric is None else found[metric][-1],
        written=max((folder / name).stat().st_mtime for name in _WRITTEN if (folder / name).exists()),
        seconds=seconds[-1] if seconds else None,
        seed=seed if type(seed) is int else None,
    )


def in_order(runs: Sequence[Run], by: Literal["name", "time", "metric"]) -> list[Run]:
    """By path, the last written first, or the best of each metric first; those that lack it come last."""
    runs = sorted(runs, key=lambda run: run.path)
    if by == "time":
        return sorted(runs, key=lambda run: -(run.written or 0))
    if by == "metric":
        names = [*BEST, None]
        return sorted(runs, key=lambda run: (names.index(run.metric), _badness(run)))
    return runs


def _badness(run: Run) -> float:
    if run.metric is None or run.best is None:
        return 0.0
    return -run.best if BEST[run.metric] is max else run.best


@dataclass(frozen=True)
class Options:
    """Lists trainings, each with its state and its best metric."""

    dirs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[DIR ...]")] = (Path("runs"),)
    """Folders to look in and below."""
    sort: Literal["name", "time", "metric"] = "name"
    """By name, the last written first, or the best first."""
    json: bool = False
    """Print one JSON object a line instead of a table."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(Options, "train.runs", arguments, __doc__)
    for folder in options.dirs:
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "does not exist"
            raise UserError(f"wanted a folder of runs, but {folder} {what}; {_MAKE_ONE}")
    runs = in_order([run for folder in dict.fromkeys(options.dirs) for run in found(folder)], options.sort)
    if not runs:
        where = ", ".join(map(str, options.dirs))
        print(one_line(f"no run in {where}; {_MAKE_ONE}"), file=sys.stderr)
    elif options.json:
        try:
            print("\n".join(json.dumps(asdict(run)) for run in runs), flush=True)
        except BrokenPipeError:  # Who reads, such as head, has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        show(runs)


def show(runs: Sequence[Run]) -> None:
    """Prints a table, with fewer columns on a narrow terminal, and below it what is to be said of single runs."""
    from rich.console import Console  # Late: machines need none of it.
    from rich.table import Table

    # In a pipe it is as wide as it has to be.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)
    columns = ("run", "task", "state", "steps", "best", "wrote")
    if console.width >= _WIDE:
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
