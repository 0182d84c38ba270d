"""What a config must satisfy before a run begins, apart from what its model and data have to say."""

from configs.base import Config
from train.data.source import Memory, Source
from train.errors import UserError
from train.run_folder import config_tree, flattened

# By the end of an option's name, in these groups.
_GROUPS = ("run.", "optim.", "augment.", "data.")
_COUNTS = ("steps", "batch_size", "log_every", "eval_every", "save_every", "steps_per_call", "accumulate")
_PARTS = ("warmup", "b1", "b2", "ema")
_SIZES = ("learning_rate", "weight_decay", "final", "clip", "workers")
_SHARES = ("magnitude", "erase")


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
    size, accumulate = config.run.batch_size, flattened(config_tree(config)).get("optim.accumulate", 1)
    if size % (parts * accumulate):
        raise UserError(
            f"--run.batch-size must be divisible by {parts} device(s) × --optim.accumulate {accumulate}, got {size}; "
            f"the next that is: {-(-size // (parts * accumulate)) * parts * accumulate}"
        )


def check_held(config: Config, source: Source) -> None:
    """UserError if several steps are to be done in a call on a training split that is not held in memory."""
    if config.run.steps_per_call > 1 and not isinstance(source, Memory):
        raise UserError(
            f"--run.steps-per-call above 1 keeps the training split on the device, but {source.name} is streamed; "
            "leave it 1, or raise --data.memory-limit if it fits"
        )
