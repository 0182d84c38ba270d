"""Times our steps against PyTorch and Flax modules, in alternating processes.

    python -m benchmarks [CASE ...] [--sizes course|real] [--malloc own|default|keep|huge] [--json FILE]

The program prints the median time of a step over all turns, with its range. Then it prints the ratio of our time to the
time of each other implementation: the median over the turns, the range and the goal. The floor is the time of the
step's matrix products at the rate of the fastest product of two [2048, 2048] matrices, by torch or XLA. The program
ends with an error if the results differ.
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

from benchmarks.cases import CASES, REAL_CASES
from benchmarks.inputs import step_flops
from benchmarks.runner import Timings, measure


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def show(name: str, measured: Mapping[str, Timings], goals: Mapping[str, float]) -> None:
    """Prints the table of a case."""
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
    examples = "  python -m benchmarks vit_step lstm_step\n  python -m benchmarks --sizes real --json times.json"
    about = f"{__doc__.splitlines()[0]}\n\n{examples}"
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        "%(prog)s [CASE ...] [OPTIONS]",
        about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        choices=(*CASES, *REAL_CASES, []),
        help=f"cases to run: {', '.join([*CASES, *REAL_CASES])} (default: all of --sizes)",
    )
    parser.add_argument(
        "--sizes",
        choices=("course", "real"),
        default="course",
        help="course (default): our training steps and inference with the sizes of the course's models; real: the "
        "library in a user's own jax.jit, with published sizes of the ViT, also against timm if it is installed",
    )
    parser.add_argument("--processes", type=int, default=2, help="processes per implementation (default: 2)")
    parser.add_argument("--turns", type=int, default=5, help="number of timed turns of each process (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn in seconds (default: 1)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (default: all cores)"
    )
    parser.add_argument(
        "--malloc",
        choices=("own", "default", "keep", "huge"),
        default="own",
        help="setting of glibc's malloc. own (default): huge for our programs, default for the rest; default: glibc's "
        "own for all; keep: `w2jax.cpu.keep_freed_memory` for all; huge: `train.process.malloc.huge_pages` for all",
    )
    parser.add_argument("--json", type=Path, help="file to which all figures are written")
    options = parser.parse_args()
    cases = CASES | REAL_CASES
    names = options.cases or list(CASES if options.sizes == "course" else REAL_CASES)
    if any("floor" in cases[name].goals for name in names):
        names = ["gemm", *(name for name in names if name != "gemm")]
    figures: dict[str, Any] = {}
    flops_per_ms = 0.0
    for name in names:
        case = cases[name]
        measured, differences = measure(
            case, options.processes, options.turns, options.seconds, options.threads, options.malloc
        )
        show(name, measured, case.goals)
        figures[name] = {"measured": {who: asdict(x) for who, x in measured.items()}, "differences": differences}
        if name == "gemm":
            flops_per_ms = 2 * 2048**3 / min(min(x.milliseconds) for x in measured.values())
            print(f"  fastest: {flops_per_ms / 1e6:.0f} GFLOP/s")
        if "floor" in case.goals:
            floor = step_flops(case.model, case.batch_size) / flops_per_ms
            ratios = [x / floor for x in measured["ours"].milliseconds]
            print(f"  {'floor':<20} {floor:<54.2f}   {spread(ratios, 2)} ({case.goals['floor']})", flush=True)
            figures[name]["floor"] = floor
        print("  largest differences: " + ", ".join(f"{what} {x:.0e}" for what, x in differences.items()))
    if options.json:
        machine = {"platform": platform.platform(), "python": sys.version, "threads": options.threads}
        options.json.write_text(json.dumps({"machine": machine, "malloc": options.malloc, "cases": figures}, indent=1))


if __name__ == "__main__":
    main()
