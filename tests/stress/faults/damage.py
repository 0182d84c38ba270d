"""A damaged file of a stopped run: the run ends in the same bits, or the program refuses the folder with one line."""

from pathlib import Path

from tests.stress.running import Broken, saved_steps
from tests.stress.trial import READERS, Trial, changes, snapshot


def damage(trial: Trial) -> None:
    """Flips a bit of a random file, or cuts, empties or removes it; then runs two readers and the training."""
    folder = trial.stopped_run()
    place = trial.rng.choice((".", "pictures", *(f"checkpoints/{step}" for step in saved_steps(folder)[-2:])))
    found = (folder / place).iterdir() if place == "." else (folder / place).rglob("*")
    path = trial.rng.choice(sorted(path for path in found if path.is_file()))
    name = path.relative_to(folder).as_posix()
    trial.story.append(f"{harm(trial, path)} {name}")
    trial.read(folder, trial.rng.sample(READERS, 2))
    before = snapshot(folder)
    outcome = trial.train(folder)
    if outcome.finished:
        # Nothing can tell that a changed row is not the one that was written.
        trial.check_results(folder, {name} if name.endswith(".jsonl") else ())
        return
    if name.startswith("checkpoints/"):
        raise Broken(f"it refused, although another checkpoint of {saved_steps(folder)} is valid: {outcome.errors}")
    if changed := set(changes(before, snapshot(folder))) - {name, "lock"}:
        raise Broken(f"it refused, and changed {sorted(changed)}: {outcome.errors}")


def harm(trial: Trial, path: Path) -> str:
    """Damages a file, and returns what it did."""
    content, how = path.read_bytes(), trial.rng.choice(("flipped", "cut", "emptied", "removed"))
    where = trial.rng.randrange(max(len(content), 1))
    if how == "removed":
        path.unlink()
    elif how == "flipped" and content:
        bit = 1 << trial.rng.randrange(8)
        path.write_bytes(content[:where] + bytes([content[where] ^ bit]) + content[where + 1 :])
        return f"flipped bit {bit} of byte {where} of"
    else:
        path.write_bytes(content[:where] if how == "cut" else b"")
    return f"cut at byte {where}" if how == "cut" else how
