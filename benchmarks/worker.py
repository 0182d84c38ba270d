"""Runs one implementation of a case in its own process: prepares it, reports its results, and runs steps on request.

    python -m benchmarks.worker MODULE:FUNCTION INPUTS.npz THREADS default|keep|huge

Writes lines of JSON. The first is {"seconds": time until ready, "result": its numbers}. Then, for each number N on
stdin: {"seconds": time of N steps, "cpu": CPU seconds of all cores, "peak": peak MiB of the process so far}. One more
step, before the N steps, is not timed: the other workers have emptied the caches, and the host of a virtual machine may
have taken back free memory.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.process.malloc import trim_after_compiling
from w2jax.cpu import keep_freed_memory


class Workload(NamedTuple):
    """The prepared computation of one implementation."""

    result: dict[str, Any]
    """Numbers and arrays on which all implementations of the case must agree."""
    step: Callable[[], object]
    """Runs the timed computation once and returns when it is finished."""


def main() -> None:
    function, path, threads, malloc = sys.argv[1:]
    started = time.perf_counter()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    if malloc != "default":
        keep_freed_memory()
        trim_after_compiling()
    module, name = function.split(":")
    with np.load(path) as inputs:
        workload: Workload = getattr(importlib.import_module(module), name)(dict(inputs))
    result = {key: np.asarray(value).ravel()[:1000].tolist() for key, value in workload.result.items()}
    answer(seconds=time.perf_counter() - started, result=result)
    for line in sys.stdin:
        workload.step()
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            workload.step()
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
        answer(seconds=seconds, cpu=cpu, peak=peak_memory())


def peak_memory() -> float:
    """Returns the peak resident MiB of this process. `getrusage` would include the parent's memory before the fork."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def answer(**content: Any) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
