"""Starts training commands in their own process group, and follows them by the files of their run folder."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PHASES = ("start-up", "steps", "save", "evaluation", "end")
PATIENCE = 300.0  # seconds to wait for an event


class Broken(Exception):
    """A run broke a promise."""


class Durations(NamedTuple):
    """Seconds until a run opens metrics.jsonl, from there to its last row, and from there to its end."""

    start: float
    steps: float
    end: float


class Run:
    """The processes of a started command. It has the methods of a `subprocess.Popen` that are used here."""

    def __init__(self, processes: Sequence[subprocess.Popen]):
        self._processes = processes
        self.pid = processes[0].pid
        """ID of the main process and of the process group."""

    @property
    def returncode(self) -> int:
        """Exit status of the main process."""
        return self._processes[0].returncode

    @property
    def statuses(self) -> list[int | None]:
        """Exit status of each process; None for one that still runs."""
        return [process.poll() for process in self._processes]

    def poll(self) -> int | None:
        """Returns the exit status of the main process once all processes have ended, else None."""
        return None if None in self.statuses else self.returncode

    def wait(self, seconds: float | None = None) -> None:
        """Waits until all processes have ended; raises subprocess.TimeoutExpired after `seconds` for each of them."""
        for process in self._processes:
            process.wait(seconds)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the main process, unless it has ended."""
        self._processes[0].send_signal(number)

    def send_group(self, number: signal.Signals) -> None:
        """Sends a signal to all processes and their workers, unless all have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@dataclass(frozen=True)
class Command:
    """A training command without its run folder."""

    task: str
    options: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    processes: int = 1

    def start(self, folder: Path, log: Path | None = None, shell: str | None = None) -> Run:
        """Starts the command in a new process group. A line `shell` for bash runs the command as "$@".

        Appends the main process's output to LOG.txt and its errors to LOG.err. The default LOG is the run folder.
        """
        started: list[subprocess.Popen] = []
        for arguments in self._distributed():
            base = log or folder
            base = base.with_name(f"{base.name}-{len(started)}") if started else base
            with base.with_suffix(".txt").open("a") as output, base.with_suffix(".err").open("a") as errors:
                python = [sys.executable, "-m", f"train.{self.task}", "tiny", *self.options, *arguments]
                before = ["bash", "-o", "pipefail", "-c", shell, "bash"] if shell else []
                started += [
                    subprocess.Popen(
                        [*before, *python, "--run.dir", str(folder)],
                        cwd=ROOT,
                        env=os.environ | self.environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=errors,
                        process_group=started[0].pid if started else 0,
                    )
                ]
        return Run(started)

    def _distributed(self) -> list[list[str]]:
        """Returns the further options of each process."""
        if self.processes == 1:
            return [[]]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        shared = ["--distributed.coordinator", coordinator, "--distributed.num-processes", str(self.processes)]
        return [[*shared, "--distributed.process-id", str(index)] for index in range(self.processes)]


class View:
    """The progress of the last started process, read from the files of its run folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._before = self._stamp()

    def began(self) -> bool:
        """Whether the process has opened metrics.jsonl, which ends its start-up."""
        return self._stamp() not in (None, self._before)

    def saving(self) -> set[str]:
        """Names of the unfinished saves."""
        return {name for name in names(self.folder / "checkpoints") if not name.isdigit()}

    def saved(self) -> int:
        """The newest saved step, or 0."""
        return max(saved_steps(self.folder), default=0)

    def last_line(self) -> dict[str, Any]:
        """Returns the last complete row of metrics.jsonl, or a row of step 0."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / "metrics.jsonl").read_bytes().split(b"\n")
            if len(lines) > 1:
                return json.loads(lines[-2])
        return {"step": 0, "split": "train"}

    def evaluating(self) -> bool:
        """Whether a row of metrics.jsonl is written after which an evaluation is due, and the evaluation's is not."""
        last = self.last_line()
        due = last["step"] % self._run["eval_every"] == 0 or last["step"] == self._run["steps"]
        return last["step"] > 0 and last["split"] == "train" and due

    def reporting(self) -> bool:
        """Whether the last row of metrics.jsonl is an evaluation's, after which the report is written."""
        return self.last_line()["split"] == "test"

    def ended(self) -> bool:
        """Whether the run's last row of metrics.jsonl is written."""
        last = self.last_line()
        return last["split"] == "test" and last["step"] == self._run["steps"]

    def phase(self) -> str:
        """Returns the current phase, one of PHASES."""
        if not self.began():
            return "start-up"
        if self.saving():
            return "save"
        if self.ended():
            return "end"
        return "evaluation" if self.evaluating() else "steps"

    @property
    def _run(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())["run"]

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = (self.folder / "metrics.jsonl").stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


def let_programs_be_signaled() -> None:
    """Makes started programs receive SIGINT and SIGHUP, also under nohup and in a shell's background job.

    They would inherit that a signal is ignored, but they do not inherit a handler.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def names(folder: Path) -> list[str]:
    """Returns the names in a folder; empty if the folder does not exist."""
    try:
        return os.listdir(folder)  # noqa: PTH208 — called every millisecond; Path objects would be too slow
    except (FileNotFoundError, NotADirectoryError):
        return []


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps of a run folder's complete checkpoints, in ascending order."""
    return sorted(int(name) for name in names(folder / "checkpoints") if name.isdigit())


def wait(process: Run, seen: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Polls every millisecond: True once `seen` is true, False once the process has ended.

    Raises:
        Broken: if neither happens in time.
    """
    until = time.monotonic() + patience
    while not seen():
        if process.poll() is not None:
            return False
        if time.monotonic() > until:
            raise Broken(f"it hung for {patience:.0f} s; exit statuses of its processes: {process.statuses}")
        time.sleep(0.001)
    return True


def after(seconds: float) -> Callable[[], bool]:
    """Returns a condition that becomes true after `seconds`."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


@contextlib.contextmanager
def cleared(process: Run):
    """Kills the process and its group at the end."""
    try:
        yield
    finally:
        process.send_group(signal.SIGKILL)
        process.wait()


def time_whole(command: Command, folder: Path, midway: Callable[[Run, View], None] = lambda process, view: None):
    """Runs the command to its end without a signal, and returns its `Durations`.

    `midway` is called when the run opens metrics.jsonl.

    Raises:
        Broken: if the run fails.
    """
    view, begin = View(folder), time.monotonic()
    process = command.start(folder)
    with cleared(process):
        wait(process, view.began)
        began = time.monotonic()
        midway(process, view)
        wait(process, view.ended)
        ended = time.monotonic()
        finish(process, folder)
    return Durations(began - begin, ended - began, time.monotonic() - ended)


def finish(process: Run, folder: Path) -> None:
    """Waits for the end; raises Broken with the end of the output unless the status is 0."""
    wait(process, lambda: False)
    if process.returncode:
        output = "".join(folder.with_suffix(suffix).read_text()[-1500:] for suffix in (".txt", ".err"))
        raise Broken(f"it ended without a signal, with status {process.returncode}: {output.strip()}")
