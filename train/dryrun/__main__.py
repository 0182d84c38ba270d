"""Compiles the training step of a config for a TPU. Reports the memory that the
step needs and the least time that it takes. No TPU is required.

    python -m train.dryrun vit imagenet_b16 --topology v5e:8x8
    python -m train.dryrun lstm --topology cpu:2

The form of the command:

    python -m train.dryrun TASK [PRESET] --topology v5e:2x2 [--slices N]
        [--hbm GIB] [--search] [--json FILE] [--options of the task]

TASK is vit, lstm, mha or aae. PRESET and the options of the task are those of
`python -m train.TASK`. No dataset is needed. For the options, run
`python -m train.dryrun TASK --help`.

Exit status: 0 if the step fits in memory, 1 if it does not fit, 2 if the
command has an error.
"""

import os

# Set before jax is imported. Otherwise libtpu waits for the metadata server of a TPU virtual machine.
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
from train.config.cli import help_if_requested, one_line_errors, parse, preset_of, run_main
from train.config.flags import flags_of, without_values
from train.config.options import model_flags
from train.config.tasks import check_task, task_presets
from train.data import Source, abstract_source
from train.dryrun.report import Report, measure, show
from train.dryrun.target import FORMS, GIB, Target, open_target
from train.engine.setup import with_steps
from train.engine.sharding import batch_parts, make_mesh
from train.process.errors import UserError, as_user_error
from train.process.setup import silence_libraries
from train.run.atomic import write_atomic
from train.task import Task
from w2jax.text import format_bytes

TRIES = 12  # Most compilations in a search; each takes a minute or more.


@dataclass(frozen=True)
class Options:
    """Compiles the training step of a config. Reports the memory that it needs and the least time that it takes."""

    topology: str
    """Devices to compile for: a TPU topology such as v5e:2x2, cpu:8 (8 simulated devices), or gpu."""
    slices: int = 1
    """Number of TPU slices of this topology, connected by the data-center network."""
    hbm: float | None = None
    """Memory in GiB that the step may use on each chip. Default: the limit of the TPU compiler."""
    search: bool = False
    """Search for the largest batch size that fits in memory."""
    json: str | None = None
    """Write the report to this file as JSON. Pass - for standard output; the table then goes to standard error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    task, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if task in ("-h", "--help"):
        print(__doc__)
        return 0
    check_task(task)
    help_if_requested(
        Options,
        f"train.dryrun {task} [PRESET]",
        rest,
        f"{Options.__doc__}\n\nOptions of the task: see python -m train.{task} --help.\n\nTopologies: {FORMS}.",
    )
    with one_line_errors():
        options, rest = tyro.cli(
            Options,
            args=without_values(rest, flags_of(Options), False),
            prog=f"python -m train.dryrun {task} [PRESET]",
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            return_unknown_args=True,
        )
    if options.hbm is not None and options.hbm <= 0:
        raise UserError(f"--hbm must be above 0 (GiB), got {options.hbm:g}")
    if options.json not in (None, "-") and not Path(options.json).parent.is_dir():
        raise UserError(f"--json must be a file in a folder that exists, got {options.json}")
    silence_libraries()
    if options.topology != "gpu":
        jax.config.update("jax_platforms", "cpu")  # The compiler needs no TPU. A local TPU stays free.
    config, make_task = read_task(task, rest)
    check_ranges(config)
    target = open_target(options.topology, options.slices)
    limit = options.hbm * GIB if options.hbm is not None else target.chip and target.chip.hbm
    console = Console(highlight=False, soft_wrap=True, stderr=options.json == "-")
    run = DryRun(config, make_task, target, limit, console)
    report = run.search() if options.search else run.once(config.run.batch_size)
    report = {"task": task, "preset": preset_of(rest, task_presets(task)), **report}
    show(report, console)
    if options.json is not None:
        text = json.dumps(report, indent=2)
        print(text) if options.json == "-" else write_atomic(Path(options.json), text + "\n")
    return 0 if report["fits"] else 1


def read_task(name: str, arguments: Sequence[str]) -> tuple[Config, Callable[..., Task]]:
    """Returns the config of `python -m train.NAME ARGUMENTS`, and the function that makes its task."""
    module = importlib.import_module(f"train.{name}")
    resolve = {"resolve": module.resolve} if hasattr(module, "resolve") else {}
    return parse(name, module.PRESETS, arguments, **resolve), module.make_task


class DryRun:
    """Compiles one config with different batch sizes."""

    def __init__(
        self,
        config: Config,
        make_task: Callable[..., Task],
        target: Target,
        limit: float | None,
        console: Console,
    ):
        """Raises UserError if the mesh, the batch size and the data do not work together."""
        self.config, self.make_task, self.target, self.limit, self.console = config, make_task, target, limit, console
        self.mesh = make_mesh(config.mesh, target.devices)
        check_batch(config, batch_parts(self.mesh))
        self.source: Source = abstract_source(config.data, config.data.train_split)

    def once(self, batch_size: int) -> Report:
        """Compiles the step for this batch size and returns the report."""
        config = replace(self.config, run=replace(self.config.run, batch_size=batch_size))
        config = with_steps(config, len(self.source))
        patience = " (a minute or more)" if self.target.chip else ""
        self.console.print(f"compiling for {self.target.name}, batch size {batch_size:,} ...{patience}", markup=False)
        with as_user_error(model_flags(config)):
            return measure(config, self.make_task, self.source, self.mesh, self.target, self.limit)

    def search(self) -> Report:
        """Searches for the largest batch size that fits, and returns its report.

        If no batch size fits, returns the report of the smallest one tried. Batch sizes are multiples of the number of
        batch shards and accumulation parts.

        Raises:
            UserError: if the memory limit is unknown.
        """
        if self.limit is None:
            raise UserError(
                f"--search needs a memory limit, but the memory of {self.target.name} is unknown. Set --hbm, in GiB"
            )
        unit, reports = batch_unit(self.config, batch_parts(self.mesh)), {}

        def fits(units: int) -> bool:
            report = reports[units] = self.once(units * unit)
            total = report["memory"]["total"]
            taken = "" if total is None else f", {format_bytes(total)} of {format_bytes(report['memory']['limit'])}"
            verdict = "fits" if report["fits"] else "does not fit"
            self.console.print(f"batch size {units * unit:,} {verdict}{taken}", markup=False)
            return report["fits"]

        low, high = largest_that_fits(fits, self.config.run.batch_size // unit, TRIES)
        found = {"largest_that_fits": low * unit, "smallest_that_does_not": None if high is None else high * unit}
        return {**reports[low or high], "search": found}


def largest_that_fits(fits: Callable[[int], bool], start: int, tries: int) -> tuple[int, int | None]:
    """Searches for the largest number that fits, with at most `tries` calls of `fits`.

    Doubles `start` until it does not fit, then bisects until the gap is at most a sixteenth.

    Returns:
        (largest number that fits, or 0; smallest number that does not fit, or None), among the numbers tried.
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
