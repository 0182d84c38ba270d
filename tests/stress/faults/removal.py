"""Files of a running process are deleted, moved away or made read-only: it ends with one line, or truly finishes."""

import contextlib
from pathlib import Path

from tests.stress.kill_storm import Aim, wait_for
from tests.stress.running import View, after, cleared, saved_steps, wait
from tests.stress.trial import Trial, mounted, unlink

_DELETED = ("metrics.jsonl", "timing.jsonl", "pictures", "checkpoints", "a checkpoint", "the run folder")


def removal(trial: Trial) -> None:
    """Does one thing to the run folder at a random moment of the training; then runs the command again."""
    folder = trial.place / "run"
    what = trial.rng.choice((*_DELETED, "moved", *(["read-only"] if trial.can_mount else [])))
    event = trial.rng.choice(("line", "save", "evaluation", "report"))
    delay = trial.rng.uniform(0, 0.05 if event == "save" else 0.8)
    trial.story.append(f"{what}, {delay:.3f} s after {event}")
    view = View(folder)
    process = trial.start(folder)
    with cleared(process):
        reached = wait_for(process, view, Aim(event, 1, delay)) and wait(process, after(delay))
        phase = view.phase()
        trial.story.append(f"phase {phase}" if reached else "it finished first")
        with _changed(trial, folder, what):
            finished = trial.end(process, folder).finished
            if finished and reached and phase != "end":  # At the end it has perhaps nothing left to write.
                trial.check_results(folder)
    _again(trial, folder, what)


@contextlib.contextmanager
def _changed(trial: Trial, folder: Path, what: str):
    """Does one thing to the folder, and at the end makes it writable again."""
    if what == "read-only":
        mounted("mount", "--bind", str(folder), str(folder))
        mounted("mount", "-o", "remount,bind,ro", str(folder))
    elif what == "moved":
        folder.rename(folder.with_name("moved"))
    elif what == "the run folder":
        unlink(folder)
    elif what == "a checkpoint":
        unlink(folder / "checkpoints" / str(trial.rng.choice(saved_steps(folder) or [0])))
    else:
        unlink(folder / what)
    try:
        yield
    finally:
        if what == "read-only":
            mounted("umount", "--lazy", str(folder))


def _again(trial: Trial, folder: Path, what: str) -> None:
    """Runs the command again, where the files are now."""
    if what != "the run folder":
        lost = {what} if what.endswith(".jsonl") else set()
        trial.resume(folder.with_name("moved") if what == "moved" else folder, lost)
        return
    if trial.train(folder).finished:  # It may refuse a folder in which only a part of the files exists again.
        trial.check_results(folder)
