"""The learning rate of each step, from a run's config. Imports no JAX, unlike `train.engine.optim.make_schedule`."""

from collections.abc import Iterator, Mapping
from math import cos, floor, pi
from typing import Any

from train.run.files import is_number

_POINTS = 200
_OPTIONS = ("learning_rate", "warmup_fraction", "final_lr_fraction")


def learning_rates(config: Mapping[str, Any], last: int) -> dict[str, list[dict[str, Any]]]:
    """Returns rows with "step" and "learning_rate" from step 1 to step `last`, for each optimizer of a run.

    The name of the only optimizer is "". An optimizer whose options are missing or wrong is left out.
    """
    optim, run = config.get("optim"), config.get("run")
    total = run.get("steps") if isinstance(run, dict) else None
    if not isinstance(optim, dict) or type(total) is not int or not 0 < last <= total:
        return {}
    lengths = [(entry["done"], entry["steps"]) for entry in config.get("extensions", [])] + [(total, total)]
    optimizers = {"": optim, **optim}
    return {
        name: [{"step": step, "learning_rate": _rate(options, step, lengths)} for step in _steps(last)]
        for name, options in optimizers.items()
        if isinstance(options, dict) and all(is_number(options.get(option)) for option in _OPTIONS)
    }


def _rate(options: Mapping[str, Any], step: int, lengths: list[tuple[int, int]]) -> float:
    """Returns the learning rate of a step, counted from 1: linear warm-up from 0, then cosine decay.

    `lengths` are the numbers of steps that the run was planned for, each with the last step of that part.
    """
    steps = next(steps for done, steps in lengths if step <= done)
    peak, warmup_fraction, final = (float(options[option]) for option in _OPTIONS)
    warmup, updates = floor(round(warmup_fraction * steps, 6)), step - 1
    if updates < warmup:
        return peak * updates / warmup
    fraction = min(1.0, (updates - warmup) / max(1, steps - warmup))
    return peak * (final + (1 - final) * (1 + cos(pi * fraction)) / 2)


def _steps(last: int) -> Iterator[int]:
    """Yields about `_POINTS` steps from 1 to `last`, evenly spaced, with the first and the last one."""
    yield from sorted({1 + round(k * (last - 1) / _POINTS) for k in range(_POINTS + 1)})
