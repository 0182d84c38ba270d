"""What a config must satisfy before a run begins, apart from what its model and data have to say."""

from configs.base import Config
from train.errors import UserError


def check_numbers(config: Config) -> None:
    """UserError if a number lies outside of what it can be."""
    run, optim = config.run, config.optim
    counts = {f"--run.{name}": getattr(run, name) for name in ("steps", "batch_size", "log_every", "eval_every")}
    counts |= {"--run.save_every": run.save_every, "--optim.accumulate": optim.accumulate}
    parts = {f"--optim.{name}": getattr(optim, name) for name in ("warmup", "b1", "b2", "ema")}
    sizes = {f"--optim.{name}": getattr(optim, name) for name in ("learning_rate", "weight_decay", "final", "clip")}
    for values, fits, wanted in (
        (counts, lambda x: x >= 1, "at least 1"),
        (parts, lambda x: 0 <= x < 1, "at least 0 and below 1"),
        (sizes, lambda x: x >= 0, "at least 0"),
    ):
        for name, value in values.items():
            if value is not None and not fits(value):
                raise UserError(f"{name.replace('_', '-')} must be {wanted}, got {value}")


def check_batch(config: Config, parts: int) -> None:
    """UserError if a batch cannot be cut over the devices and the parts of an accumulated step."""
    size, accumulate = config.run.batch_size, config.optim.accumulate
    if size % (parts * accumulate):
        raise UserError(
            f"--run.batch-size must be divisible by {parts} device(s) × --optim.accumulate {accumulate}, got {size}; "
            f"the next that is: {-(-size // (parts * accumulate)) * parts * accumulate}"
        )
