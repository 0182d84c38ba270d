"""Chooses a checkpoint of a run by name: the last one, the best one, or a step."""

from pathlib import Path
from typing import NamedTuple

from train.run.files import CHECKPOINTS, METRICS, is_number, read_lines
from train.run.manifest import checkpoint_steps, damage, saved_scores
from train.run.patience import best_step
from train.run.record import read_task_info
from w2jax.text import first_few, shorten

LAST, BEST = "last", "best"


class Choice(NamedTuple):
    """A checkpoint of a run."""

    step: int
    reason: str
    """Why the checkpoint is the best one; "" if it was not chosen for its score."""
    skipped: list[str]
    """The damaged checkpoints after it, with their faults."""


def choose_checkpoint(run_dir: Path, checkpoint: str = LAST) -> Choice:
    """Chooses a checkpoint and verifies its files.

    Args:
        run_dir: the run folder.
        checkpoint: "last": the last undamaged one. "best": the one with the best score of those that still exist. The
            score is the test metric that ranks runs. Or a step, such as "500".

    Raises:
        ValueError: if there is no such checkpoint, it is damaged, or a later version saved it.
        UserError: if the files with the scores are damaged.
    """
    steps = checkpoint_steps(run_dir / CHECKPOINTS)
    if checkpoint not in (LAST, BEST) and not (checkpoint.isascii() and checkpoint.isdecimal()):
        raise ValueError(f"checkpoint must be {LAST}, {BEST} or a step, got {shorten(checkpoint)!r}")
    if not steps:
        raise ValueError(f"{run_dir} has no checkpoint yet. Train until the first checkpoint is saved")
    if checkpoint == LAST:
        return _last(run_dir, steps)
    step, reason = _best(run_dir, steps) if checkpoint == BEST else (int(checkpoint), "")
    if step not in steps:
        existing = ", ".join(map(str, steps))
        raise ValueError(f"checkpoint must be the step of a checkpoint in {run_dir} ({existing}), got {step}")
    if (fault := damage(_folder(run_dir, step))) is not None:
        raise ValueError(f"the checkpoint of step {step} in {run_dir} is damaged: {fault}. Choose another checkpoint")
    return Choice(step, reason, [])


def _folder(run_dir: Path, step: int) -> Path:
    return run_dir / CHECKPOINTS / str(step)


def _last(run_dir: Path, steps: list[int]) -> Choice:
    damaged = []
    for step in reversed(steps):
        if (fault := damage(_folder(run_dir, step))) is None:
            return Choice(step, "", damaged)
        damaged.append(f"step {step}: {fault}")
    raise ValueError(f"every checkpoint in {run_dir} is damaged: {first_few(damaged, '; ')}")


def _best(run_dir: Path, steps: list[int]) -> tuple[int, str]:
    lines = read_lines(run_dir / METRICS)
    info = read_task_info(run_dir, lines)
    metric = info.best_metric
    tests = [line for line in lines if line.get("split") == "test"]
    scores = {line["step"]: line[metric] for line in tests if is_number(line.get(metric))}
    # The checkpoints have checksums, so their scores count more than those of metrics.jsonl.
    scores |= saved_scores(_folder(run_dir, _last(run_dir, steps).step))
    kept = {step: scores[step] for step in steps if step in scores}
    if not kept:
        raise ValueError(
            f"checkpoint must be {LAST} or a step for {run_dir}, got {BEST}, but no checkpoint was evaluated. "
            f"Pass {LAST}"
        )
    step, overall = best_step(kept, info.best_mode), best_step(scores, info.best_mode)
    reason = f"best {metric}, {scores[step]:.4f}"
    if scores[overall] != scores[step]:
        reason += f"; step {overall} scored {scores[overall]:.4f}, which is better, but its checkpoint no longer exists"
    return step, reason
