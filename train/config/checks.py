"""What a config must satisfy before a run begins, apart from what its model and data have to say."""

import json

import jax
import numpy as np

from configs.base import Config
from train.data.source import InMemorySource, Source
from train.process.errors import UserError
from train.run.files import differing, flattened
from train.run.folder import config_tree

# By the end of an option's name, in these groups.
_GROUPS = ("run.", "optim.", "augment.", "data.", "mesh.")
_COUNTS = (
    *("steps", "batch_size", "log_every", "eval_every", "save_every", "steps_per_call"),
    *("accumulate", "cpu_devices", "cpu_micro_batch"),
)
_PARTS = ("warmup", "b1", "b2", "ema")
_SIZES = ("learning_rate", "weight_decay", "final", "clip", "workers")
_SHARES = ("magnitude", "erase")

# What each of several processes may have of its own.
_OWN = ("distributed.process_id", "data.dir", "data.workers", "data.memory_limit")


def check_numbers(config: Config) -> None:
    """UserError if a number lies outside of what it can be."""
    for name, value in flattened(config_tree(config)).items():
        if not name.startswith(_GROUPS) or value is None:
            continue
        last = name.split(".")[-1]
        for names, fits, wanted in (
            (_COUNTS, lambda x: x >= 1, "at least 1"),
            (_PARTS, lambda x: 0 <= x < 1, "at least 0 and below 1"),
            (_SIZES, lambda x: x >= 0, "at least 0"),
            (_SHARES, lambda x: 0 <= x <= 1, "from 0 to 1"),
        ):
            if last in names and not fits(value):
                raise UserError(f"--{name.replace('_', '-')} must be {wanted}, got {value}")


def check_batch(config: Config, parts: int) -> None:
    """UserError if a batch cannot be cut over the devices and the parts of an accumulated step."""
    size, unit = config.run.batch_size, batch_unit(config, parts)
    if size % unit:
        raise UserError(
            f"--run.batch-size must be divisible by {parts} device(s) × --optim.accumulate {unit // parts}, "
            f"got {size}; the next that is: {-(-size // unit) * unit}"
        )


def batch_unit(config: Config, parts: int) -> int:
    """What the size of a batch is a multiple of: the devices, and the parts of an accumulated step."""
    return parts * flattened(config_tree(config)).get("optim.accumulate", 1)


def check_held(config: Config, source: Source) -> None:
    """UserError if several steps are to be done in a call on a training split that is not held in memory."""
    if config.run.steps_per_call > 1 and not isinstance(source, InMemorySource):
        raise UserError(
            f"--run.steps-per-call above 1 keeps the training split on the device, but {source.name} is streamed; "
            "leave it 1, or raise --data.memory-limit if it fits"
        )


def check_same(config: Config) -> None:
    """UserError, in every process, unless all were started by the config of the first, and it is for several."""
    if jax.process_count() == 1:
        return
    if config.run.on_save_error == "retry":
        raise UserError("--run.on-save-error retry is for one process: several would not agree on what was saved")
    from jax.experimental import multihost_utils

    here = {name: value for name, value in flattened(config_tree(config)).items() if name not in _OWN}
    text = np.frombuffer(json.dumps(here).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, length))
    first = json.loads(np.asarray(text, np.uint8).tobytes())
    here = json.loads(json.dumps(here))
    differ = [
        f"--{name.replace('_', '-')} is {here.get(name)} here, {first.get(name)} there"
        for name in differing(here, first)
    ]
    same = np.asarray(multihost_utils.process_allgather(np.asarray(not differ))).reshape(-1)
    if differ:
        raise UserError(
            f"process {jax.process_index()} was started by other options than process 0: {'; '.join(differ)}. "
            "Give all of them the same"
        )
    if not same.all():
        others = ", ".join(map(str, np.flatnonzero(~same)))
        raise UserError(f"process {others} of {len(same)} was started by other options than this one; it says which")
