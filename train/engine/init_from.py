"""Initializes a ViT from weights or a run folder (`--init-from`). Its model and images become the run's."""

import math
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from einops import reduce, repeat
from flax import linen as nn

from configs.base import Data
from configs.vit import Config
from train.data import Source
from train.data.normalize import input_channels
from train.engine.finetuning import completed
from train.engine.image_options import describe_images, run_spec, with_spec
from train.process.errors import UserError
from train.run.files import CONFIG, IMAGES, read_config_tree
from train.run.folder import read_config, read_image_info
from train.run.weights import describe_run, is_run_folder, load_run
from train.task import InitialParams
from w2jax import ViT
from w2jax.convert.hub import pinned
from w2jax.convert.load_save import describe, describe_spec, load_described
from w2jax.convert.state_dict import HEADS
from w2jax.image_spec import ImageSpec
from w2jax.serialize import field_names
from w2jax.text import count_of, first_few

# Fields that come from the config, not from the file: how to train and compute, and the number of classes.
# A projection of CLIP has no bias, and the classifier that replaces it has one.
_TRAINING = ("num_classes", "head_bias", "dropout", "attention_dropout", "drop_path", "dtype", "remat", "scan_layers")
_ARCHITECTURE = [name for name in field_names(ViT) if name not in _TRAINING]


def resolve(config: Config, default: Config, given: Collection[str] = ()) -> Config:
    """Returns `config` with the architecture of its file, and with the file's way of preparing images.

    The name of a model on the hub gets the commit. A config of the presets finetune and probe is completed.

    `default` is compared with `config` to find the options that the user changed. Some files do not state every field,
    often not the number of heads. Such a field gets the value of the changed option, or else the usual value of the
    file's library. Only the description of the weights is read, not the weights. A run that an older version began
    keeps its own way of preparing images. `given` are the options on the command line.

    Raises:
        UserError: if the file cannot be read, or a changed option contradicts it.
    """
    path, model = config.init_from, config.model
    if path is None:
        return completed(config, default, None, given)
    path = _pinned(path, config.run.dir)
    typed = {flag.removeprefix("--model.").removeprefix("no-").replace("-", "_") for flag in given}
    changed = [n for n in _ARCHITECTURE if n in typed or getattr(model, n) != getattr(default.model, n)]
    module, unknown = _agreeing_module(path, model, changed)
    fields = [*_TRAINING, *(name for name in changed if name in unknown)]
    config = replace(config, init_from=path, model=module.clone(**{name: getattr(model, name) for name in fields}))
    spec = _image_spec(path, module.num_heads, config.normalize)
    config = completed(config, default, None if spec is None else spec.image_size, given)
    begun = Path(str(config.run.dir))
    is_older = (begun / CONFIG).is_file() and "normalize" not in read_config_tree(begun)
    return config if spec is None or is_older else with_spec(config, spec)


def weights_config(path: str, spec: ImageSpec | None) -> tuple[Config, ImageSpec, str]:
    """Returns a config for the classifier in a weights file, the way its images are prepared, and a note for the user.

    Images are prepared like `spec`; None: as the files say.

    Raises:
        UserError: the file cannot be read, has no classifier, or does not say how to prepare images.
    """
    with as_weights_error():
        path = pinned(path)
        module, assumed = describe(path)
        spec = spec or describe_spec(path)
    if not isinstance(module, ViT) or not module.num_classes or not module.head_bias:
        what = "a ViT without a classifier" if isinstance(module, ViT) else f"a {type(module).__name__}"
        raise UserError(f"{path} must contain a ViT with a classifier, got {what}. Choose another file")
    if spec is None:
        raise UserError(
            f"{path} does not say how its images must be prepared. Add --normalize imagenet (or half, clip, none) and "
            "--image-size HEIGHT WIDTH, or put timm's config.json or Hugging Face's preprocessor_config.json beside it"
        )
    config = with_spec(Config(Data(image_size=spec.image_size), model=module, init_from=path), spec)
    return config, spec, "; ".join([f"the weights in {path}", describe_images(config), *_assumptions(module, assumed)])


def read_initial_params(config: Config, source: Source) -> InitialParams:
    """Reads the initial parameters, for a config that `resolve` returned and the image shape of `source`.

    Raises:
        UserError: as `resolve`, or if the file's model cannot be used on these images.
    """
    path, model = _pinned(str(config.init_from), config.run.dir), config.model
    _, unknown = _agreeing_module(path, model, _ARCHITECTURE)
    with as_weights_error():
        module, variables, kind, file_notes, names = _read(
            path, {name: getattr(model, name) for name in ("scan_layers", *unknown)}
        )
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    notes = [f"{sum(x.size for x in jax.tree.leaves(variables)):,} parameters"]

    height, width, channels = source.image_shape
    patch = model.patch_size
    reads = input_channels(config.normalize, channels)
    variables, adapted = _with_channels(path, variables, patch, source.name, reads)
    notes += [describe_images(config), *adapted, *["each gray value is used as R, G and B"] * (channels < reads)]
    is_partial = bool(height % patch or width % patch)
    if min(height, width) < patch or (is_partial and model.partial_patches == "error"):
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
    is_projection = module.head_bias != model.head_bias
    if classes == model.num_classes and not is_projection and names in (None, list(source.label_names)):
        notes.append(f"head with {classes} classes")
    else:
        params = {name: value for name, value in params.items() if name not in HEADS}
        reason = f"the file has {classes or 'no head'}"
        if is_projection and classes:
            reason = f"that of the file has {'a' if module.head_bias else 'no'} bias"
        elif classes == model.num_classes:
            reason = f"the classes of {path} have other names: {first_few(names or [])}"
        notes.append(f"new head with {model.num_classes} classes ({reason})")
    notes += _assumptions(model, unknown)
    # The parameters stay on the host, so that each device receives only its own shard.
    note = f"initialized from {path} ({kind}): {'; '.join([*file_notes, *notes])}"
    return InitialParams(jax.device_get(params), note, "".join(adapted))


def _pinned(path: str, run_dir: str | None) -> str:
    """Returns a path as it is, and the name of a model on the hub as NAME@COMMIT.

    A run that resumes gets the commit from which it started, unless the user named a revision: a branch may have moved.
    """
    folder = Path(str(run_dir))
    saved = read_config_tree(folder).get("init_from") if (folder / CONFIG).is_file() else None
    if isinstance(saved, str) and re.fullmatch(f"{re.escape(path)}@[0-9a-f]{{40}}", saved):
        return saved
    with as_weights_error():
        return pinned(path)


def _with_channels(
    path: str, variables: dict[str, Any], patch: int, dataset: str, channels: int
) -> tuple[dict[str, Any], list[str]]:
    """Changes the patch embedding from color to gray images or back, if images with `channels` channels need it.

    Returns:
        The variables, and a note for the user if they changed.

    Raises:
        UserError: the numbers of channels differ, and are not 1 and 3.
    """
    params = variables["params"]
    projection = params["patch_embed"]["projection"]
    kernel = projection["kernel"]
    reads = kernel.shape[0] // patch**2
    if reads == channels:
        return variables, []
    if {reads, channels} != {1, 3}:
        raise UserError(
            f"--init-from {path} needs images with {count_of(reads, 'channel')}, but dataset {dataset} has {channels}. "
            "Only gray (1) and RGB (3) can be adapted. Choose another file, or prepare the dataset in gray or RGB"
        )
    if channels == 1:
        kernel = reduce(kernel, "(p c) d -> p d", "sum", c=3)
        note = "patch embedding summed over R, G and B for gray images"
    else:
        kernel = repeat(kernel / 3, "p d -> (p c) d", c=3)
        note = "patch embedding divided by 3 and repeated, so that it reads the mean of R, G and B"
    embedding = {**params["patch_embed"], "projection": {**projection, "kernel": kernel}}
    return {**variables, "params": {**params, "patch_embed": embedding}}, [note]


def _agreeing_module(path: str, model: ViT, names: list[str]) -> tuple[ViT, list[str]]:
    """Returns the file's model and the names of the fields that the file does not state.

    The fields in `names` that the file states must equal those of `model`.

    Raises:
        UserError: if a field differs, or the file cannot be read.
    """
    with as_weights_error():
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


def _read(path: str, fields: dict[str, Any]) -> tuple[Any, dict[str, Any], str, list[str], list[str] | None]:
    """Returns the model of a weights file or run folder, its variables, the kind of source, and notes for the user.

    The last value has the names of the classes, if a run or w2jax's file says them, else None. Other libraries may call
    the classes of the same dataset by other names.
    """
    folder = Path(path)
    if is_run_folder(folder):
        module, variables, notes = load_run(folder, **fields)
        names = read_image_info(folder).label_names if (folder / IMAGES).exists() else None
        return module, variables, "a run folder", notes, names
    loaded = load_described(path, **fields)
    names = loaded.spec.label_names if loaded.source == "w2jax" and loaded.spec is not None else None
    return loaded.module, loaded.variables, loaded.source, loaded.notes, None if names is None else list(names)


def _image_spec(path: str, num_heads: int, normalize: Any) -> ImageSpec | None:
    """Returns how images must be prepared for a weights file or run folder; None if it has no description of them.

    Raises:
        UserError: the description is not understood, and `normalize` is "auto".
    """
    folder = Path(path)
    if is_run_folder(folder):
        return run_spec(read_config(folder, Config), read_image_info(folder)) if (folder / IMAGES).exists() else None
    try:
        return describe_spec(path, num_heads=num_heads)
    except ValueError as error:
        if normalize != "auto":
            return None  # The note of `load_described` has the reason.
        raise UserError(
            f"--normalize and --data.image-size must be given for these weights: {error}. Add --normalize imagenet (or "
            "half, clip, none) and --data.image-size HEIGHT WIDTH"
        ) from error


def _assumptions(model: ViT, unknown: Iterable[str]) -> list[str]:
    """Returns a note about the fields that the file does not state, if there are any."""
    values = ", ".join(f"{name} {getattr(model, name)}" for name in unknown)
    note = "not stated in the file, set from your options or usual values (to set others, convert the file first)"
    return [f"{note}: {values}"] if values else []


@contextmanager
def as_weights_error() -> Iterator[None]:
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
        f"{path} do not form a square grid, so they cannot be resized. Choose another --data.image-size"
    )
