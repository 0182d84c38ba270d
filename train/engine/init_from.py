"""A ViT that starts from the weights of a file (`--init-from`), with the architecture of the file."""

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

# Fields that the config decides, not the file: how to train and compute, and the number of classes.
_TRAINING = ("num_classes", "dropout", "attention_dropout", "drop_path", "dtype", "remat", "scan_layers")
_ARCHITECTURE = [name for name in field_names(ViT) if name not in _TRAINING]


def resolve(config: Config, default: Config) -> Config:
    """`config` with the architecture of its file; `default` tells which options the user changed.

    A field that the file does not state, often the number of heads, has the value of a changed option, or else the
    usual value of the file's library. Only the file's description is read.

    Raises:
        UserError: the file cannot be read, or contradicts a changed option.
    """
    if config.init_from is None:
        return config
    model = config.model
    changed = [name for name in _ARCHITECTURE if getattr(model, name) != getattr(default.model, name)]
    module, unknown = _agreeing_module(config.init_from, model, changed)
    fields = [*_TRAINING, *(name for name in changed if name in unknown)]
    return replace(config, model=module.clone(**{name: getattr(model, name) for name in fields}))


def read_initial_params(config: Config, source: Source) -> InitialParams:
    """The initial parameters of a config that `resolve` returned, for images like those of `source`.

    Raises:
        UserError: as `resolve`; or the file's model cannot read such images.
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
        raise UserError(f"the model in {path} reads images of {reads} channel(s), dataset {source.name} has {channels}")
    if height % patch or width % patch:
        fitting = [max(round(side / patch), 1) * patch for side in (height, width)]
        raise UserError(
            f"the patches of {patch} pixels in {path} do not divide images of {height}×{width}; "
            f"add --data.image-size {fitting[0]} {fitting[1]}"
        )
    if model.positions == "learned":
        new = (height // patch, width // patch)
        old = _grid(path, variables["params"]["positions"].shape[1] - model.prefix_positions, new)
        variables = model.resize(variables, (old[0] * patch, old[1] * patch), (height, width))
        notes.append(f"positions {old[0]}×{old[1]}" + (f" → {new[0]}×{new[1]}" if old != new else ""))

    params, classes = dict(variables["params"]), module.num_classes
    if classes != model.num_classes:
        params.pop("head", None)
        notes.append(f"head {classes or 'none'} → {model.num_classes} classes, new")
    else:
        notes.append(f"head {classes} classes")
    if unknown:
        notes.append("not stated by the file: " + ", ".join(f"{name} {getattr(model, name)}" for name in unknown))
    # On the host, so that each device receives only its own part.
    return InitialParams(jax.device_get(params), f"init from {path} ({kind}): {'; '.join([*file_notes, *notes])}")


def _agreeing_module(path: str, model: ViT, names: list[str]) -> tuple[ViT, list[str]]:
    """The file's model, and its fields that the file does not state; the others of `names` must agree with `model`.

    Raises:
        UserError: they disagree, or the file cannot be read.
    """
    with _users_mistakes():
        try:
            module, assumed = _describe(path)
            unknown = list(assumed)
        except ValueError:
            # Some widths have no usual number of heads. Any other fault of the file is raised here again.
            module, assumed = _describe(path, num_heads=model.num_heads)
            unknown = ["num_heads", *assumed]
    if not isinstance(module, ViT):
        raise UserError(f"{path} must contain a ViT, got a {type(module).__name__}")
    against = [
        f"--model.{name.replace('_', '-')}: {path} has {getattr(module, name)}, the config {getattr(model, name)}"
        for name in names
        if name not in unknown and getattr(module, name) != getattr(model, name)
    ]
    if against:
        raise UserError(f"{'; '.join(against)}. Leave the option out, or give another file")
    return module, unknown


def _describe(path: str, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a weights file or a run folder, and those of its fields that are only assumed."""
    return (describe_run(Path(path), **fields), {}) if is_run_folder(Path(path)) else describe(path, **fields)


def _read(path: str, fields: dict[str, Any]) -> tuple[Any, dict[str, Any], str, list[str]]:
    """The model of a weights file or a run folder, its variables, what kind of source it is, and notes on it."""
    if is_run_folder(Path(path)):
        module, variables, notes = load_run(Path(path), **fields)
        return module, variables, "a run folder", notes
    loaded = load_described(path, **fields)
    return loaded.module, loaded.variables, loaded.source, loaded.notes


@contextmanager
def _users_mistakes() -> Iterator[None]:
    """Turns the converter's errors into UserErrors; one may list tensors on several lines."""
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        raise UserError(str(error)) from error


def _grid(path: str, patches: int, new: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns of patches that positions were learned for."""
    if patches == new[0] * new[1]:
        return new
    side = math.isqrt(patches)
    if side**2 == patches:
        return side, side
    raise UserError(
        f"{path} has positions for {patches} patches, which are no square, so that they cannot be made ready for "
        f"{new[0]}×{new[1]}; give images of as many patches by --data.image-size"
    )
