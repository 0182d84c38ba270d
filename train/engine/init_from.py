"""Initializes a ViT from a weights file or a run folder (`--init-from`), and takes over its architecture."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from configs.vit import Config
from train.data import Source
from train.process.errors import UserError
from train.run.weights import describe_run, is_run_folder, load_run
from train.task import InitialParams
from w2jax import ViT
from w2jax.convert.load_save import describe, load_described
from w2jax.serialize import field_names

# Fields that come from the config, not from the file: how to train and compute, and the number of classes.
_TRAINING = ("num_classes", "dropout", "attention_dropout", "drop_path", "dtype", "remat", "scan_layers")
_ARCHITECTURE = [name for name in field_names(ViT) if name not in _TRAINING]


def resolve(config: Config, default: Config) -> Config:
    """Returns `config` with the architecture of its file.

    `default` is compared with `config` to find the options that the user changed. Some files do not state every field,
    often not the number of heads. Such a field gets the value of the changed option, or else the usual value of the
    file's library. Only the description of the weights is read, not the weights.

    Raises:
        UserError: if the file cannot be read, or a changed option contradicts it.
    """
    if config.init_from is None:
        return config
    model = config.model
    changed = [name for name in _ARCHITECTURE if getattr(model, name) != getattr(default.model, name)]
    module, unknown = _agreeing_module(config.init_from, model, changed)
    fields = [*_TRAINING, *(name for name in changed if name in unknown)]
    return replace(config, model=module.clone(**{name: getattr(model, name) for name in fields}))


def read_initial_params(config: Config, source: Source) -> InitialParams:
    """Reads the initial parameters, for a config that `resolve` returned and the image shape of `source`.

    Raises:
        UserError: as `resolve`, or if the file's model cannot be used on these images.
    """
    path, model = str(config.init_from), config.model
    _, unknown = _agreeing_module(path, model, _ARCHITECTURE)
    with _users_mistakes():
        module, variables, kind, file_notes = _read(
            path, {name: getattr(model, name) for name in ("scan_layers", *unknown)}
        )
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    notes = [f"{sum(x.size for x in jax.tree.leaves(variables)):,} parameters"]

    height, width, channels = source.image_shape
    patch = model.patch_size
    reads = variables["params"]["patch_embed"]["projection"]["kernel"].shape[0] // patch**2
    if reads != channels:
        raise UserError(
            f"--init-from {path} needs images with {reads} channel(s), but dataset {source.name} has {channels}. "
            "Choose another file or dataset"
        )
    if height % patch or width % patch:
        fitting = [max(round(side / patch), 1) * patch for side in (height, width)]
        raise UserError(
            f"--data.image-size must be divisible by {patch}, the patch size of {path}, got {height} {width}. "
            f"Add --data.image-size {fitting[0]} {fitting[1]}"
        )
    if model.positions == "learned":
        new = (height // patch, width // patch)
        old = _grid(path, variables["params"]["positions"].shape[1] - model.prefix_positions, new)
        variables = model.resize(variables, (old[0] * patch, old[1] * patch), (height, width))
        resized = "" if old == new else f", resized to {new[0]}×{new[1]}"
        notes.append(f"position embeddings {old[0]}×{old[1]}{resized}")

    params, classes = dict(variables["params"]), module.num_classes
    if classes != model.num_classes:
        params.pop("head", None)
        notes.append(f"new head with {model.num_classes} classes (the file has {classes or 'no head'})")
    else:
        notes.append(f"head with {classes} classes")
    if unknown:
        values = ", ".join(f"{name} {getattr(model, name)}" for name in unknown)
        notes.append(f"not stated in the file, set from your options or usual values: {values}")
    # The parameters stay on the host, so that each device receives only its own shard.
    note = f"initialized from {path} ({kind}): {'; '.join([*file_notes, *notes])}"
    return InitialParams(jax.device_get(params), note)


def _agreeing_module(path: str, model: ViT, names: list[str]) -> tuple[ViT, list[str]]:
    """Returns the file's model and the names of the fields that the file does not state.

    The fields in `names` that the file states must equal those of `model`.

    Raises:
        UserError: if a field differs, or the file cannot be read.
    """
    with _users_mistakes():
        try:
            module, assumed = _describe(path)
            unknown = list(assumed)
        except ValueError:
            # Some widths have no usual number of heads. For any other error, this call raises it again.
            module, assumed = _describe(path, num_heads=model.num_heads)
            unknown = ["num_heads", *assumed]
    if not isinstance(module, ViT):
        raise UserError(f"--init-from {path} must contain a ViT, got a {type(module).__name__}. Choose another file")
    against = [
        f"--model.{name.replace('_', '-')} must be {getattr(module, name)}, got {getattr(model, name)}"
        for name in names
        if name not in unknown and getattr(module, name) != getattr(model, name)
    ]
    if against:
        raise UserError(
            f"{'; '.join(against)}: --init-from {path} sets the architecture. Leave out these options, or choose "
            "another file"
        )
    return module, unknown


def _describe(path: str, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the model of a weights file or run folder, and its fields whose values are only assumed."""
    return (describe_run(Path(path), **fields), {}) if is_run_folder(Path(path)) else describe(path, **fields)


def _read(path: str, fields: dict[str, Any]) -> tuple[Any, dict[str, Any], str, list[str]]:
    """Returns the model of a weights file or run folder, its variables, the kind of source, and notes for the user."""
    if is_run_folder(Path(path)):
        module, variables, notes = load_run(Path(path), **fields)
        return module, variables, "a run folder", notes
    loaded = load_described(path, **fields)
    return loaded.module, loaded.variables, loaded.source, loaded.notes


@contextmanager
def _users_mistakes() -> Iterator[None]:
    """Turns the converter's errors into UserErrors. Some of them list tensors on several lines."""
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        raise UserError(str(error)) from error


def _grid(path: str, patches: int, new: tuple[int, int]) -> tuple[int, int]:
    """Returns the grid (rows, columns) of patches that the position embeddings were trained for."""
    if patches == new[0] * new[1]:
        return new
    side = math.isqrt(patches)
    if side**2 == patches:
        return side, side
    raise UserError(
        f"--data.image-size must give {patches} patches, got {new[0]}×{new[1]}. The {patches} position embeddings in "
        f"{path} do not form a square grid, so they cannot be resized"
    )
