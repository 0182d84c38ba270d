"""Links, pipes and devices at the names of a run folder: nothing outside changes, and no program waits for ever."""

import os
from pathlib import Path

from tests.stress.running import Broken
from tests.stress.trial import READERS, Trial, changes, snapshot, unlink

_NEW = ("damaged", "mistakes.json", "tensorboard", "checkpoints/18", "pictures/new.png")
"""Names that a run may create later."""


def links(trial: Trial) -> None:
    """Replaces a random name of a stopped run; then runs two readers and the training."""
    folder, outside = trial.stopped_run(), trial.place / "outside"
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    # Most files belong to checkpoints; the others are tried as often.
    upper = [name for name in names if "/" not in name]
    name = trial.rng.choice(trial.rng.choice((sorted(names), sorted(upper), _NEW)))
    path = folder / name
    outside.mkdir()
    (outside / "precious").write_text("precious")
    trial.story.append(f"{_replace(trial, path, outside)} at {name}")
    before = snapshot(outside)
    try:
        trial.read(folder, trial.rng.sample(READERS, 2))
        if trial.train(folder).finished:
            if not (trial.reference.whole / name).exists():
                unlink(path)  # not a file of the run
            trial.check_results(folder, {name})
    finally:
        if changed := changes(before, snapshot(outside)):
            raise Broken(f"outside the folder it changed {changed}")


def _replace(trial: Trial, path: Path, outside: Path) -> str:
    """Puts something else at a path, and returns what it is."""
    what = trial.rng.choice(("link", "link", "link to nothing", "FIFO", "link to /dev/zero", "link to a folder"))
    path.parent.mkdir(exist_ok=True)
    target = {"link": outside / "moved", "link to nothing": outside / "new", "link to a folder": outside}.get(what)
    if what == "link" and path.exists():
        path.rename(outside / "moved")
    unlink(path)
    if what == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(target or "/dev/zero")
    return what
