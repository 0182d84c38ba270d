"""Runs the command of a row with one seed, and returns the record that the JSON files store."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.first_run import run
from benchmarks.results.rows import Row
from train.run.record import read_record

ROOT = Path(__file__).parents[2]
CODE = ("w2jax", "train", "configs", "benchmarks/baselines")  # what the results depend on
ALONE = 0.95  # if the command used this share of all CPU time, nothing else ran


def measure(row: Row, seed: int, runs: Path) -> dict[str, Any]:
    """Runs a row with one seed, and returns its record. If a training run was stopped, this resumes it.

    Args:
        row: the row.
        seed: its seed.
        runs: folder for the run folder ROW-SEED.

    Raises:
        SystemExit: the command failed or was interrupted.
    """
    folder = (runs / f"{row.name}-{seed}").absolute()
    is_ours = row.command.startswith("train.")
    command = [sys.executable, "-m", *row.command.split(), "--run.seed", str(seed)]
    command += ["--run.dir", str(folder)] if is_ours else []
    in_one_go = not folder.exists()
    with tempfile.TemporaryFile("w+") as printed:
        usage = _run(command, None if is_ours else printed)
        printed.seek(0)
        result = _of_run(folder) if is_ours else _of_torch(printed.read())
    return {
        "seed": seed,
        **result,
        **(usage if in_one_go else dict.fromkeys(usage)),  # `usage` lacks the time before a resumed run stopped.
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
    }


def _run(command: list[str], stdout: Any) -> dict[str, Any]:
    """Runs a command. Returns its CPU time, its peak memory, and whether nothing else ran at the same time."""
    busy = _busy_seconds()
    try:
        usage = run(command, stdout, ROOT)
    except KeyboardInterrupt:
        sys.exit("Interrupted. Run the same command to resume")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return {
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "alone": cpu_seconds >= ALONE * (_busy_seconds() - busy),
    }


def _of_run(folder: Path) -> dict[str, Any]:
    """Returns the results of a finished run from its run folder. The wall time is that of all its processes."""
    run = read_record(folder)
    facts = run.task_info.facts
    return {
        "metrics": run.test_metrics,
        "data": run.dataset,
        "images": facts.examples,
        "steps": run.logged_step,
        "batch_size": run.config["run"]["batch_size"],
        "wall_seconds": round(sum(facts.phases.values()), 1),
        "versions": facts.versions,
    }


def _of_torch(printed: str) -> dict[str, Any]:
    """Returns what `benchmarks.baselines.torch_training` printed in its last line."""
    metrics = json.loads(printed.splitlines()[-1])
    steps, seconds = metrics.pop("steps"), metrics.pop("seconds")
    versions = {"python": platform.python_version(), "torch": version("torch")}
    return {"metrics": metrics, "steps": steps, "wall_seconds": seconds, "versions": versions}


def _busy_seconds() -> float:
    """Returns the CPU time of all programs since the start of the system (Linux)."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Describes the processor of this machine (Linux)."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    cpu = {name.strip(): value.strip() for name, _, value in lines}
    flags = cpu["flags"].split()
    width = next((name for flag, name in _VECTORS.items() if flag in flags), "no AVX2")
    return f"{os.cpu_count()} cores of {cpu['model name']} (family {cpu['cpu family']}, model {cpu['model']}), {width}"


_VECTORS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}


def _commit() -> str:
    """Returns the commit of the code, with "+" if the code was changed since."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *CODE], cwd=ROOT).returncode
    return head.stdout.strip() + ("+" if changed else "")
