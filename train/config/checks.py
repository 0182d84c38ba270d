"""Checks of a config before a run starts. The model and the data have their own checks."""

import json
import math

import jax
import numpy as np

from configs.base import Config
from configs.options import Range, Rule
from train.config.flat import differing
from train.config.options import names_with, options_of
from train.config.tree import flat_config
from train.process.errors import UserError
from w2jax.text import count_of

_INT32 = Range(-(2**31), 2**31 - 1)  # of a whole number whose option has no range; XLA aborts at some larger sizes
_FLOAT32_MAX = 3.4028235e38


def check_ranges(config: Config) -> None:
    """Raises UserError if a number is outside the range of its option, does not fit in an int32, or is not finite."""
    for option in options_of(config).values():
        for value in option.value if isinstance(option.value, tuple) else (option.value,):
            if not isinstance(value, int | float):
                continue
            range_ = option.range or (_INT32 if isinstance(value, int) else None)
            if not math.isfinite(value):
                raise UserError(f"{option.flag} must be a finite number{f', {range_}' if range_ else ''}, got {value}")
            if isinstance(value, float) and abs(value) > _FLOAT32_MAX:
                raise UserError(f"{option.flag} must be at most 3.4e38, because it is a float32, got {value}")
            if range_ and value not in range_:
                raise UserError(f"{option.flag} must be {range_}, got {value}")


def check_batch(config: Config, parts: int) -> None:
    """Raises UserError if the batch size is not divisible by devices × accumulated parts, or too small for mixup."""
    size, unit = config.run.batch_size, batch_unit(config, parts)
    if size % unit:
        raise UserError(
            f"--run.batch-size must be divisible by {parts} (devices) × --optim.accumulate {unit // parts}, "
            f"got {size}. Set it to {-(-size // unit) * unit}"
        )
    accumulate = unit // parts
    if flat_config(config).get("augment.mixup") and size // accumulate < 2:
        raise UserError(
            "--augment.mixup needs at least 2 images in each part of a batch, because it blends them, got "
            f"--run.batch-size {size} in {count_of(accumulate, 'part')} (--optim.accumulate). "
            f"Set --run.batch-size to at least {2 * unit}, or leave out --augment.mixup"
        )


def batch_unit(config: Config, parts: int) -> int:
    """The number that must divide the batch size: devices × accumulated parts."""
    return parts * flat_config(config).get("optim.accumulate", 1)


def check_same(config: Config) -> None:
    """Raises UserError in every process if their options differ or do not allow several processes."""
    if jax.process_count() == 1:
        return
    if config.run.on_save_error == "retry":
        raise UserError("--run.on-save-error must be stop with several processes, got retry. Leave the option out")
    from jax.experimental import multihost_utils

    own = names_with(config, Rule.PER_PROCESS)
    ours = json.loads(json.dumps({name: value for name, value in flat_config(config).items() if name not in own}))
    text = np.frombuffer(json.dumps(ours).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, length))
    first = json.loads(np.asarray(text, np.uint8).tobytes())
    differences = [
        f"--{name.replace('_', '-')} is {ours.get(name)} here, but {first.get(name)} in process 0"
        for name in differing(ours, first)
    ]
    same = np.asarray(multihost_utils.process_allgather(np.asarray(not differences))).reshape(-1)
    if differences:
        raise UserError(
            f"process {jax.process_index()} must have the same options as process 0: {'; '.join(differences)}. "
            "Start all processes with the same options"
        )
    if not same.all():
        others = ", ".join(map(str, np.flatnonzero(~same)))
        raise UserError(
            f"process {others} of {len(same)} must have the same options as process 0; its output lists the "
            "differences. Start all processes with the same options"
        )
