"""Checks of a config before a run starts. The model and the data have their own checks."""

import json

import jax
import numpy as np

from configs.base import Config
from configs.options import Rule
from train.config.flat import differing
from train.config.options import names_with, options_of
from train.config.tree import flat_config
from train.process.errors import UserError


def check_ranges(config: Config) -> None:
    """Raises UserError if a number is outside the range of its option."""
    for option in options_of(config).values():
        if option.range is not None and isinstance(option.value, int | float) and option.value not in option.range:
            raise UserError(f"{option.flag} must be {option.range}, got {option.value}")


def check_batch(config: Config, parts: int) -> None:
    """Raises UserError if the batch size is not divisible by devices × accumulated parts."""
    size, unit = config.run.batch_size, batch_unit(config, parts)
    if size % unit:
        raise UserError(
            f"--run.batch-size must be divisible by {parts} (devices) × --optim.accumulate {unit // parts}, "
            f"got {size}. Set it to {-(-size // unit) * unit}"
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
