"""One trial of the fault storm: its run, what it did so far, and the checks that all kinds of trials share."""

import random
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.stress.comparing import differences, read_state
from tests.stress.running import ROOT, Broken, Command, Run, View, cleared, saved_steps, time_whole, wait

LIMIT = 300.0  # seconds after which a program counts as hung; a busy machine needs more than one minute
READERS = ("predict", "export", "report", "runs")
_LAST = re.compile(r"Last checkpoint: step ([\d,]+) in |No checkpoint in ")


class Reference(NamedTuple):
    """An uninterrupted run, and a copy of its folder from the middle of the run, as SIGKILL would leave it."""

    whole: Path
    stopped: Path
    start: float
    """Seconds of its start-up."""


class Outcome(NamedTuple):
    """How a program ended."""

    status: int
    output: str
    errors: str

    @property
    def finished(self) -> bool:
        """Whether it did its work; otherwise it refused with one line."""
        return self.status == 0


def make_reference(command: Command, place: Path) -> Reference:
    """Trains without interruption, and copies the run folder when it has two checkpoints and still trains."""
    whole, stopped = place / "whole", place / "stopped"

    def copy(process: Run, view: View) -> None:
        wait(process, lambda: len(saved_steps(whole)) > 1)
        process.send_group(signal.SIGSTOP)
        shutil.copytree(whole, stopped)
        process.send_group(signal.SIGCONT)

    return Reference(whole, stopped, time_whole(command, whole, copy).start)


@dataclass
class Trial:
    """One trial. Its folder `place` is empty at first."""

    rng: random.Random
    command: Command
    reference: Reference
    place: Path
    image: Path
    """An image for train.predict."""
    can_mount: bool
    story: list[str]
    """What was done, for the message of a trial that is lost."""

    def stopped_run(self) -> Path:
        """Returns a new run folder that the command will resume."""
        folder = shutil.copytree(self.reference.stopped, self.place / "run")
        config = folder / "config.json"  # It contains --run.dir.
        config.write_text(config.read_text().replace(str(self.reference.whole), str(folder)))
        return folder

    def start(self, folder: Path, shell: str | None = None) -> Run:
        """Starts the training command with an empty log."""
        for log in self.place.glob("log*"):
            log.unlink()
        return self.command.start(folder, self.place / "log", shell)

    def end(self, process: Run, folder: Path) -> Outcome:
        """Waits for the end of a training, and checks how it ended and what it says about its checkpoints."""
        hung = None
        with cleared(process):
            try:
                wait(process, lambda: False, LIMIT)
            except Broken as error:
                hung = error
        output, errors = ((self.place / f"log{suffix}").read_text(errors="replace") for suffix in (".txt", ".err"))
        if hung is not None:
            raise Broken(f"{hung}; its last lines: {last_lines(output + errors)}")
        outcome = self.checked("training", Outcome(process.returncode, output, errors))
        self.check_claim(outcome, folder)
        return outcome

    def train(self, folder: Path, shell: str | None = None) -> Outcome:
        """Runs the training command to its end, and checks how it ended."""
        return self.end(self.start(folder, shell), folder)

    def read(self, folder: Path, names: Sequence[str]) -> None:
        """Runs some of the READERS on a run folder, and checks that each ends well and changes nothing in it."""
        before = snapshot(folder)
        for name in names:
            out = str(self.place / f"out-{name}")
            inputs = ["--sample", "2", "--out", f"{out}.png"] if self.command.task == "aae" else [str(self.image)]
            options = {"predict": inputs, "export": ["--out", out], "report": ["--out", f"{out}.html"], "runs": []}
            program = [sys.executable, "-m", f"train.{name}", str(folder), *options[name]]
            try:
                ended = subprocess.run(
                    program, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT
                )
            except subprocess.TimeoutExpired:
                raise Broken(f"train.{name} hung for {LIMIT:.0f} s") from None
            self.checked(f"train.{name}", Outcome(ended.returncode, ended.stdout, ended.stderr))
            if changed := changes(before, snapshot(folder)):
                raise Broken(f"train.{name} changed {changed}")

    def checked(self, what: str, outcome: Outcome) -> Outcome:
        """Returns the outcome of a program that finished, or refused with one line and status 1 or 2."""
        lines = [line for line in outcome.errors.splitlines() if line.strip()]
        self.story.append(f"{what}: status {outcome.status}" + (f", {lines[-1]}" if lines else ""))
        if "Traceback" in outcome.output + outcome.errors:
            raise Broken(f"{what}: a traceback, status {outcome.status}: {last_lines(outcome.errors)}")
        if outcome.status not in (0, 1, 2):
            raise Broken(f"{what}: status {outcome.status}: {last_lines(outcome.errors)}")
        if outcome.status and len(lines) != 1:
            raise Broken(f"{what}: {len(lines)} lines instead of one: {last_lines(outcome.errors)}")
        return outcome

    def check_claim(self, outcome: Outcome, folder: Path) -> None:
        """Checks that the checkpoint of an error's "Last checkpoint: step N" is in the folder, and is the last one."""
        claim = _LAST.search(outcome.errors)
        if claim is None:
            return
        claimed = [int(claim[1].replace(",", ""))] if claim[1] else []
        steps = [step for step in saved_steps(folder) if (folder / "checkpoints" / str(step)).is_dir()]
        if steps[-1:] != claimed:
            raise Broken(f"it printed {claim[0]!r}, but the folder has {steps}")
        if claimed:
            read_state(folder)

    def check_results(self, folder: Path, except_for: Collection[str] = ()) -> None:
        """Raises Broken unless a finished run has the reference's results, `except_for` some of the differences."""
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        found = differences(self.reference.whole, folder, last_checkpoint_only=True)
        if found := [what for what in found if what.split(" ")[0] not in except_for]:
            raise Broken(f"the results differ: {', '.join(found)}")

    def resume(self, folder: Path, except_for: Collection[str] = ()) -> None:
        """Runs the training command, which must finish with the reference's results."""
        outcome = self.train(folder)
        if not outcome.finished:
            raise Broken(f"the folder can no longer be used: {outcome.errors}")
        self.check_results(folder, except_for)


Kind = Callable[[Trial], None]
"""Tries one thing, and raises Broken if the run breaks a promise."""


def last_lines(errors: str) -> str:
    """Returns the end of what a program wrote to stderr."""
    return "\n".join(errors.splitlines()[-6:])


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Returns the content of each file below a folder, the target of each link, and the type of everything else."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content: bytes | str = str(path.readlink())
        else:
            content = path.read_bytes() if stat.S_ISREG(mode) else stat.filemode(mode)[0]
        found[path.relative_to(folder).as_posix()] = content
    return found


def changes(before: dict[str, bytes | str], after: dict[str, bytes | str]) -> list[str]:
    """Returns the names that differ between two snapshots."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def unlink(path: Path) -> None:
    """Removes a file, a link or a folder with its content, even while a run writes there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def mounted(*arguments: str) -> bool:
    """Runs `mount` or `umount`; returns whether it worked."""
    return subprocess.run(arguments, capture_output=True, check=False).returncode == 0
