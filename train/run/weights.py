"""Loads the model and weights of a run folder, without its task and data."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from train.run.manifest import checkpoint_steps, damage
from w2jax.convert.load_save import without_classes
from w2jax.convert.state_dict import Head, write_tensors
from w2jax.convert.state_dict import read_variables as read_tensors
from w2jax.files import read_json
from w2jax.serialize import module_from_json, with_fields


class RunWeights(NamedTuple):
    """A run's model and its weights."""

    module: nn.Module
    variables: dict[str, Any]
    notes: list[str]
    """Messages for the user: which checkpoint and parameters were read, and which checkpoints are damaged."""


def is_run_folder(path: Path) -> bool:
    """Returns whether the folder has the config and the checkpoints of a run."""
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file()


def load_run(path: Path, head: Head = None, **fields: Any) -> RunWeights:
    """Loads the model of a run, with the weights of its last undamaged checkpoint.

    If the run has a moving average of the parameters (EMA), these are the weights.

    Args:
        path: the run folder.
        head: "drop" removes the classification head; "reinit" makes a new head with `num_classes` classes.
        **fields: new values for fields of the module, such as num_classes, dropout or scan_layers.

    Raises:
        ValueError: if the config does not describe a model, the module has no such field, or every checkpoint is
            damaged or missing.
        OSError: if the config cannot be read.
    """
    trained = describe_run(path)
    variables, notes = read_variables(path)
    tensors = write_tensors(trained, variables, "torch")
    module = with_fields(trained, fields)
    module = without_classes(module) if head == "drop" else module
    return RunWeights(module, read_tensors(module, tensors, head=head)[0], notes)


def describe_run(path: Path, **fields: Any) -> nn.Module:
    """Returns the module that `load_run` would return, without reading a checkpoint.

    Raises:
        ValueError: if the config does not describe a model, or the module has no such field.
        OSError: if the config cannot be read.
    """
    config = path / "config.json"
    try:
        module = module_from_json(read_json(config)["model"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{config} must describe a model, got {error!r}") from error
    return with_fields(module, fields)


def read_variables(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the parameters of the last undamaged checkpoint as NumPy arrays, and messages for the user.

    The parameters are the moving average (EMA) if the run has one. The optimizer state is not read.

    Raises:
        ValueError: if there is no checkpoint yet, all are damaged, or one was saved by a later version.
    """
    from orbax import checkpoint as ocp  # Late import, so that `python -m train.vit --help` does not wait for orbax.

    steps = checkpoint_steps(path / "checkpoints")
    if not steps:
        raise ValueError(f"{path} has no checkpoint yet. Train until the first checkpoint is saved")
    damaged = []
    while (fault := damage(path / "checkpoints" / str(steps[-1]))) is not None:
        damaged.append(f"step {steps.pop()}: {fault}")
        if not steps:
            raise ValueError(f"every checkpoint in {path} is damaged: {'; '.join(damaged)}")
    folder = (path / "checkpoints" / str(steps[-1]) / "state").absolute()
    try:
        with _no_absl_warnings(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
            params = "params" if tree.get("ema") is None else "ema"
            names = [params, "batch_stats"] if tree.get("batch_stats") else [params]
            targets = {name: jax.tree.map(lambda x: np.zeros((), x.dtype), tree[name]) for name in names}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), targets)
            arguments = ocp.args.PyTreeRestore(targets, restore_args=as_numpy, partial_restore=True)
            state = checkpointer.restore(folder, args=arguments)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read the checkpoint {folder}: {error}") from error
    what = "the parameters" if params == "params" else "the moving average (EMA) of the parameters"
    return {"params": state.pop(params), **state}, [
        f"{what} of step {steps[-1]}",
        *(f"skipped damaged checkpoint, {fault}" for fault in damaged),
    ]


@contextmanager
def _no_absl_warnings() -> Iterator[None]:
    """Silences orbax's warning that an item of a checkpoint has no metadata file. Only the step has that file."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
