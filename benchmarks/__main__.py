"""Ours beside PyTorch and Flax's own modules, by turns in processes of their own.

    python -m benchmarks [CASE ...] [--threads 2] [--json FILE]

Printed is the median time of a step over all turns with its range, and ours divided by it: the median, and the range,
of the turns' ratios.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.alternate import Measured, measure
from benchmarks.cases import CASES


def ratios(ours: Measured, theirs: Measured) -> list[float]:
    return [a / b for a, b in zip(ours.milliseconds, theirs.milliseconds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--processes", type=int, default=2, help="times that all are started (default: 2)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each process (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (default: 1)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(default: all cores)")
    parser.add_argument("--malloc", choices=("keep", "default"), default="keep", help="of all contenders alike")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    found: dict[str, Any] = {}
    for name in options.cases or CASES:
        case = CASES[name]
        measured, differences = measure(
            case, options.processes, options.turns, options.seconds, options.threads, options.malloc
        )
        print(name, {k: f"{v:.0e}" for k, v in differences.items()})
        first = next(iter(measured.values()))
        for who, figures in measured.items():
            ms = figures.milliseconds
            line = f"  {who:<8} {figures.median:9.3f} ms ({min(ms):.3f}-{max(ms):.3f})  {figures.peak:5.0f} MiB"
            line += f"  ready {statistics.median(figures.ready):5.1f} s"
            if figures is not first:
                r = ratios(first, figures)
                line += f"  ratio {statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f}), of minima {min(first.milliseconds) / min(ms):.2f}"
                line += f" goal {case.goals[who]}" if who in case.goals else ""
            print(line, flush=True)
        found[name] = {"measured": {who: asdict(x) for who, x in measured.items()}, "differences": differences}
    if options.json:
        machine = {"platform": platform.platform(), "python": sys.version, "threads": options.threads}
        options.json.write_text(json.dumps({"machine": machine, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
