"""The run folder of a training by this project's `train`, read without it."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.run.manifest import checkpoint_steps, damage


def is_run_folder(path: Path) -> bool:
    """Whether a training left its config and its checkpoints there."""
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file()


def read_module(path: Path) -> dict[str, Any]:
    """The class and the fields of the module that the run trains.

    Raises:
        ValueError: if its config describes none.
    """
    try:
        return json.loads((path / "config.json").read_text())["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'config.json'} describes no model: {error!r}") from error


def read_variables(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What the run evaluated at its last whole checkpoint, as numpy arrays, and what that is in words.

    Only parameters and statistics are read, not the optimizer's state.

    Raises:
        ValueError: if there is no checkpoint yet, or all are damaged, or one is of a later version.
        ImportError: if orbax is not installed.
    """
    try:
        from orbax import checkpoint as ocp
    except ImportError as error:
        raise ImportError(f"{path} is a run folder, reading it needs orbax: pip install orbax-checkpoint") from error
    steps = checkpoint_steps(path / "checkpoints")
    if not steps:
        raise ValueError(f"{path} has no checkpoint yet; train it to its first one")
    damaged = []
    while (fault := damage(path / "checkpoints" / str(steps[-1]))) is not None:
        damaged.append(f"step {steps.pop()}: {fault}")
        if not steps:
            raise ValueError(f"{path}: every checkpoint is damaged: {'; '.join(damaged)}")
    folder = (path / "checkpoints" / str(steps[-1]) / "state").absolute()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
            params = "params" if tree.get("ema") is None else "ema"
            names = [params, "batch_stats"] if tree.get("batch_stats") else [params]
            wanted = {name: jax.tree.map(lambda x: np.zeros((), x.dtype), tree[name]) for name in names}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            arguments = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
            found = checkpointer.restore(folder, args=arguments)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"the checkpoint {folder} cannot be read: {error}") from error
    what = "the parameters" if params == "params" else "the average of the parameters"
    return {"params": found.pop(params), **found}, [
        f"{what} of step {steps[-1]}",
        *(f"passed over as damaged: {told}" for told in damaged),
    ]
