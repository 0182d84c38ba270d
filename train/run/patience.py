"""Early stopping: whether a run has had its patience (`--run.patience`). Imports no JAX."""

from collections.abc import Mapping
from typing import Literal


def is_over(scores: Mapping[int, float], mode: Literal["max", "min"], patience: int | None) -> bool:
    """Returns whether the last `patience` evaluations are all no better than the best one before them.

    The scores alone decide, so a run that resumes decides as before.

    Args:
        scores: the metric that decides the best checkpoint, at each evaluated step.
        mode: "max" if the highest score is best, "min" if the lowest is.
        patience: number of evaluations; None: any number, so the result is False.
    """
    if not scores or patience is None:
        return False
    best = best_step(scores, mode)
    return sum(step > best for step in scores) >= patience


def best_step(scores: Mapping[int, float], mode: Literal["max", "min"]) -> int:
    """Returns the step of the best score. If several are equal, it is the first of them."""
    return (max if mode == "max" else min)(sorted(scores), key=scores.__getitem__)
