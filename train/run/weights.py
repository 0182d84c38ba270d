"""Loads the model and weights of a run folder, without its task and data."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from train.process.absl_log import no_absl_warnings
from train.run.choose import LAST, choose_checkpoint
from w2jax.convert.load_save import without_classes
from w2jax.convert.schema import split_variables
from w2jax.convert.state_dict import read_variables as read_tensors
from w2jax.convert.state_dict import variable_leaves, write_tensors
from w2jax.convert.vit_heads import Head
from w2jax.files import check_growth, read_json
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


def load_run(path: Path, head: Head = None, checkpoint: str = LAST, **fields: Any) -> RunWeights:
    """Loads the model of a run, with the weights of a checkpoint.

    If the run has a moving average of the parameters (EMA), these are the weights.

    Args:
        path: the run folder.
        head: "drop" removes the classification head; "reinit" makes a new head with `num_classes` classes.
        checkpoint: "last", "best" or a step, as in `choose_checkpoint`.
        **fields: new values for fields of the module, such as num_classes, dropout or scan_layers.

    Raises:
        ValueError: if the config does not describe a model, the module has no such field, or the checkpoint is damaged
            or missing.
        OSError: if the config cannot be read.
    """
    trained = describe_run(path)
    variables, notes = read_variables(path, lambda shapes: _check_shapes(trained, shapes), checkpoint)
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
        module = module_from_json(read_json(config, follow_links=False)["model"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{config} must describe a model, got {error!r}") from error
    return with_fields(module, fields)


def check_layers(module: nn.Module, shapes: Mapping[str, Any]) -> None:
    """Raises ValueError if a module of config.json has far more layers than variables of these shapes can have.

    Call this before you build the module, which would take hours.
    """
    arrays = jax.tree.leaves(shapes)
    limit = len(arrays) + max((size for array in arrays for size in array.shape[:1]), default=0)
    for name in ("depth", "num_layers"):
        if (layers := getattr(module, name, 0)) > limit:
            raise ValueError(f"{name} in config.json must be at most {limit} for this checkpoint, got {layers}")


def _check_shapes(module: nn.Module, shapes: dict[str, Any]) -> None:
    """Raises ValueError if variables of these shapes are not those of the module."""
    check_layers(module, shapes)
    split_variables(variable_leaves(module, shapes), shapes, f"the {type(module).__name__} in config.json")


def read_variables(
    path: Path, check: Callable[[dict[str, Any]], None], checkpoint: str = LAST
) -> tuple[dict[str, Any], list[str]]:
    """Returns the parameters of a checkpoint as NumPy arrays, and messages for the user.

    The parameters are the moving average (EMA) if the run has one. The optimizer state is not read.

    Args:
        path: the run folder. It may come from someone else, so its claims are checked before the memory is allocated.
        check: receives the shapes and dtypes of the variables before they are read. It raises ValueError if these are
            not the variables of the expected model.
        checkpoint: "last", "best" or a step, as in `choose_checkpoint`.

    Raises:
        ValueError: if there is no such checkpoint, it is damaged, a later version saved it, the arrays would need far
            more memory than their files, or `check` raises ValueError.
    """
    from orbax import checkpoint as ocp  # Late import, so that `python -m train.vit --help` does not wait for orbax.

    step, reason, skipped = choose_checkpoint(path, checkpoint)
    folder = (path / "checkpoints" / str(step) / "state").absolute()
    try:
        # Orbax warns that an item of a checkpoint has no metadata file. Only the step has that file.
        with no_absl_warnings(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
            params = "params" if tree.get("ema") is None else "ema"
            names = [params, "batch_stats"] if tree.get("batch_stats") else [params]
            stored = {name: tree[name] for name in names}
            check_growth(folder, _bytes_to_read(stored), sum(x.stat().st_size for x in folder.rglob("*")))
            check({name.replace("ema", "params"): jax.tree.map(_shape, stored[name]) for name in names})
            targets = jax.tree.map(lambda x: np.zeros((), x.dtype), stored)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), targets)
            arguments = ocp.args.PyTreeRestore(targets, restore_args=as_numpy, partial_restore=True)
            state = checkpointer.restore(folder, args=arguments)
    except Exception as error:  # For wrong content, orbax may raise any exception.
        reason = "; ".join(line.strip() for line in (str(error) or type(error).__name__).splitlines()[:5])
        raise ValueError(f"cannot read the checkpoint {folder}: {reason}") from error
    what = "the parameters" if params == "params" else "the moving average (EMA) of the parameters"
    return {"params": state.pop(params), **state}, [
        f"{what} of step {step}" + (f" ({reason})" if reason else ""),
        *(f"skipped damaged checkpoint, {fault}" for fault in skipped),
    ]


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _bytes_to_read(stored: dict[str, Any]) -> int:
    """Returns the memory for arrays of a checkpoint. Reading an array decodes whole chunks, which may be larger."""
    arrays = jax.tree.leaves(stored)
    shapes = ((x.dtype, x.shape, x.storage.chunk_shape if x.storage else ()) for x in arrays)
    return sum(np.dtype(dtype).itemsize * max(math.prod(shape), math.prod(chunk)) for dtype, shape, chunk in shapes)
