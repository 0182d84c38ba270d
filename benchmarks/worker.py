"""One contender of a case in a process of its own: prepares, says what it computed, and takes steps when it is told.

    python -m benchmarks.worker MODULE:FUNCTION GIVEN.npz THREADS keep|default

Writes lines of JSON: first {"seconds": until ready, "result": its numbers}, then for each number N read from stdin
{"seconds": of N steps, "cpu": seconds of all cores, "peak": MiB of the process up to here}. One more step before these
is not timed: the others' turns have emptied the caches, and a virtual machine's host may have taken back free memory.
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

from train.process.malloc import keep_freed_memory, trim_after_compiling


class Contender(NamedTuple):
    """What a contender's function makes of what is given."""

    result: dict[str, Any]
    """Numbers and arrays that every contender of the case should agree on."""
    step: Callable[[], object]
    """Does what is timed, once, and returns when it is done."""


def main() -> None:
    function, path, threads, malloc = sys.argv[1:]
    started = time.perf_counter()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    if malloc == "keep":
        keep_freed_memory()
        trim_after_compiling()
    module, name = function.split(":")
    with np.load(path) as given:
        contender: Contender = getattr(importlib.import_module(module), name)(dict(given))
    result = {key: np.asarray(value).ravel()[:1000].tolist() for key, value in contender.result.items()}
    answer(seconds=time.perf_counter() - started, result=result)
    for line in sys.stdin:
        contender.step()
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            contender.step()
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
        answer(seconds=seconds, cpu=cpu, peak=peak_memory())


def peak_memory() -> float:
    """MiB. What `getrusage` tells begins with the parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def answer(**content: Any) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
