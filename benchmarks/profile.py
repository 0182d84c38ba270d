"""Shows the time of each operation in our train step, under JAX's names.

    python -m benchmarks.profile TASK [--top 12]

A fusion counts as its last operation. Each time is the median over the steps. A matrix product uses all cores and
counts once. XLA splits a loop over elements into one part per core, and each part counts.
"""

import argparse
import gzip
import json
import re
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import jax

from benchmarks.inputs import BATCH_SIZES
from benchmarks.step import Step, course_step
from w2jax.cpu import keep_freed_memory

STEPS = 7
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', re.MULTILINE)


def profiled(step: Step) -> dict[str, float]:
    """Returns the milliseconds of each event in a step, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                step()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    durations = defaultdict(list)
    for event in events:
        if event.get("ph") == "X":
            durations[event["name"]].append(event["dur"] / 1e3)
    return {name: statistics.median(of_name) * len(of_name) / STEPS for name, of_name in durations.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=BATCH_SIZES, metavar="TASK", help=f"task to profile: {', '.join(BATCH_SIZES)}")
    parser.add_argument(
        "--top", type=int, default=12, help="number of kinds and of single operations to print (default: 12)"
    )
    options = parser.parse_args()
    keep_freed_memory()
    step = course_step(options.task)
    times = statistics.median(step() for _ in range(2 * STEPS))
    names = dict(_OPERATION.findall(step.compiled.as_text()))
    spent = {name: time for name, time in profiled(step).items() if name in names and not name.startswith("while")}
    kinds = defaultdict(float)
    for name, time in spent.items():
        kinds[names[name].rsplit("/", 1)[-1]] += time
    total = sum(spent.values())
    print(f"{options.task}: {1e3 * times:.1f} ms a step, {step.flops / 1e9:.2f} GFLOP in matrix products")
    print("Time by kind of operation:")
    for kind, time in sorted(kinds.items(), key=lambda item: -item[1])[: options.top]:
        print(f"  {time:8.2f} ms  {time / total:4.0%}  {kind}")
    print("Time by single operation:")
    for name in sorted(spent, key=lambda name: -spent[name])[: options.top]:
        print(f"  {spent[name]:8.2f} ms  {name:<36} {names[name][-70:]}")


if __name__ == "__main__":
    main()
