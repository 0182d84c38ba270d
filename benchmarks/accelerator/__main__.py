"""Checks and measures the project on one GPU, several GPUs or a TPU. Also runs on a CPU, with smaller sizes.

    python -m benchmarks.accelerator [--quick] [--json FILE] [--parts PART ...] [--minutes M]
    python -m benchmarks.accelerator --markdown FILE

Each part runs in separate processes, so a crash, an out-of-memory error or a hang does not stop the other parts. When
the time of a part is over, it starts no new row of its table, but it always measures the first one. The exit status is
1 if a row failed. `--json` writes all figures, and tracebacks of failures. `--markdown` prints the tables of such
a file, for docs/scale.md. No network is used.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.accelerator.environment import describe, print_devices, setting_of
from benchmarks.accelerator.parts import PARTS, WHEELS, jobs, missing
from benchmarks.accelerator.record import TIME_BUDGET, Recorder, Row, Setting, read_rows
from benchmarks.accelerator.table import markdown

ROOT = Path(__file__).parents[2]
GRACE = 60.0  # seconds after a part's time budget until its process is ended
MINUTES = {("cpu", True): 1.8, ("cpu", False): 20.0, ("", True): 8.5, ("", False): 120.0}  # by (platform, quick)


def run_part(name: str, setting: Setting, seconds: float) -> dict[str, Any]:
    """Runs the processes of a part and returns its results."""
    start = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(name, Path(folder, "parent.jsonl"), seconds)
        if wheels := missing(PARTS[name].needs):
            recorder.skip(name, f"needs wheels that are not installed: {', '.join(wheels)}")
        else:
            for job in jobs(name, setting):
                left = seconds - (time.monotonic() - start)
                if left > 0 or not rows:  # The first process of a part always runs.
                    rows += run_job(name, job, setting, max(left, 0.0), Path(folder), recorder)
                else:
                    recorder.skip(job, TIME_BUDGET)
        rows += read_rows(recorder.path)
    statuses = {row.status for row in rows}
    status = next(status for status in ("failed", "ok", "skipped") if status in statuses)
    reason = next((row.reason for row in rows if row.status == status), "")
    took = time.monotonic() - start
    return {"status": status, "reason": reason, "seconds": took, "rows": [asdict(row) for row in rows]}


def run_job(
    part: str, job: str, setting: Setting, seconds: float, folder: Path, recorder: Recorder, grace: float = GRACE
) -> list[Row]:
    """Runs one process of a part and returns its rows. `recorder` writes a row if the process fails or hangs."""
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
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr, env=with_cpu(), process_group=0)
        try:
            status = process.wait(seconds + grace)
            reason = f"the process ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            reason = f"the process did not end within {seconds + grace:.0f} s"
        finally:
            stop(process)
    rows = read_rows(path)
    if reason or not rows:
        recorder.write(Row(job, "failed", reason or "no result", traceback=errors.read_text()[-5000:]))
    return rows


def with_cpu() -> dict[str, str]:
    """Returns the environment variables of a part's process, in which JAX also has the CPU, for reference results."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    wanted = platforms if not platforms or "cpu" in platforms.split(",") else f"{platforms},cpu"
    return os.environ | {"JAX_PLATFORMS": wanted}


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
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print the tables of a JSON file, and exit")
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
    elif options.markdown:
        print(markdown(json.loads(options.markdown.read_text())))
    else:
        sys.exit(run(options.parts or list(PARTS), options.quick, options.minutes, options.json))


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
        results["parts"][part] = run_part(part, setting, shares[0] / sum(shares) * (until - time.monotonic()))
        if path:
            path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{markdown(results)}\n")
    statuses = {part: result["status"] for part, result in results["parts"].items()}
    print(", ".join(f"{part}: {status}" for part, status in statuses.items()))
    return int("failed" in statuses.values())


if __name__ == "__main__":
    main()
