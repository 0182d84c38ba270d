"""Watches a long run from another process: its memory and its number of open files must not grow.

    python -m tests.stress.long_run [TASK...] [--steps 5000] [--bound 24] [--run.X ...]

Each task (default: all) trains its preset `tiny` in its own process, and logs, evaluates and saves often. At each fifth
of the steps, the program prints the process's resident memory, open files and threads, and the memory of its workers.
Then it prints the memory's growth over the second half, from a fitted straight line, and the mean size in bytes of a
row of metrics.jsonl. It exits with status 1 if memory grows by more than `--bound` MiB over the second half, or if the
number of open files grows. Each checkpoint adds some memory (docs/reliability.md), so many of them need a higher bound.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.helpers.tasks import TASKS

ROOT = Path(__file__).parents[2]
OPTIONS = (
    *("--run.log-every", "10", "--run.eval-every", "100", "--run.save-every", "50"),
    *("--data.test-split", "test[:200]", "--optim.ema", "0.99"),
)
MOST_FILES = 3  # A save opens some. One leaked file per evaluation would add 20 from the middle to the end.


class Sample(NamedTuple):
    """The resources that the process used after `step`."""

    step: int
    memory: float
    """Resident MiB."""
    workers: float
    """MiB of its child processes; shared pages count once."""
    files: int
    threads: int


def last_step(metrics: Path) -> int:
    """Returns the step of the last complete row of a metrics.jsonl, or 0."""
    try:
        with metrics.open("rb") as file:
            file.seek(-min(4096, metrics.stat().st_size), os.SEEK_END)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return 0
    return json.loads(lines[-2])["step"] if len(lines) > 1 else 0


def look(process: int, step: int) -> Sample:
    """Returns the resources that the process with this ID uses now."""
    here = Path("/proc", str(process))
    status = dict(line.split(":", 1) for line in (here / "status").read_text().splitlines())
    workers = 0
    for task in (here / "task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):  # It may have ended.
                rollup = Path("/proc", child, "smaps_rollup").read_text().splitlines()
                workers += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    memory = int(status["VmRSS"].split()[0]) / 1024
    return Sample(step, memory, workers / 1024, len(list((here / "fd").iterdir())), int(status["Threads"]))


def watch(task: str, folder: Path, steps: int, options: list[str], every: float = 0.1) -> list[Sample]:
    """Trains `tiny` to its end, and samples the process every `every` seconds during the training steps.

    Raises:
        RuntimeError: if the run fails.
    """
    command = [sys.executable, "-m", f"train.{task}", "tiny", *OPTIONS, "--run.steps", str(steps), *options]
    samples: list[Sample] = []
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            [*command, "--run.dir", str(folder / "run")], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                step = last_step(folder / "run" / "metrics.jsonl")
                if 0 < step < steps:  # After the last step, the loop has ended.
                    with contextlib.suppress(OSError):  # It may have ended.
                        samples.append(look(process.pid, step))
                time.sleep(every)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {output.read()[-2000:]}")
    return samples


def memory_slope(samples: list[Sample]) -> tuple[float, float]:
    """Returns the MiB that 1,000 steps add to the memory of a process, and the standard error.

    The first value is the slope of a straight line through the samples of the second half. Neighboring samples are
    correlated, so the line is fitted to the means of twenty parts. Workers are not counted, because their memory varies
    by tens of MiB.
    """
    half = samples[-1].step / 2
    behind = np.array([(s.step, s.memory) for s in samples if s.step > half])
    means = np.array([part.mean(0) for part in np.array_split(behind, 20)])
    (slope, _), covariance = np.polyfit(means[:, 0] / 1000, means[:, 1], 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def files_grown(samples: list[Sample]) -> float:
    """Returns the median number of open files in the last fifth of the steps, minus the median in the third fifth."""
    steps = samples[-1].step
    middle, last = (
        np.median([s.files for s in samples if start * steps / 5 < s.step <= (start + 1) * steps / 5])
        for start in (2, 4)
    )
    return float(last - middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", choices=(*TASKS, []), metavar="TASK", help=f"tasks: {', '.join(TASKS)} (default: all)"
    )
    parser.add_argument("--steps", type=int, default=5000, help="training steps (default: 5000)")
    parser.add_argument(
        "--bound",
        type=float,
        default=24,
        help="largest allowed growth of memory over the second half, in MiB (default: 24)",
    )
    options, of_run = parser.parse_known_args()
    failed = False
    for task in options.tasks or TASKS:
        with tempfile.TemporaryDirectory() as folder:
            samples = watch(task, Path(folder), options.steps, of_run)
            metrics = Path(folder, "run", "metrics.jsonl").read_bytes()
        print(f"{task} tiny {' '.join(of_run)}".rstrip())
        for fifth in range(1, 6):
            near = min(samples, key=lambda s: abs(s.step - fifth * options.steps / 5))
            print(
                f"  step {near.step:>6,}: {near.memory:6.1f} MiB, workers {near.workers:6.1f} MiB, "
                f"{near.files} open files, {near.threads} threads"
            )
        (slope, error), files = memory_slope(samples), files_grown(samples)
        added = slope * options.steps / 2000
        bad = added > options.bound or files > MOST_FILES
        failed |= bad
        print(
            f"  1,000 steps add {slope:+.2f} ± {error:.2f} MiB, the second half {added:+.1f}; open files {files:+.0f}; "
            f"{len(metrics) / metrics.count(10):.0f} bytes per row: {'GROWS' if bad else 'ok'}",
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
