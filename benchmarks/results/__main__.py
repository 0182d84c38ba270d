"""Measures the rows of docs/results.md and docs/aae.md, and writes their tables.

    python -m benchmarks.results --list                 # the rows, and the seeds that were measured
    python -m benchmarks.results vit-sample             # measures one row, in some minutes
    python -m benchmarks.results --missing              # measures all seeds without a record, in many hours
    python -m benchmarks.results vit-sample --seeds 7   # measures another seed

Each seed is one run of the row's command, in a new process. The record of a run goes to
benchmarks/results/measured/ROW.json: final metrics, wall time, peak memory, versions, machine, date and commit. The
tables of the pages are made from these files. If you interrupt the program, the same command continues; only a run of
PyTorch starts again. To repeat a run that has a record, delete its run folder first.
MNIST and Fashion-MNIST must be prepared with `python -m train.prepare`.
"""

import argparse
from pathlib import Path

from benchmarks.results.measure import measure
from benchmarks.results.rows import ROWS
from benchmarks.results.tables import read_runs, store_run, write_pages


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        choices=(*ROWS, []),
        help="rows to measure (default: all; this takes many hours)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds (default: those of the row)")
    parser.add_argument("--missing", action="store_true", help="measure only the seeds without a record")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/results"), help="folder for the run folders (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument("--tables", action="store_true", help="only write the tables from the records, and exit")
    options = parser.parse_args()
    for name in options.rows or ROWS:
        row, done = ROWS[name], [run["seed"] for run in read_runs(name)]
        if options.list:
            print(f"{name:<22} python -m {row.command:<60} seeds {', '.join(map(str, done)) or 'none'}")
        if options.list or options.tables:
            continue
        for seed in options.seeds or row.seeds:
            if seed in done and (options.missing or (options.runs / f"{name}-{seed}").exists()):
                print(f"{name}, seed {seed}: already measured")
            else:
                store_run(name, measure(row, seed, options.runs))
                write_pages()
    if options.tables:
        write_pages()


if __name__ == "__main__":
    main()
