"""Rewrites the report of a run, or writes a page that compares several runs.

    python -m train.report RUN_DIR [RUN_DIR ...]

- python -m train.report runs/vit-sample                     # rewrites runs/vit-sample/report.html
- python -m train.report runs/vit-sample runs/lstm-sample    # writes comparison.html
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from train.config.cli import read_options, run_main
from train.process.errors import UserError
from train.report.page import REPORT, comparison, run_page
from train.run.atomic import write_atomic


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


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(Options, "train.report", arguments, __doc__)
    if not options.run_dirs:
        raise UserError("RUN_DIR is missing. Pass at least one run folder, such as runs/vit-sample.")
    single = len(options.run_dirs) == 1
    page = run_page(options.run_dirs[0]) if single else comparison(options.run_dirs)
    path = options.out or (options.run_dirs[0] / REPORT if single else Path("comparison.html"))
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}). Set --out to another file.") from error
    print(f"wrote {path}")


if __name__ == "__main__":
    run_main(main)
