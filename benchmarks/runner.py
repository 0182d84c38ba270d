"""Runs the contenders of a case in processes of their own, by turns, and holds their results against each other."""

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
from benchmarks.inputs import write_given
from train.process.malloc import huge_pages


@dataclass
class Measured:
    """One contender's figures, over all its turns."""

    milliseconds: list[float] = field(default_factory=list)
    """Mean time of a step in each turn."""
    ready: list[float] = field(default_factory=list)
    """Seconds until each process had imported, compiled and computed what is compared."""
    cpu: list[float] = field(default_factory=list)
    """Milliseconds of all cores for a step, in each turn."""
    peak: float = 0.0
    """Largest MiB that a process held."""


class Child:
    """A contender's process."""

    def __init__(self, function: str, given: Path, threads: int, malloc: str):
        if malloc == "own":
            malloc = "keep" if function.startswith(OURS) else "default"
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        variables |= huge_pages(os.environ) if malloc == "keep" else {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", function, str(given), str(threads), malloc],
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
) -> tuple[dict[str, Measured], dict[str, float]]:
    """(figures of each contender, the largest relative difference of each result).

    Each of `processes` times all contenders are started, and take `turns` turns of about `seconds`.
    """
    measured = {name: Measured() for name in case.contenders}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "given.npz")
        write_given(given, case.model, case.batch_size)
        for _ in range(processes):
            children = {}
            for name, function in case.contenders.items():
                children[name] = Child(function, given, threads, malloc)
                measured[name].ready.append(children[name].first["seconds"])
            differences = compared({name: child.first["result"] for name, child in children.items()})
            counts = {}
            for name, child in children.items():
                child.turn(2)
                counts[name] = max(1, round(seconds / child.turn(2)["seconds"] * 2))
            for turn in range(turns):
                for name in list(children)[:: 1 if turn % 2 else -1]:
                    found = children[name].turn(counts[name])
                    measured[name].milliseconds.append(1e3 * found["seconds"] / counts[name])
                    measured[name].cpu.append(1e3 * found["cpu"] / counts[name])
                    measured[name].peak = max(measured[name].peak, found["peak"])
            for child in children.values():
                child.close()
    return measured, differences


def compared(results: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """The largest difference of each result, relative to its largest value; ends the program if it is too large."""
    first, *others = results
    found = dict.fromkeys(results[first], 0.0)
    for other in others:
        for name, value in results[first].items():
            a, b = np.asarray(value), np.asarray(results[other][name])
            difference = float(abs(a - b).max() / abs(a).max())
            if not difference <= TOLERANCE[name]:  # Nor is NaN.
                sys.exit(f"{first} and {other} do not compute the same: {name} differs by {difference:.1e} ({a}, {b})")
            found[name] = max(found[name], difference)
    return found
