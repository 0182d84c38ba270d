"""What `train.process.malloc` gains: the train step of the preset `sample` with each of its settings and without, in turn.

    python -m benchmarks.allocator [--repeat 3]

Each run is a process of its own that does 200 steps; printed are its median milliseconds a step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import jax

from benchmarks.worker import peak_memory
from configs.vit import PRESETS
from train.data import batches, open_source
from train.process.malloc import huge_pages, keep_freed_memory
from train.vit import make_task

STEPS = 200
KINDS = ("without", "kept", "huge")


def median_step(keep: bool) -> tuple[float, float]:
    """(milliseconds a step in this process, its peak MiB)."""
    if keep:
        keep_freed_memory()
    config = PRESETS["sample"].config
    source = open_source(config.data, "train")
    task = make_task(config, source)
    state, step, times = jax.jit(task.init)(), jax.jit(task.step, donate_argnums=0), []
    for batch in batches(source, config.run.batch_size, 0, 0, STEPS):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times), peak_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="processes of each kind (default: 3)")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(*median_step(options.child == "kept"))
        return
    asked = huge_pages(os.environ)  # None where the kernel would not heed it.
    figures: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS if asked or kind != "huge"}
    for _ in range(options.repeat):
        for kind, found in figures.items():
            command = [sys.executable, "-m", "benchmarks.allocator", "--child", kind]
            variables = {**os.environ, **(asked if kind == "huge" else {})}
            out = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
            milliseconds, peak = out.stdout.split()
            found.append((float(milliseconds), float(peak)))
    for kind, found in figures.items():
        times, peaks = zip(*found, strict=True)
        spread = f"{statistics.median(times):6.1f} ms a step ({min(times):.1f}-{max(times):.1f})"
        print(f"{kind:<8} {spread}, {max(peaks):.0f} MiB")


if __name__ == "__main__":
    main()
