"""Compiles the exact train step of a config for a TPU that need not be there, and reports what it would ask of it.

    python -m train.dryrun TASK [PRESET] --topology v5e:2x2 [--slices N] [--hbm GIB] [--search] [--json FILE]
                           [--options of the task]

TASK is vit, lstm, mha or aae; PRESET and its options are those of `python -m train.TASK`. No data are needed.
Exit status: 0 it fits, 1 it does not, 2 a mistake in the command. `python -m train.dryrun TASK --help` has the options.
"""

import os

# Before jax is imported: libtpu would wait for a TPU virtual machine to answer.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import tyro
from rich.console import Console

from configs.base import Config
from train.config.checks import batch_unit, check_batch, check_ranges
from train.config.cli import one_line_errors, parse, run_main
from train.config.tasks import check_task
from train.data import Source, abstract_source
from train.dryrun.report import Report, measure, show
from train.dryrun.target import FORMS, GIB, Target, open_target
from train.engine.sharding import batch_parts, make_mesh
from train.process.errors import UserError, as_user_error
from train.process.setup import silence_libraries
from train.task import Task
from w2jax.text import format_bytes

TRIES = 12  # Compilations of a search; each takes a minute or more.


@dataclass(frozen=True)
class Options:
    """Compiles the train step of a config for devices that need not be there, and reports what it asks of them."""

    topology: str
    """What to compile for, such as v5e:2x2; or cpu:8 (simulated devices), or gpu."""
    slices: int = 1
    """Slices of that topology, joined by the data-centre network."""
    hbm: float | None = None
    """GiB that the step may take of each chip; by default what the compiler lets it."""
    search: bool = False
    """Find the largest batch that fits."""
    json: str | None = None
    """File for the report as JSON; - is standard output, and the table goes to standard error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    task, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if task in ("-h", "--help"):
        print(__doc__)
        return 0
    check_task(task)
    with one_line_errors():
        options, rest = tyro.cli(
            Options,
            args=rest,
            prog=f"python -m train.dryrun {task} [PRESET]",
            description=f"{Options.__doc__}\n\nThe others: python -m train.{task} --help.\n\nTopologies: {FORMS}.",
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            return_unknown_args=True,
        )
    if options.hbm is not None and options.hbm <= 0:
        raise UserError(f"--hbm must be above 0 GiB, got {options.hbm:g}")
    if options.json not in (None, "-") and not Path(options.json).parent.is_dir():
        raise UserError(f"--json must be a file in a folder that exists, got {options.json}")
    silence_libraries()
    if options.topology != "gpu":
        jax.config.update("jax_platforms", "cpu")  # The compiler needs no TPU; one that is there stays free.
    config, make_task = read_task(task, rest)
    check_ranges(config)
    target = open_target(options.topology, options.slices)
    limit = options.hbm * GIB if options.hbm is not None else target.chip and target.chip.hbm
    console = Console(highlight=False, soft_wrap=True, stderr=options.json == "-")
    run = DryRun(config, make_task, target, limit, console)
    report = run.search() if options.search else run.once(config.run.batch_size)
    report = {"task": task, "preset": preset_of(rest), **report}
    show(report, console)
    if options.json is not None:
        text = json.dumps(report, indent=2)
        print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")
    return 0 if report["fits"] else 1


def read_task(name: str, arguments: Sequence[str]) -> tuple[Config, Callable[..., Task]]:
    """The config of `python -m train.NAME ARGUMENTS` and how its task is made."""
    module = importlib.import_module(f"train.{name}")
    resolve = {"resolve": module.resolve} if hasattr(module, "resolve") else {}
    return parse(name, module.PRESETS, arguments, **resolve), module.make_task


def preset_of(arguments: Sequence[str]) -> str:
    return arguments[0] if arguments and not arguments[0].startswith("-") else "sample"


class DryRun:
    """Compilations of one config that differ in the size of the batch."""

    def __init__(
        self,
        config: Config,
        make_task: Callable[..., Task],
        target: Target,
        limit: float | None,
        console: Console,
    ):
        """Raises UserError if mesh, batch and data do not fit each other."""
        self.config, self.make_task, self.target, self.limit, self.console = config, make_task, target, limit, console
        self.mesh = make_mesh(config.mesh, target.devices)
        check_batch(config, batch_parts(self.mesh))
        self.source: Source = abstract_source(config.data, config.data.train_split)

    def once(self, batch_size: int) -> Report:
        """Compiles for that batch."""
        config = replace(self.config, run=replace(self.config.run, batch_size=batch_size))
        patience = " (a minute or more)" if self.target.chip else ""
        self.console.print(f"compiling for {self.target.name}, batch {batch_size:,} ...{patience}", markup=False)
        with as_user_error():
            return measure(config, self.make_task, self.source, self.mesh, self.target, self.limit)

    def search(self) -> Report:
        """The report of the largest batch that was seen to fit, or if none was, of the smallest that was tried.

        Batches are multiples of the devices and parts that they are cut over.

        Raises:
            UserError: if nothing limits the memory.
        """
        if self.limit is None:
            raise UserError(f"--search: the memory of {self.target.name} is not known; give it by --hbm, in GiB")
        unit, reports = batch_unit(self.config, batch_parts(self.mesh)), {}

        def fits(units: int) -> bool:
            report = reports[units] = self.once(units * unit)
            total = report["memory"]["total"]
            taken = "" if total is None else f", {format_bytes(total)} of {format_bytes(report['memory']['limit'])}"
            verdict = "fits" if report["fits"] else "is too large"
            self.console.print(f"batch {units * unit:,} {verdict}{taken}", markup=False)
            return report["fits"]

        low, high = largest_that_fits(fits, self.config.run.batch_size // unit, TRIES)
        found = {"largest_that_fits": low * unit, "smallest_that_does_not": None if high is None else high * unit}
        return {**reports[low or high], "search": found}


def largest_that_fits(fits: Callable[[int], bool], start: int, tries: int) -> tuple[int, int | None]:
    """(the largest number seen to fit or 0, the smallest seen not to or None), by at most so many calls of `fits`.

    Doubles `start` until it does not fit, then halves the distance until that is a sixteenth.
    """
    low, high, number = 0, None, start
    for _ in range(tries):
        if fits(number):
            low = number
        else:
            high = number
        if high is not None and high - low <= max(low // 16, 1):
            break
        number = 2 * low if high is None else (low + high) // 2
    return low, high


if __name__ == "__main__":
    run_main(main)
