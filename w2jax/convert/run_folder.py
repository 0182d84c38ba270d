"""The run folder of a training by this project's `train`, read without it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np


class Run(NamedTuple):
    """What a run folder holds of a model."""

    module: dict[str, Any]
    """The class and the fields of the module."""
    variables: dict[str, Any]
    """Numpy arrays: the parameters that the run evaluated, and statistics of batch norm if there are any."""
    note: str


def is_run_folder(path: Path) -> bool:
    """Whether a training left its config and its checkpoints there."""
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file()


def read_run(path: Path) -> Run:
    """The module and the variables of a run's last checkpoint.

    Only the parameters are read, not the optimizer's state.

    Raises:
        ValueError: if there is no checkpoint yet, or the config describes no module.
        ImportError: if orbax is not installed.
    """
    try:
        from orbax import checkpoint as ocp
    except ImportError as error:
        raise ImportError(f"{path} is a run folder, reading it needs orbax: pip install orbax-checkpoint") from error
    try:
        module = json.loads((path / "config.json").read_text())["model"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'config.json'} describes no model: {error!r}") from error
    steps = [int(step.name) for step in (path / "checkpoints").iterdir() if step.name.isdigit()]
    if not steps:
        raise ValueError(f"{path} has no checkpoint yet; train it to its first one")
    folder = (path / "checkpoints" / str(max(steps)) / "state").absolute()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
            averaged = tree.get("ema") is not None
            names = ["ema" if averaged else "params", *(["batch_stats"] if tree.get("batch_stats") else [])]
            wanted = {name: jax.tree.map(lambda x: np.zeros((), x.dtype), tree[name]) for name in names}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            arguments = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
            found = checkpointer.restore(folder, args=arguments)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the checkpoint {folder} cannot be read: {error}") from error
    variables = {"params": found[names[0]]} | {name: found[name] for name in names[1:]}
    what = "the average of the parameters" if averaged else "the parameters"
    return Run(module, variables, f"{what} of step {max(steps)}")
