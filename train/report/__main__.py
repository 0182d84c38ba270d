"""Rewrites the report of a run, or writes a page that compares runs.

- python -m train.report runs/vit-sample                    # its report.html
- python -m train.report runs/vit-sample --checkpoint best  # report-best.html
- python -m train.report runs/vit-sample --checkpoint best --split test
- python -m train.report runs/vit-sample runs/lstm-sample   # comparison.html
- python -m train.report runs/vit-sample --serve            # in the browser
- python -m train.report runs/vit-sample --pictures talk    # PNG and SVG files
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from train.config.cli import read_options, run_main
from train.process.errors import UserError
from train.report.comparison import comparison
from train.report.page import REPORT, run_page
from train.run.atomic import check_no_link, write_atomic
from w2jax.text import count_of, one_line


@dataclass(frozen=True)
class Options:
    """Rewrites the report of a run from the files in its folder, or writes a page that compares several runs."""

    run_dirs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="RUN_DIR [RUN_DIR ...]", help_behavior_hint="(required)"),
    ]
    """One or more run folders, such as runs/vit-sample."""
    out: Path | None = None
    """File to write. Default: RUN_DIR/report.html for one run, comparison.html for several runs."""
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="last|best|STEP")] = None
    """Checkpoint to evaluate again: last, best (by the test metric) or a step. This takes the dataset and one RUN_DIR.
    Default: show the results of the last evaluation."""
    split: str | None = None
    """With --checkpoint: split of the dataset to evaluate, such as test. Default: the --data.test-split of the run."""
    pictures: Path | None = None
    """Write the curves, the confusion matrix and the pictures into this folder instead, for a talk.
    Each figure is a PNG and an SVG file with its caption."""
    serve: bool = False
    """Show the report in the browser instead of writing a file. The page follows a run that is training.
    Only programs on this machine can read it. Ctrl-C ends it."""
    port: Annotated[int | None, tyro.conf.arg(metavar="PORT")] = None
    """With --serve: port to use. Default: a free one."""
    no_open: bool = False
    """With --serve: do not open the browser."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(Options, "train.report", arguments, __doc__)
    if not options.run_dirs:
        raise UserError("RUN_DIR is missing. Pass at least one run folder, such as runs/vit-sample.")
    run_dir, *others = options.run_dirs
    if others and options.checkpoint is not None:
        raise UserError(f"--checkpoint must be used with one RUN_DIR, got {len(options.run_dirs)}. Pass one")
    if options.split is not None and options.checkpoint is None:
        raise UserError("--split must be used with --checkpoint. Add for example --checkpoint best")
    if not options.serve and (options.port is not None or options.no_open):
        raise UserError(f"{'--no-open' if options.port is None else '--port'} must be used with --serve. Add --serve")
    if options.pictures is not None:
        _check_alone(options, "--pictures")
        if others:
            raise UserError(f"--pictures must be used with one RUN_DIR, got {len(options.run_dirs)}. Pass one")
        return _write_figures(run_dir, options.pictures)
    if options.serve:
        return _serve(options)
    if others:
        path, page = Path("comparison.html"), comparison(options.run_dirs)
    elif options.checkpoint is not None:
        name = "-".join(re.findall(r"\w+", f"report {options.checkpoint} {options.split or ''}"))
        path, page = run_dir / f"{name}.html", _checkpoint_page(run_dir, options.checkpoint, options.split)
    else:
        path, page = run_dir / REPORT, run_page(run_dir)
    path = options.out or path
    for run_dir in options.run_dirs:
        check_no_link(path.parent, run_dir)
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Set --out to another file.") from error
    print(one_line(f"wrote {path}"))


def _check_alone(options: Options, flag: str) -> None:
    """Raises UserError if another option contradicts --serve or --pictures."""
    others = {"--checkpoint": options.checkpoint, "--out": options.out, "--serve": options.serve or None}
    for name, value in others.items():
        if value is not None and name != flag:
            raise UserError(f"{name} must be left out with {flag}, which shows the last evaluation. Remove one of them")


def _write_figures(run_dir: Path, folder: Path) -> None:
    from train.report.figures import write_figures  # Late import: matplotlib takes 0.5 s.

    check_no_link(folder, run_dir)
    try:
        names = write_figures(run_dir, folder)
    except OSError as error:
        raise UserError(
            f"--pictures must be a folder that can be written, got {folder} ({error.strerror}). Choose another folder"
        ) from error
    print(one_line(f"wrote {count_of(len(names), 'figure')} as PNG and SVG into {folder}: {', '.join(names)}"))


def _serve(options: Options) -> None:
    _check_alone(options, "--serve")
    from train.report.serve import serve  # Late import: other reports need no server.

    run_dir, *others = options.run_dirs
    page = partial(comparison, options.run_dirs) if others else partial(run_page, run_dir)
    serve(options.port or 0, page, None if others else run_dir, not options.no_open)


def _checkpoint_page(run_dir: Path, checkpoint: str, split: str | None) -> str:
    from train.evaluate import evaluate  # Late import: a report from the files of a run needs no JAX.

    with TemporaryDirectory() as folder:
        return run_page(run_dir, evaluate(run_dir, checkpoint, Path(folder), split))


if __name__ == "__main__":
    run_main(main)
