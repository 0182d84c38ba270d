"""Measures how a train step's time and memory grow if one size becomes 4 times as large.

    python -m benchmarks.scaling [NAME ...] [--repeat 5] [--json FILE]

If a quantity becomes r times as large, its exponent is log r / log 4. It is 1 if the quantity grows in proportion.
Compare the exponent of the time with that of the FLOPs of the step's matrix products. Memory is the size of XLA's
temporaries, counted by XLA.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.step import course_step
from w2jax.cpu import keep_freed_memory

FACTOR = 4
# Per name: the task, and the sizes that differ from the course. The first size grows. An image's height is T.
CASES = {
    "lstm-steps": ("lstm", {"height": 28, "batch_size": 64}),
    "lstm-batch": ("lstm", {"batch_size": 64}),
    "mha-steps": ("mha", {"height": 28, "batch_size": 32}),
    "mha-batch": ("mha", {"batch_size": 32}),
    "vit-batch": ("vit", {"batch_size": 32}),
    "vit-depth": ("vit", {"depth": 2, "batch_size": 32}),
    "vit-side": ("vit", {"side": 16, "batch_size": 16}),
    "aae-batch": ("aae", {"batch_size": 64}),
}


def measure(task: str, sizes: Mapping[str, int], grown: str, repeat: int) -> list[dict[str, float]]:
    """Returns the FLOPs, seconds and bytes of the small and the large step, which run in alternation."""
    steps = [course_step(task, sizes), course_step(task, {**sizes, grown: FACTOR * sizes[grown]})]
    for step in steps:
        step()
    times = zip(*([step() for step in steps] for _ in range(repeat)), strict=True)
    return [
        {
            "flops": step.flops,
            "seconds": statistics.median(of_step),
            "memory": float(step.compiled.memory_analysis().temp_size_in_bytes),
        }
        for step, of_step in zip(steps, times, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        choices=(*CASES, []),
        help=f"cases to run: {', '.join(CASES)} (default: all)",
    )
    parser.add_argument("--repeat", type=int, default=5, help="timed steps of each program (default: 5)")
    parser.add_argument("--json", type=Path, help="file to which all figures are written")
    options = parser.parse_args()
    keep_freed_memory()
    figures = {}
    print(f"{'':<11} {'from':>5} {'to':>5} {'ms':>17} {'MiB':>16}   exponents of FLOPs, time, memory")
    for name in options.names or CASES:
        task, sizes = CASES[name]
        grown = next(iter(sizes))
        small, large = figures[name] = measure(task, sizes, grown, options.repeat)
        exponents = [f"{math.log(large[key] / small[key], FACTOR):5.2f}" for key in ("flops", "seconds", "memory")]
        line = f"{name:<11} {sizes[grown]:5} {FACTOR * sizes[grown]:5}"
        line += f" {1e3 * small['seconds']:8.1f} {1e3 * large['seconds']:8.1f}"
        line += f" {small['memory'] / 2**20:8.1f} {large['memory'] / 2**20:7.1f}"
        print(f"{line}   {'  '.join(exponents)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
