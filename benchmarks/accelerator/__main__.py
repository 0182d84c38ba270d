"""Checks and measures the project on one GPU, several GPUs or a TPU. Also runs on a CPU, with smaller sizes.

    python -m benchmarks.accelerator [--quick] [--json FILE] [--parts PART ...] [--minutes M]
    python -m benchmarks.accelerator --to-page FILE [FILE ...]

Each part runs in separate processes, so a crash, an out-of-memory error or a hang does not stop the other parts. When
the time of a part is over, it starts no new row of its table, but it always measures the first one. The exit status is
1 if a row failed. `--json` writes all figures, and tracebacks of failures. `--to-page` replaces the measurements in
docs/scale.md by the tables of such files. No network is used.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.accelerator.environment import describe, print_devices, setting_of
from benchmarks.accelerator.parts import PARTS, WHEELS, jobs, missing
from benchmarks.accelerator.record import TIME_BUDGET, Recorder, Row, Setting, read_rows
from benchmarks.accelerator.table import markdown
from benchmarks.pages import with_table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scale.md"
MINUTES = {("cpu", True): 1.8, ("cpu", False): 20.0, ("", True): 8.5, ("", False): 120.0}  # by (platform, quick)


def grace(setting: Setting) -> float:
    """Returns the seconds after the time budget of a part, and of all parts, until a process is ended."""
    return 480.0 if setting.small else 60.0  # a CPU may be slow or busy


def run_part(name: str, setting: Setting, seconds: float, limit: float) -> dict[str, Any]:
    """Runs the processes of a part and returns its results. `limit` are the seconds after which it must have ended."""
    start = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(name, Path(folder, "parent.jsonl"), seconds)
        if wheels := missing(PARTS[name].needs):
            recorder.skip(name, f"needs wheels that are not installed: {', '.join(wheels)}")
        else:
            for job in jobs(name, setting):
                took = time.monotonic() - start
                left, until = max(seconds - took, 0.0), limit - took
                # The first process of a part runs even if the budget is spent, unless earlier parts have hung.
                if until > 30 and (left or not rows):
                    rows += run_job(name, job, setting, left, min(left + grace(setting), until), Path(folder), recorder)
                else:
                    recorder.skip(job, TIME_BUDGET)
        rows += read_rows(recorder.path)
    statuses = {row.status for row in rows}
    status = next(status for status in ("failed", "ok", "skipped") if status in statuses)
    reason = next((row.reason for row in rows if row.status == status), "")
    took = time.monotonic() - start
    return {"status": status, "reason": reason, "seconds": took, "rows": [asdict(row) for row in rows]}


def run_job(
    part: str, job: str, setting: Setting, seconds: float, limit: float, folder: Path, recorder: Recorder
) -> list[Row]:
    """Runs one process of a part and returns its rows. `recorder` writes a row if the process fails or hangs.

    After `seconds` the process starts no new row, and after `limit` seconds it is ended.
    """
    path, errors = folder / f"{job.replace(' ', '_')}.jsonl", folder / "errors.txt"
    options = {
        "--part": part,
        "--job": job,
        "--rows": path,
        "--seconds": seconds,
        "--setting": json.dumps(asdict(setting)),
    }
    command = [sys.executable, "-m", "benchmarks.accelerator", *(str(x) for pair in options.items() for x in pair)]
    with errors.open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr, env=environment_of(part), process_group=0)
        try:
            status = process.wait(limit)
            reason = f"the process ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            reason = f"the process did not end within {limit:.0f} s"
        finally:
            stop(process)
    rows = read_rows(path)
    if reason or not rows:
        recorder.write(Row(job, "failed", reason or "no result", traceback=errors.read_text()[-5000:]))
    return rows


def environment_of(part: str) -> dict[str, str]:
    """Returns the environment variables of a part's process. JAX also has the CPU there, for reference results."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    wanted = platforms if not platforms or "cpu" in platforms.split(",") else f"{platforms},cpu"
    # If there is only a CPU, "values" compares one simulated device with two.
    simulated = {"JAX_NUM_CPU_DEVICES": "2"} if part == "values" else {}
    return {**simulated, **os.environ, "JAX_PLATFORMS": wanted}


def stop(process: subprocess.Popen) -> None:
    """Ends a process. It gets SIGTERM first, so that it can end the programs that it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    listed = "; ".join(f"{name}: {part.about}" for name, part in PARTS.items())
    parser.add_argument("--quick", action="store_true", help="fewer and smaller rows: 10 minutes on a GPU, 2 on a CPU")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, metavar="PART", help=f"parts to run (default: all). {listed}"
    )
    parser.add_argument("--minutes", type=float, help="time budget of all parts (default: depends on the device)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to which all results are written")
    parser.add_argument(
        "--to-page",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="write the tables of JSON files to docs/scale.md, and exit",
    )
    for name, kind in {"part": str, "job": str, "rows": Path, "seconds": float, "setting": json.loads}.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # of the processes that this program starts
    parser.add_argument("--devices", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that programs are ended too
    if options.devices:
        print_devices()
    elif options.part:
        module, function = PARTS[options.part].function.split(":")
        run_rows = getattr(importlib.import_module(f"benchmarks.accelerator.{module}"), function)
        run_rows(options.job, Recorder(options.part, options.rows, options.seconds), Setting(**options.setting))
    elif options.to_page:
        write_page(options.to_page, PAGE)
    else:
        sys.exit(run(options.parts or list(PARTS), options.quick, options.minutes, options.json))


def write_page(files: Sequence[Path], page: Path) -> None:
    """Replaces the measurements of a page by the tables of JSON files."""
    tables = "\n\n".join(markdown(json.loads(path.read_text())) for path in files)
    page.write_text(with_table(page.read_text(), "accelerators", tables))


def run(parts: list[str], quick: bool, minutes: float | None, path: Path | None) -> int:
    """Runs the parts, prints the tables and returns the exit status."""
    environment = describe()
    setting = setting_of(environment, quick)
    print(f"{setting.count} × {setting.kind} ({setting.platform})", flush=True)
    for name in WHEELS:
        if missing([name]):
            needing = [part for part in parts if name in PARTS[part].needs]
            effect = f"parts that are skipped: {', '.join(needing)}" if needing else "no part is skipped"
            if name == "torch":
                effect = "values compares with JAX on the CPU instead, and steps has no times of torch"
            print(f"not installed: {WHEELS[name]}; {effect}", flush=True)
    minutes = minutes or MINUTES["cpu" if setting.small else "", quick]
    until = time.monotonic() + 60 * minutes
    results: dict[str, Any] = {"environment": environment, "quick": quick, "minutes": minutes, "parts": {}}
    for i, part in enumerate(parts):
        shares = [PARTS[other].cpu_share if setting.small else PARTS[other].share for other in parts[i:]]
        left = until - time.monotonic()
        results["parts"][part] = run_part(part, setting, shares[0] / sum(shares) * left, left + grace(setting))
        if path:
            path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{markdown(results)}\n")
    statuses = {part: result["status"] for part, result in results["parts"].items()}
    print(", ".join(f"{part}: {status}" for part, status in statuses.items()))
    return int("failed" in statuses.values())


if __name__ == "__main__":
    main()
