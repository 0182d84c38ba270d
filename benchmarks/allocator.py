"""What `train.allocator.keep_freed_memory` gains: the train step of the preset `sample`, with and without, in turn.

    python -m benchmarks.allocator [--repeat 3]

Each run is a process of its own that does 200 steps; printed are its median milliseconds a step.
"""

import argparse
import statistics
import subprocess
import sys
import time

import jax

from configs.vit import PRESETS
from train.allocator import keep_freed_memory
from train.data import batches, open_source
from train.vit import make_task

STEPS = 200


def median_step(keep: bool) -> float:
    """Milliseconds a step in this process."""
    if keep:
        keep_freed_memory()
    config = PRESETS["sample"]
    source = open_source(config.data, "train")
    task = make_task(config, source)
    state, step, times = jax.jit(task.init)(), jax.jit(task.step, donate_argnums=0), []
    for batch in batches(source, config.run.batch_size, 0, 0, STEPS):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="processes of each kind (default: 3)")
    parser.add_argument("--child", choices=("with", "without"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(median_step(options.child == "with"))
        return
    figures: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(options.repeat):
        for kind, found in figures.items():
            command = [sys.executable, "-m", "benchmarks.allocator", "--child", kind]
            found.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    for kind, found in figures.items():
        print(f"{kind:<8} {statistics.median(found):6.1f} ms a step ({min(found):.1f}-{max(found):.1f})")


if __name__ == "__main__":
    main()
