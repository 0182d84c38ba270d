"""Closed or full standard streams: the run finishes with the same bits, and writes nothing else."""

from tests.stress.running import Broken
from tests.stress.trial import Trial, last_lines

_LINES = (
    '"$@" | head -n 0',
    '"$@" | head -n 2',
    'exec "$@" >&-',
    'exec "$@" 2>&-',
    'exec "$@" <&-',
    'exec "$@" <&- >&- 2>&-',
    'exec "$@" >/dev/full',
    'exec "$@" 2>/dev/full',
    'exec "$@" >/dev/full 2>/dev/full',
)


def pipes(trial: Trial) -> None:
    """Trains a new or a stopped run with changed streams."""
    line = trial.rng.choice(_LINES)
    folder = trial.stopped_run() if trial.rng.random() < 0.5 else trial.place / "run"
    trial.story.append(line)
    outcome = trial.train(folder, line)
    if not outcome.finished or outcome.errors:
        raise Broken(f"status {outcome.status}, and it wrote {last_lines(outcome.errors)!r}")
    trial.check_results(folder)
