"""Ours beside PyTorch and Flax's own modules, by turns in processes of their own.

    python -m benchmarks [CASE ...] [--malloc own|keep|default] [--json FILE]

Printed is the median time of a step over all turns with its range, then our time divided by the contender's: the median
of the turns' ratios with its range, and the goal. The floor is the products' FLOPs at the rate of the best product of
two matrices [2048, 2048] that torch or XLA did. Contenders that do not compute the same end the program.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from benchmarks.inputs import step_flops
from benchmarks.runner import Measured, measure


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def show(name: str, measured: Mapping[str, Measured], goals: Mapping[str, float]) -> None:
    """Prints a case's table."""
    print(f"\n{name:<22} {'ms a step':<26} {'CPU ms':>8} {'peak MiB':>9} {'ready s':>8}   ours / theirs (goal)")
    ours = next(iter(measured.values()))
    for who, theirs in measured.items():
        line = f"  {who:<20} {spread(theirs.milliseconds, 2):<26} {statistics.median(theirs.cpu):8.1f}"
        line += f" {theirs.peak:9.0f} {statistics.median(theirs.ready):8.1f}"
        if theirs is not ours:
            turns = [a / b for a, b in zip(ours.milliseconds, theirs.milliseconds, strict=True)]
            line += f"   {spread(turns, 2)}" + (f" ({goals[who]})" if who in goals else "")
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--processes", type=int, default=2, help="times that all are started (default: 2)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each process (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (default: 1)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(default: all cores)")
    parser.add_argument(
        "--malloc",
        choices=("own", "keep", "default"),
        default="own",
        help="glibc's malloc: as each program has it, which ours sets; with our settings for all; with none",
    )
    parser.add_argument("--json", type=Path, help="write all figures here too")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    names = options.cases or list(CASES)
    if any("floor" in CASES[name].goals for name in names):
        names = ["gemm", *(name for name in names if name != "gemm")]
    found: dict[str, Any] = {}
    flops_per_ms = 0.0
    for name in names:
        case = CASES[name]
        measured, differences = measure(
            case, options.processes, options.turns, options.seconds, options.threads, options.malloc
        )
        show(name, measured, case.goals)
        found[name] = {"measured": {who: asdict(x) for who, x in measured.items()}, "differences": differences}
        if name == "gemm":
            flops_per_ms = 2 * 2048**3 / min(min(x.milliseconds) for x in measured.values())
            print(f"  the best: {flops_per_ms / 1e6:.0f} GFLOP/s")
        if "floor" in case.goals:
            floor = step_flops(case.model, case.batch_size) / flops_per_ms
            ratios = [x / floor for x in measured["ours"].milliseconds]
            print(f"  {'floor':<20} {floor:<54.2f}   {spread(ratios, 2)} ({case.goals['floor']})", flush=True)
            found[name]["floor"] = floor
        print("  largest differences: " + ", ".join(f"{what} {x:.0e}" for what, x in differences.items()))
    if options.json:
        machine = {"platform": platform.platform(), "python": sys.version, "threads": options.threads}
        options.json.write_text(json.dumps({"machine": machine, "malloc": options.malloc, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
