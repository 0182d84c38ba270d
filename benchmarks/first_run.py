"""Measures the first commands of a new user: wall time, peak memory and accuracy, each in a new process.

    python -m benchmarks.first_run [--repeat 3] [--tasks vit lstm mha]

For each command the program prints the median and the range of the wall time, the largest peak memory, and the test
accuracies.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

PYTHON = sys.executable
IMPORTS = [PYTHON, "-c", "import jax, flax.linen, optax"]
HELP = [PYTHON, "-m", "train.vit", "--help"]


def measure(command: list[str], stdout: IO[bytes] | int = subprocess.DEVNULL) -> tuple[float, float]:
    """Returns (wall seconds, peak MiB) of one run of `command`.

    The peak is at least the memory of this process, so keep this process small.
    """
    start = time.perf_counter()
    usage = run(command, stdout)
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def run(command: list[str], stdout: Any, folder: Path | None = None) -> resource.struct_rusage:
    """Runs a command in `folder` and returns its CPU times and peak memory. If it fails, this program ends."""
    process = subprocess.Popen(command, cwd=folder, stdout=stdout)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.wait()  # A training program saves a checkpoint first.
        raise
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen does not know that the process was waited for.
    if status:
        sys.exit(f"{' '.join(command)} failed with status {process.returncode}")
    return usage


def line(name: str, runs: list[tuple[float, float]], note: str = "") -> None:
    """Prints the figures of a command."""
    walls = [wall for wall, _ in runs]
    spread = f"{statistics.median(walls):7.2f} s ({min(walls):.2f}-{max(walls):.2f})"
    print(f"{name:<34} {spread}  peak {max(peak for _, peak in runs):5.0f} MiB  {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="runs of each command (default: 3)")
    parser.add_argument(
        "--tasks", nargs="+", default=["vit", "lstm", "mha"], help="tasks to train (default: vit lstm mha)"
    )
    options = parser.parse_args()
    repeat = options.repeat

    measure(HELP)  # Fills the file cache for both commands.
    pairs = [(measure(HELP), measure(IMPORTS)) for _ in range(repeat)]
    ratio = statistics.median(a[0] / b[0] for a, b in pairs)
    line("import jax, flax.linen, optax", [b for _, b in pairs])
    line("python -m train.vit --help", [a for a, _ in pairs], f"{ratio:.2f} times the imports")
    for task, preset in itertools.product(options.tasks, ("tiny", "sample")):
        runs, scores = [], []
        for seed in range(repeat):
            with tempfile.TemporaryDirectory() as folder:
                command = [PYTHON, "-m", f"train.{task}", preset, "--run.dir", f"{folder}/run", "--run.seed", str(seed)]
                runs.append(measure(command))
                last = Path(folder, "run", "metrics.jsonl").read_text().splitlines()[-1]
                scores.append(json.loads(last)["accuracy"])
        line(f"python -m train.{task} {preset}", runs, "test accuracy " + ", ".join(f"{score:.4f}" for score in scores))


if __name__ == "__main__":
    main()
