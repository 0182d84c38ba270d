"""Runs the implementations of a case alternately, each in its own process, and compares their results."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import OURS, TOLERANCE, Case
from benchmarks.inputs import write_inputs
from train.process.malloc import huge_pages


@dataclass
class Timings:
    """The figures of one implementation, over all its turns."""

    milliseconds: list[float] = field(default_factory=list)
    """Mean milliseconds of a step, in each turn."""
    ready: list[float] = field(default_factory=list)
    """Seconds until each process has imported, compiled and computed its results."""
    cpu: list[float] = field(default_factory=list)
    """CPU milliseconds of a step, summed over all cores, in each turn."""
    peak: float = 0.0
    """Peak resident MiB over all processes."""


class Worker:
    """The process of one implementation (`benchmarks.worker`)."""

    def __init__(self, function: str, inputs: Path, threads: int, malloc: str):
        if malloc == "own":
            malloc = "huge" if function.startswith(OURS) else "default"
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        variables |= huge_pages(os.environ) if malloc == "huge" else {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", function, str(inputs), str(threads), malloc],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        self.first = self.answer()

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.process.args)} failed with status {self.process.wait()}")
        return json.loads(line)

    def turn(self, steps: int) -> dict[str, Any]:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(
    case: Case, processes: int, turns: int, seconds: float, threads: int, malloc: str
) -> tuple[dict[str, Timings], dict[str, float]]:
    """Returns (figures of each implementation, largest relative difference of each result).

    Starts each implementation `processes` times. Each process runs `turns` turns of about `seconds` seconds.
    """
    measured = {name: Timings() for name in case.implementations}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.npz")
        write_inputs(inputs, case.model, case.batch_size)
        for _ in range(processes):
            workers = {}
            for name, function in case.implementations.items():
                workers[name] = Worker(function, inputs, threads, malloc)
                measured[name].ready.append(workers[name].first["seconds"])
            differences = compared({name: worker.first["result"] for name, worker in workers.items()})
            counts = {}
            for name, worker in workers.items():
                worker.turn(2)
                counts[name] = max(1, round(seconds / worker.turn(2)["seconds"] * 2))
            for turn in range(turns):
                for name in list(workers)[:: 1 if turn % 2 else -1]:
                    answer = workers[name].turn(counts[name])
                    measured[name].milliseconds.append(1e3 * answer["seconds"] / counts[name])
                    measured[name].cpu.append(1e3 * answer["cpu"] / counts[name])
                    measured[name].peak = max(measured[name].peak, answer["peak"])
            for worker in workers.values():
                worker.close()
    return measured, differences


def compared(results: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Returns the largest difference of each result, relative to its largest value.

    Raises:
        SystemExit: if a difference is too large.
    """
    first, *others = results
    largest = dict.fromkeys(results[first], 0.0)
    for other in others:
        for name, value in results[first].items():
            a, b = np.asarray(value), np.asarray(results[other][name])
            difference = float(abs(a - b).max() / abs(a).max())
            if not difference <= TOLERANCE[name]:  # NaN counts as too large.
                found = f"{name} differs by {difference:.1e} ({a}, {b})"
                sys.exit(f"{first} and {other} must give the same results: {found}")
            largest[name] = max(largest[name], difference)
    return largest
