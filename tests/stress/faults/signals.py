"""SIGKILL, or one to three signals, in each phase of a run; then the run ends in the same bits."""

import signal

from tests.stress.kill_storm import Aim, strike
from tests.stress.running import Broken
from tests.stress.trial import Trial, last_lines

_LONGEST = {"line": 1.5, "save": 0.05, "evaluation": 0.1, "report": 0.5, "end": 0.5}
"""The events of an `Aim` after its start, and the longest delay in seconds. "line" includes the compilation."""
_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def draw(trial: Trial) -> Aim:
    """Draws a moment and the signals. Of several processes, each gets SIGKILL, or one of them SIGTERM."""
    rng, several = trial.rng, trial.command.processes > 1
    event = rng.choice(("start", *_LONGEST))
    delay = rng.uniform(0, trial.reference.start if event == "start" else _LONGEST[event])
    nth = rng.randint(1, 2)
    if rng.random() < 0.3 or (several and event == "start"):
        return Aim(event, nth, delay, group=several or rng.random() < 0.5)
    if several:
        return Aim(event, nth, delay, signal.SIGTERM, group=False)
    more = [(rng.uniform(0, 0.05), rng.choice(_NUMBERS)) for _ in range(rng.randint(0, 2))]
    return Aim(event, nth, delay, rng.choice(_NUMBERS), rng.random() < 0.5, tuple(more))


def signals(trial: Trial) -> None:
    """Sends signals to one or two processes of a run, at random moments, and lets the next process finish."""
    folder = trial.place / "run"
    for _ in range(trial.rng.randint(1, 2)):
        aim = draw(trial)
        sent = "+".join(kind.name for kind in (aim.kind, *(kind for _, kind in aim.more)))
        trial.story.append(f"{sent} {aim.delay:.3f} s after {aim.event} {aim.nth}")
        hit = strike(trial.command, folder, aim)
        trial.story.append("it finished first" if hit is None else f"hit {hit.phase}, step {hit.saved} saved")
        errors = folder.with_suffix(".err").read_text()
        # While Python imports modules, Ctrl-C prints a traceback.
        if "Traceback" in errors and not (hit and hit.phase == "start-up"):
            raise Broken(f"a traceback: {last_lines(errors)}")
        folder.with_suffix(".err").unlink()
    trial.resume(folder)
