"""Attacks training runs in every way we know, and checks that no results are lost.

    python -m tests.stress.fault_storm [TASK...] [--seconds 120] [--seed N] [--trial K]

The kinds of trials are in tests/stress/faults/, one file each: signals, damaged files, a full disk, files removed from
a running process, closed pipes, links. A round tries each kind once, with one task (default: one of all) and random
options. Its trials are compared with one uninterrupted run. Rounds repeat until the seconds are over, and the first
round is always completed.

A trial is lost if a run ends in other bits, prints a traceback, hangs, says that it saved what is not saved, changes a
file outside its folder, or cannot be resumed although a checkpoint is valid. For each lost trial the program prints the
command that repeats it. At the end it prints a table, and exits with status 1 if a trial was lost.

The default seed is the date, so that each day other trials are drawn. A full disk is a small tmpfs, which needs the
program `unshare`. Without it, file sizes are limited instead, and the table reports this.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.tasks import TASKS
from tests.stress.faults.damage import damage
from tests.stress.faults.disk import full_disk
from tests.stress.faults.links import links
from tests.stress.faults.pipes import pipes
from tests.stress.faults.removal import removal
from tests.stress.faults.signals import signals
from tests.stress.running import Broken, Command, let_programs_be_signaled
from tests.stress.trial import Kind, Reference, Trial, make_reference
from train.process.setup import silence_libraries

# A save comes between two rows of metrics.jsonl, and not at each evaluation.
OPTIONS = (
    *("--run.steps", "24", "--run.log-every", "2", "--run.eval-every", "8", "--run.save-every", "6"),
    *("--run.batch-size", "16", "--data.train-split", "train[:200]", "--data.test-split", "test[:50]"),
    *("--run.compilation-cache", "on"),
)
CHOICES: dict[str, tuple[str, ...]] = {
    "steps per call": ("--run.steps-per-call", "4"),
    "accumulate": ("--optim.accumulate", "2"),
    "ema": ("--optim.ema", "0.9"),
    "workers": ("--data.memory-limit", "0", "--data.workers", "2"),
    "retry": ("--run.on-save-error", "retry"),
    "two processes": (),
}
APART = ({"steps per call", "workers"}, {"retry", "two processes"})
"""Options that exclude each other."""
KINDS: dict[str, Kind] = {
    "signals": signals,
    "damaged file": damage,
    "full disk": full_disk,
    "removed while running": removal,
    "closed pipes": pipes,
    "links": links,
}
_NAMESPACE = "FAULT_STORM_NAMESPACE"


def draw_command(rng: random.Random, tasks: Sequence[str], compiled: Path) -> tuple[str, Command]:
    """Draws a task and options; returns their description and the command."""
    task = rng.choice(list(tasks))
    possible = [name for name in CHOICES if (task, name) != ("aae", "accumulate")]
    chosen = rng.sample(possible, rng.randint(0, 2))
    if set(chosen) in APART:
        chosen.pop()
    chosen.sort()
    options = [*OPTIONS, *(["--metric-examples", "50"] if task == "aae" else [])]
    options += [word for name in chosen for word in CHOICES[name]]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0",  # compiles faster
    }
    command = Command(task, tuple(options), environment, 2 if "two processes" in chosen else 1)
    return f"{task}, {' + '.join(chosen) or 'plain'}", command


class Storm:
    """Draws and runs trials. A trial depends only on the tasks, the seed and its number."""

    def __init__(self, tasks: Sequence[str], seed: int, scratch: Path, can_mount: bool):
        self._tasks, self._seed, self._scratch, self._can_mount = tasks, seed, scratch, can_mount
        self._references: dict[str, Reference] = {}
        self._image = scratch / "image.png"
        Image.fromarray(np.arange(28 * 28, dtype=np.uint32).reshape(28, 28).astype(np.uint8)).save(self._image)

    def run(self, number: int, tell: bool) -> tuple[str, bool]:
        """Runs a trial. Prints its story if it is lost, or to `tell` it. Returns its kind, and whether it was good."""
        about, command = draw_command(
            random.Random(f"{self._seed} {number // len(KINDS)}"), self._tasks, self._scratch / "compiled"
        )
        name, kind = list(KINDS.items())[number % len(KINDS)]
        place = self._scratch / f"trial-{number}"
        place.mkdir()
        rng, story, began = random.Random(f"{self._seed} trial {number}"), [], time.monotonic()
        try:
            kind(Trial(rng, command, self._reference(about, command), place, self._image, self._can_mount, story))
            fault = None
        except Exception as error:  # also one of a checkpoint that cannot be read
            fault = str(error) if isinstance(error, Broken) else repr(error)
        shutil.rmtree(place, ignore_errors=True)
        print(f"trial {number}: {name}; {about}; {time.monotonic() - began:.0f} s; {'ok' if fault is None else 'LOST'}")
        if fault is not None or tell:
            again = f"python -m tests.stress.fault_storm {' '.join(self._tasks)} --seed {self._seed} --trial {number}"
            print("\n".join(f"    {what}" for what in [*story, fault or "ok", again]))
        sys.stdout.flush()
        return name, fault is None

    def _reference(self, about: str, command: Command) -> Reference:
        """Returns the uninterrupted run of a command, which is trained at its first use."""
        if about not in self._references:
            place = self._scratch / f"reference-{len(self._references)}"
            place.mkdir()
            self._references[about] = make_reference(command, place)
        return self._references[about]


def enter_namespace() -> bool:
    """Restarts this program where it may mount file systems, which vanish with it. Returns whether it may."""
    if _NAMESPACE in os.environ:
        return True
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    trial_mount = [*unshare, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]  # visible only there
    if shutil.which("unshare") is None or subprocess.run(trial_mount, capture_output=True).returncode:
        return False
    module = ["-m", "tests.stress.fault_storm", *sys.argv[1:]]
    os.execvpe("unshare", [*unshare, sys.executable, *module], os.environ | {_NAMESPACE: "1"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tasks", nargs="*", choices=(*TASKS, []), metavar="TASK", help=f"tasks: {', '.join(TASKS)} (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=120, help="start no trial after this time (default: 120)")
    parser.add_argument("--seed", type=int, default=int(time.strftime("%Y%m%d")), help="default: the date")
    parser.add_argument("--trial", type=int, help="run only the trial with this number")
    options = parser.parse_args()
    can_mount = enter_namespace()
    silence_libraries()
    let_programs_be_signaled()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the started programs too
    until = time.monotonic() + options.seconds
    print(f"seed {options.seed}", flush=True)
    tried, lost = Counter(), Counter()
    with tempfile.TemporaryDirectory() as scratch:
        storm = Storm(options.tasks or TASKS, options.seed, Path(scratch), can_mount)
        number = options.trial or 0
        while options.trial is None or number == options.trial:
            if options.trial is None and time.monotonic() > until and number >= len(KINDS):
                break
            name, good = storm.run(number, tell=options.trial is not None)
            tried[name] += 1
            lost[name] += not good
            number += 1
    print(f"{'kind of trial':<24}{'tried':>7}{'lost':>7}")
    for name in KINDS:
        note = "" if can_mount or name != "full disk" else "  (a limit of file sizes; nothing can be mounted here)"
        print(f"{name:<24}{tried[name]:>7}{lost[name]:>7}{note}")
    sys.exit(bool(lost.total()))


if __name__ == "__main__":
    main()
