"""Kills runs repeatedly, and checks that their results are bit for bit those of an uninterrupted run.

    python -m tests.stress.kill_storm [TASK...] [--kills 50] [--seed 0] [--signal KILL|TERM|INT|mixed] [--times 1]
        [--run.X ...]

Each task (default: all) trains its preset `tiny` once without interruption. Then the same command runs in a new folder.
Signals end it at random moments, and it is restarted after each signal until it finishes. This repeats with new folders
until all signals are sent. Every run must end with the first run's State bit for bit, the same bytes in metrics.jsonl
and the same files. After SIGTERM or SIGINT, a run that has finished its start-up must end within 10 s, with status 143
or 130, and lose no step. `--times 2` sends each of these signals twice, at most 50 ms apart, with the same
requirements. With `--times 3` a run may lose steps. This program only reads the files of a run.

The moment of a signal is random: during the start (a quarter), among the steps (three eighths), within 50 ms after a
save begins (a quarter), after the last step (an eighth). The table counts the phases that the signals hit, which are
read from the run folder. A process is stopped before SIGKILL, so that the folder does not change while it is read.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.helpers.tasks import TASKS
from tests.stress.comparing import differences
from tests.stress.running import (
    PHASES,
    Broken,
    Command,
    Durations,
    Run,
    View,
    after,
    cleared,
    finish,
    let_programs_be_signaled,
    time_whole,
    wait,
)
from train.process.setup import silence_libraries

# Saves come between two rows of metrics.jsonl, so a checkpoint contains the sums of an unfinished window.
OPTIONS = (
    *("--run.steps", "80", "--run.log-every", "4", "--run.eval-every", "20", "--run.save-every", "10"),
    *("--data.train-split", "train[:300]", "--data.test-split", "test[:100]", "--optim.ema", "0.9"),
    *("--run.compilation-cache", "on"),
)
MOST_WRONG = 10  # after so many failures, stop testing a task
GRACE = 10.0  # seconds to wait after a signal


class Aim(NamedTuple):
    """When a signal is sent: `delay` seconds after the `nth` time that `event` is seen."""

    event: str
    """start: the process starts; line: it writes its first row of metrics.jsonl; save: a temporary folder appears in
    checkpoints/; evaluation: one is due; report: an evaluation's row is written; end: it writes the last row."""
    nth: int
    delay: float
    kind: signal.Signals = signal.SIGKILL
    group: bool = True
    """True: send the signal to the process and its workers; False: to the process only."""
    more: tuple[tuple[float, signal.Signals], ...] = ()
    """The further signals to the main process: seconds before each, and its kind."""


class Hit(NamedTuple):
    """A signal that reached a running process."""

    aim: Aim
    phase: str
    saved: int
    """The newest saved step at that moment."""


def strike(command: Command, folder: Path, aim: Aim) -> Hit | None:
    """Starts the command and sends a signal; None if the run finished first.

    Raises:
        Broken: if the run fails, hangs, leaves a process behind, or answers a signal wrongly.
    """
    view = View(folder)
    process = command.start(folder)
    with cleared(process):
        if not (wait_for(process, view, aim) and wait(process, after(aim.delay))):
            finish(process, folder)
            return None
        if aim.kind is signal.SIGKILL:
            # Stop the process first, so that the folder does not change while we read it.
            process.send_group(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        phase, line = view.phase(), view.last_line()["step"]
        if aim.group:
            process.send_group(aim.kind)
        else:
            process.send_signal(aim.kind)
            if aim.kind is signal.SIGKILL:
                process.send_group(signal.SIGCONT)  # The workers must detect that it died.
        for pause, kind in aim.more:
            time.sleep(pause)
            process.send_signal(kind)  # Python sends nothing to a process that has ended.
        what = f"{aim.kind.name} in phase {phase}"
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            raise Broken(f"{what}: it did not end within {GRACE:.0f} s") from None
        if process.returncode == 0:
            return None  # It finished first.
        wait_alone(process, what)
        if aim.kind is not signal.SIGKILL and phase in ("steps", "save", "evaluation"):
            # Python may see two signals that come at once in either order.
            expected = {128 + kind for kind in (aim.kind, *(kind for _, kind in aim.more))}
            if process.returncode not in expected:
                raise Broken(f"{what}: it ended with status {process.returncode}, not {expected}")
            if view.saved() < line and len(aim.more) < 2:
                raise Broken(f"{what}: it had done step {line} and saved only step {view.saved()}")
        return Hit(aim, phase, view.saved())


def wait_for(process: Run, view: View, aim: Aim) -> bool:
    """Waits for the aim's event; False if the process ends first."""
    if aim.event == "start":
        return True
    if not wait(process, view.began):
        return False
    if aim.event in ("evaluation", "report", "end"):
        return wait(process, {"evaluation": view.evaluating, "report": view.reporting, "end": view.ended}[aim.event])
    if aim.event == "save":
        for _ in range(aim.nth):
            if not (wait(process, lambda: not view.saving()) and wait(process, lambda: bool(view.saving()))):
                return False
    return True


def wait_alone(process: Run, what: str) -> None:
    """Raises Broken unless the workers of an ended process end too."""
    until = time.monotonic() + GRACE
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise Broken(f"{what}: after {GRACE:.0f} s processes that it had started were still running")


def resumed_from(folder: Path) -> list[int]:
    """The steps from which the processes of a run printed that they resume."""
    output = folder.with_suffix(".txt").read_text()
    return [
        int(step.replace(",", "")) for step in re.findall(r"(?:Resumed from|already finished at) step ([\d,]+)", output)
    ]


def kill_until_done(command: Command, folder: Path, aims: Sequence[Aim]) -> tuple[list[Hit], int]:
    """Runs a command to its end under signals. After the last aim, no more signals are sent.

    Returns:
        The hits, and how often the run resumed from an older checkpoint than its newest one.

    Raises:
        Broken: as in `strike`; its second argument contains the hits so far.
    """
    hits: list[Hit] = []
    fell_back = newest = 0
    try:
        for aim in [*aims, None]:
            earlier = len(resumed_from(folder)) if folder.with_suffix(".txt").exists() else 0
            hit = None if aim is None else strike(command, folder, aim)
            if aim is None:
                time_whole(command, folder)
            fell_back += any(step < newest for step in resumed_from(folder)[earlier:])
            if hit is None:
                break
            hits.append(hit)
            newest = hit.saved
    except Broken as error:
        raise Broken(str(error), hits) from None
    return hits, fell_back


def draw(rng: random.Random, took: Durations, signals: Sequence[signal.Signals], times: int) -> Aim:
    """Draws a random moment for a signal."""
    event = rng.choices(("start", "line", "save", "end"), (2, 3, 2, 1))[0]
    # At most half of the steps, so that a run gets several signals.
    longest = {"start": took.start, "line": took.steps / 2, "save": 0.05, "end": took.end}[event]
    chosen = rng.choice(signals)
    # Ctrl-C reaches all processes of a terminal.
    group = chosen is signal.SIGINT or rng.random() < 0.5
    more = [(rng.uniform(0, 0.05), chosen) for _ in range(times - 1) if chosen is not signal.SIGKILL]
    return Aim(event, rng.randint(1, 4), rng.uniform(0, longest), chosen, group, tuple(more))


def stress(
    task: str, options: Sequence[str], kills: int, seed: int, signals: Sequence[signal.Signals], times: int
) -> bool:
    """Prints the failures and the task's row of the table; returns True if nothing failed."""
    rng = random.Random(f"{task} {seed}")
    hits: list[Hit] = []
    runs, fell_back, wrong = 0, 0, []
    with tempfile.TemporaryDirectory() as scratch:
        command = Command(task, (*OPTIONS, *options), {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled"})
        whole = Path(scratch, "whole")
        time_whole(command, whole)
        took = time_whole(command, Path(scratch, "warm"))  # with all programs compiled, as in later runs
        wrong += [f"undisturbed: {what}" for what in differences(whole, Path(scratch, "warm"))]
        while len(hits) < kills and len(wrong) < MOST_WRONG:
            folder = Path(scratch, f"killed_{runs}")
            runs += 1
            try:
                more, back = kill_until_done(
                    command, folder, [draw(rng, took, signals, times) for _ in range(kills - len(hits))]
                )
                fell_back += back
                differing = differences(whole, folder, last_checkpoint_only=signals != [signal.SIGKILL])
                wrong += [f"run {runs}: {what} after {describe(more)}" for what in differing]
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
    """Describes the signals in one line."""
    return ", ".join(f"{h.aim.kind.name} in {h.phase} ({h.saved} saved)" for h in hits) or "no signal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", choices=(*TASKS, []), metavar="TASK", help=f"tasks: {', '.join(TASKS)} (default: all)"
    )
    parser.add_argument("--kills", type=int, default=50, help="signals to send for each task (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    parser.add_argument(
        "--signal", choices=("KILL", "TERM", "INT", "mixed"), default="KILL", help="signal to send (default: KILL)"
    )
    parser.add_argument("--times", type=int, default=1, help="how often to send each TERM or INT (default: 1)")
    options, of_run = parser.parse_known_args()
    silence_libraries()
    let_programs_be_signaled()
    kinds = ("KILL", "TERM", "INT") if options.signal == "mixed" else (options.signal,)
    signals = [signal.Signals[f"SIG{kind}"] for kind in kinds]
    print(f"task  runs  kills  {'  '.join(f'{phase:>10}' for phase in PHASES)}  fell back  verdict", flush=True)
    good = [
        stress(task, of_run, options.kills, options.seed, signals, options.times) for task in options.tasks or TASKS
    ]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
