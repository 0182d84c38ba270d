"""Runs that are killed again and again, beside one that never is: they must end in the same bits.

    python -m tests.stress.kill_storm [TASK...] [--kills 50] [--seed 0] [--signal KILL|TERM|INT|mixed] [options of the run]

Each task (all four by default) trains its preset `tiny` once from start to end. Then the same command is started,
ended by a signal at a random moment and started again, until it is done, and that over and over in new folders until
all the signals were sent. Every run must end with the State of the first to the bit, the same bytes in metrics.jsonl
and the same files. After SIGTERM and SIGINT a run that was past its start must have ended within 10 s, with status 143
or 130, and have lost no step. All that is known of a run is its files.

Moments are drawn by what the folder shows: while it starts (a quarter), after a random time among its steps (three
eighths), within 50 ms after a save began (a quarter), behind the last step (an eighth). The table counts what a kill
fell into by the files as they then lay there: SIGKILL comes to a process that stands still.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from train.process.setup import silence_libraries

ROOT = Path(__file__).parents[2]
TASKS = ("vit", "lstm", "mha", "aae")
# Saves stand between two lines, so that a checkpoint holds sums of an unfinished window.
OPTIONS = (
    *("--run.steps", "80", "--run.log-every", "4", "--run.eval-every", "20", "--run.save-every", "10"),
    *("--data.train-split", "train[:300]", "--data.test-split", "test[:100]", "--optim.ema", "0.9"),
    *("--run.compilation-cache", "on"),
)
PHASES = ("start-up", "steps", "save", "evaluation", "end")
MOST_WRONG = 10  # Then a storm has seen enough.
GRACE, PATIENCE = 10.0, 300.0  # Seconds: for a run that was asked to end, and for anything else.


class Broken(Exception):
    """What must hold did not."""


class Aim(NamedTuple):
    """When a signal is sent: `delay` seconds after the `nth` time that `event` is seen."""

    event: str
    """start: of the process; line: the first line of metrics.jsonl that it writes; save: a temporary folder appears
    in checkpoints/; end: the last line of metrics.jsonl."""
    nth: int
    delay: float
    kind: signal.Signals = signal.SIGKILL
    group: bool = True
    """To the process with its workers, or to the process alone."""


class Durations(NamedTuple):
    """Seconds that a run took to its first line, from there to its last, and from there to its end."""

    start: float
    steps: float
    end: float


@dataclass(frozen=True)
class Command:
    """A command whose run folder is still to be named."""

    task: str
    options: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, folder: Path) -> subprocess.Popen:
        """The process, in a group of its own; its output is added to FOLDER.txt."""
        with folder.with_suffix(".txt").open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", f"train.{self.task}", "tiny", *self.options, "--run.dir", str(folder)],
                cwd=ROOT,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class View:
    """A run folder as its files show it, since one process was started."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._before = self._stamp()

    def began(self) -> bool:
        """Whether the process opened metrics.jsonl: it is behind its start."""
        return self._stamp() not in (None, self._before)

    def saving(self) -> set[str]:
        """Names of what is being saved."""
        return {name for name in names(self.folder / "checkpoints") if not name.isdigit()}

    def saved(self) -> int:
        """The newest step that was saved, 0 without one."""
        return max((int(name) for name in names(self.folder / "checkpoints") if name.isdigit()), default=0)

    def last_line(self) -> dict[str, Any]:
        """The last whole line of metrics.jsonl; without one, that of step 0."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.folder / "metrics.jsonl").read_bytes().split(b"\n")
            if len(lines) > 1:
                return json.loads(lines[-2])
        return {"step": 0, "split": "train"}

    def ended(self) -> bool:
        """Whether the last line of all is written."""
        last = self.last_line()
        return last["split"] == "test" and last["step"] == self._run["steps"]

    def phase(self) -> str:
        """What the process is at, one of PHASES."""
        if not self.began():
            return "start-up"
        if self.saving():
            return "save"
        if self.ended():
            return "end"
        last = self.last_line()
        due = last["step"] % self._run["eval_every"] == 0 or last["step"] == self._run["steps"]
        return "evaluation" if last["step"] and last["split"] == "train" and due else "steps"

    @property
    def _run(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())["run"]

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = (self.folder / "metrics.jsonl").stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


def names(folder: Path) -> list[str]:
    """What lies in a folder that may not be there."""
    try:
        return os.listdir(folder)  # noqa: PTH208 — a millisecond apart, Path objects would be most of the work
    except FileNotFoundError:
        return []


def wait(process: subprocess.Popen, seen: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Looks every millisecond until `seen` (True) or the process has ended (False).

    Raises:
        Broken: if neither comes.
    """
    until = time.monotonic() + patience
    while not seen():
        if process.poll() is not None:
            return False
        if time.monotonic() > until:
            raise Broken(f"it hung for {patience:.0f} s")
        time.sleep(0.001)
    return True


@contextlib.contextmanager
def cleared(process: subprocess.Popen):
    """Leaves nothing of a process and its group behind."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def time_whole(command: Command, folder: Path) -> Durations:
    """Runs it to its end without a signal.

    Raises:
        Broken: if it fails.
    """
    view, begin = View(folder), time.monotonic()
    process = command.start(folder)
    with cleared(process):
        wait(process, view.began)
        began = time.monotonic()
        wait(process, view.ended)
        ended = time.monotonic()
        finish(process, folder)
    return Durations(began - begin, ended - began, time.monotonic() - ended)


def finish(process: subprocess.Popen, folder: Path) -> None:
    """Waits for the end; Broken with the last words of the process unless its status is 0."""
    wait(process, lambda: False)
    if process.returncode:
        said = folder.with_suffix(".txt").read_text()[-1500:]
        raise Broken(f"it ended by itself with status {process.returncode}: {said.strip()}")


class Hit(NamedTuple):
    """A signal that found a process."""

    aim: Aim
    phase: str
    saved: int
    """The newest checkpoint that there then was."""


def strike(command: Command, folder: Path, aim: Aim) -> Hit | None:
    """Starts it and sends a signal; None if the run was done before.

    Raises:
        Broken: if it ends by itself and not well, hangs, leaves a process behind, or does not end as it should when
            it is asked to.
    """
    view = View(folder)
    process = command.start(folder)
    with cleared(process):
        if not (wait_for(process, view, aim) and wait(process, after(aim.delay))):
            finish(process, folder)
            return None
        if aim.kind is signal.SIGKILL:
            # So that what is looked at is what it leaves.
            os.killpg(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        phase, line = view.phase(), view.last_line()["step"]
        if aim.group:
            os.killpg(process.pid, aim.kind)
        else:
            process.send_signal(aim.kind)
            if aim.kind is signal.SIGKILL:
                os.killpg(process.pid, signal.SIGCONT)  # The workers must see by themselves that it is gone.
        what = f"{aim.kind.name} in phase {phase}"
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            raise Broken(f"{what}: it did not end within {GRACE:.0f} s") from None
        if process.returncode == 0:
            return None  # It was faster.
        wait_alone(process, what)
        if aim.kind is not signal.SIGKILL and phase in ("steps", "save", "evaluation"):
            if process.returncode != 128 + aim.kind:
                raise Broken(f"{what}: it ended with status {process.returncode}, not {128 + aim.kind}")
            if view.saved() < line:
                raise Broken(f"{what}: it had done step {line} and saved only step {view.saved()}")
        return Hit(aim, phase, view.saved())


def wait_for(process: subprocess.Popen, view: View, aim: Aim) -> bool:
    """Whether the event came that a signal waits for."""
    if aim.event == "start":
        return True
    if not wait(process, view.began):
        return False
    if aim.event == "end":
        return wait(process, view.ended)
    if aim.event == "save":
        for _ in range(aim.nth):
            if not (wait(process, lambda: not view.saving()) and wait(process, lambda: bool(view.saving()))):
                return False
    return True


def after(seconds: float) -> Callable[[], bool]:
    """A question that is answered with yes from then on."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def wait_alone(process: subprocess.Popen, what: str) -> None:
    """Broken unless the workers of a process that has ended end too."""
    until = time.monotonic() + GRACE
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise Broken(f"{what}: after {GRACE:.0f} s there still were processes that it had started")


def read_state(folder: Path) -> dict[str, np.ndarray]:
    """Every leaf of the last checkpoint's State by its path."""
    from orbax import checkpoint as ocp

    step = max(int(name) for name in names(folder / "checkpoints") if name.isdigit())
    place = (folder / "checkpoints" / str(step) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(place).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(place, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def files(folder: Path) -> set[str]:
    """All files of a run folder, but for those that orbax names at random."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(path) for path in found if not {"d", "ocdbt.process_0"} & set(path.parts)}


def timed(folder: Path) -> list[int]:
    """The steps of the lines of timing.jsonl; its seconds differ from run to run."""
    return [json.loads(line)["step"] for line in (folder / "timing.jsonl").read_text().splitlines()]


def differences(whole: Path, killed: Path) -> list[str]:
    """In what two finished runs of one command differ, where they must not."""
    found = []
    one, other = read_state(whole), read_state(killed)
    if one.keys() != other.keys():
        found.append(f"leaves of the State {sorted(one.keys() ^ other.keys())}")
    same = {name for name in one.keys() & other.keys() if one[name].dtype == other[name].dtype}
    found += [
        f"State{name}"
        for name in sorted(one.keys() & other.keys())
        if name not in same or one[name].tobytes() != other[name].tobytes()
    ]
    if (whole / "metrics.jsonl").read_bytes() != (killed / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    if timed(whole) != timed(killed):
        found.append("steps of timing.jsonl")
    if files(whole) != files(killed):
        found.append(f"files {sorted(files(whole) ^ files(killed))}")
    found += [
        f"pictures/{name}"
        for name in names(whole / "pictures")
        if (whole / "pictures" / name).read_bytes() != (killed / "pictures" / name).read_bytes()
    ]
    return found


def resumed_from(folder: Path) -> list[int]:
    """The steps that the processes of a run said to go on from."""
    said = folder.with_suffix(".txt").read_text()
    return [int(step.replace(",", "")) for step in re.findall(r"(?:goes on|is finished) at step ([\d,]+)", said)]


def kill_until_done(command: Command, folder: Path, aims: Sequence[Aim]) -> tuple[list[Hit], int]:
    """One run under signals, to its end: which of `aims` hit, and how often it fell back behind its newest checkpoint.

    It is left alone once all aims were tried.

    Raises:
        Broken: as `strike`; its second argument are the hits until then.
    """
    hits: list[Hit] = []
    fell_back = newest = 0
    try:
        for aim in [*aims, None]:
            said = len(resumed_from(folder)) if folder.with_suffix(".txt").exists() else 0
            hit = None if aim is None else strike(command, folder, aim)
            if aim is None:
                time_whole(command, folder)
            fell_back += any(step < newest for step in resumed_from(folder)[said:])
            if hit is None:
                break
            hits.append(hit)
            newest = hit.saved
    except Broken as error:
        raise Broken(str(error), hits) from None
    return hits, fell_back


def draw(rng: random.Random, took: Durations, signals: Sequence[signal.Signals]) -> Aim:
    """A moment to send a signal at."""
    event = rng.choices(("start", "line", "save", "end"), (2, 3, 2, 1))[0]
    # Half of the steps at most, so that a run is hit several times.
    longest = {"start": took.start, "line": took.steps / 2, "save": 0.05, "end": took.end}[event]
    chosen = rng.choice(signals)
    # Ctrl-C goes to all processes of a terminal.
    group = chosen is signal.SIGINT or rng.random() < 0.5
    return Aim(event, rng.randint(1, 4), rng.uniform(0, longest), chosen, group)


def storm(task: str, options: Sequence[str], kills: int, seed: int, signals: Sequence[signal.Signals]) -> bool:
    """Prints a task's line of the table, and before it what went wrong; whether nothing did."""
    rng = random.Random(f"{task} {seed}")
    hits: list[Hit] = []
    runs, fell_back, wrong = 0, 0, []
    with tempfile.TemporaryDirectory() as scratch:
        command = Command(task, (*OPTIONS, *options), {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled"})
        whole = Path(scratch, "whole")
        time_whole(command, whole)
        took = time_whole(command, Path(scratch, "warm"))  # Now all programs are compiled, as in the runs to come.
        wrong += [f"undisturbed: {what}" for what in differences(whole, Path(scratch, "warm"))]
        while len(hits) < kills and len(wrong) < MOST_WRONG:
            folder = Path(scratch, f"killed_{runs}")
            runs += 1
            try:
                more, back = kill_until_done(
                    command, folder, [draw(rng, took, signals) for _ in range(kills - len(hits))]
                )
                fell_back += back
                wrong += [f"run {runs}: {what} after {describe(more)}" for what in differences(whole, folder)]
            except Broken as error:
                more = error.args[1]
                wrong.append(f"run {runs}: {error.args[0]}; before it: {describe(more)}")
            hits += more
    for what in wrong:
        print(what)
    counts = Counter(hit.phase for hit in hits)
    fell_in = "  ".join(f"{counts[phase]:>10}" for phase in PHASES)
    verdict = f"{len(wrong)} WRONG" if wrong else "same bits"
    print(f"{task:<5}{runs:>5}{len(hits):>7}  {fell_in}  {fell_back:>9}  {verdict}", flush=True)
    return not wrong


def describe(hits: Sequence[Hit]) -> str:
    """Signals in one line."""
    return ", ".join(f"{h.aim.kind.name} in {h.phase} ({h.saved} saved)" for h in hits) or "no signal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", choices=(*TASKS, []), metavar="TASK", help="vit, lstm, mha, aae (default: all four)"
    )
    parser.add_argument("--kills", type=int, default=50, help="of each task (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="that the moments follow from (default: 0)")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT", "mixed"), default="KILL", help="(default: KILL)")
    options, of_run = parser.parse_known_args()
    silence_libraries()
    kinds = ("KILL", "TERM", "INT") if options.signal == "mixed" else (options.signal,)
    signals = [signal.Signals[f"SIG{kind}"] for kind in kinds]
    print(f"task  runs  kills  {'  '.join(f'{phase:>10}' for phase in PHASES)}  fell back  verdict", flush=True)
    good = [storm(task, of_run, options.kills, options.seed, signals) for task in options.tasks or TASKS]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
