"""Initializes a ViT from weights or a run folder (`--init-from`). Its model and images become the run's."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
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
from train.run.folder import has_checkpoint, read_config, read_image_info
from train.run.weights import describe_run, is_run_folder, load_run
from train.task import InitialParams
from w2jax.convert.hub import pinned
from w2jax.convert.load_save import describe, describe_names, describe_notes, describe_spec, load_described
from w2jax.convert.state_dict import HEADS
from w2jax.convert.vit_configs import square_image
from w2jax.image_spec import ImageSpec
from w2jax.serialize import field_names
from w2jax.text import count_of, first_few
from w2jax.vit import ViT, patch_grid, patch_sides

# Fields that come from the config, not from the file: how to train and compute, and the number of classes.
# A projection of CLIP has no bias, and the classifier that replaces it has one.
_TRAINING = ("num_classes", "head_bias", "dropout", "attention_dropout", "drop_path", "dtype", "remat", "scan_layers")
_ARCHITECTURE = [name for name in field_names(ViT) if name not in _TRAINING]


def resolve(config: Config, default: Config, given: Collection[str] = ()) -> Config:
    """Returns `config` with the architecture of its file, and with the file's way of preparing images.

    The name of a model on the hub gets the commit. A config of the presets finetune and probe is completed.

    `default` is compared with `config` to find the options that the user changed. Some files do not state every field,
    often not the number of heads. Such a field gets the value of the changed option, or else the usual value of the
    file's library. Only the description of the weights is read, not the weights. A run that has a checkpoint resumes
    without the weights. A run that an older version began keeps its own way of preparing images. `given` are the
    options on the command line.

    Raises:
        UserError: if the file cannot be read, or a changed option contradicts it.
    """
    path, model = config.init_from, config.model
    if path is None:
        return completed(config, default, None, given)
    typed = {flag.removeprefix("--model.").removeprefix("no-").replace("-", "_") for flag in given}
    changed = [n for n in _ARCHITECTURE if n in typed or getattr(model, n) != getattr(default.model, n)]
    if _begun_with(path, config.run.dir) and has_checkpoint(config):
        return _resumed(config, default, changed, given)
    path = _pinned(path, config.run.dir)
    module, unknown = _agreeing_module(path, model, changed)
    fields = [*_TRAINING, *(name for name in changed if name in unknown)]
    config = replace(config, init_from=path, model=module.clone(**{name: getattr(model, name) for name in fields}))
    spec = _image_spec(path, module.num_heads, config.normalize)
    config = completed(config, default, None if spec is None else spec.image_size, given)
    begun = Path(str(config.run.dir))
    is_older = (begun / CONFIG).is_file() and "normalize" not in read_config_tree(begun)
    return config if spec is None or is_older else with_spec(config, spec)


def _resumed(config: Config, default: Config, changed: Collection[str], given: Collection[str]) -> Config:
    """Returns what `resolve` returned when the run began. The weights are not read, because they may be gone.

    The run's config has what came from the weights. Options of the user stay, so that the run folder compares them.
    """
    begun = read_config(Path(str(config.run.dir)), Config)
    kept = {name: getattr(begun.model, name) for name in _ARCHITECTURE if name not in changed}
    config = replace(config, init_from=begun.init_from, model=config.model.clone(**kept))
    config = completed(config, default, begun.data.image_size, given)
    images = {n: getattr(config.data, n) or getattr(begun.data, n) for n in ("image_size", "resize", "interpolation")}
    normalize = begun.normalize if config.normalize == "auto" else config.normalize
    return replace(config, data=replace(config.data, **images), normalize=normalize)


def weights_config(path: str, spec: ImageSpec | None, fields: Mapping[str, Any]) -> tuple[Config, ImageSpec, str]:
    """Returns a config for the classifier in a weights file, the way its images are prepared, and a note for the user.

    Images are prepared like `spec`; None: as the files say. If `spec` names no classes, they get the names in the
    files. `fields` are fields of the ViT that the files do not state.

    Raises:
        UserError: the file cannot be read, has no classifier, or does not say how to prepare images.
    """
    with as_weights_error():
        path = pinned(path)
        module, assumed = describe(path, **fields)
        notes = describe_notes(path, **fields)
        spec = spec or describe_spec(path, **fields)
    if not isinstance(module, ViT) or not module.num_classes or not module.head_bias:
        what = "a ViT without a classifier" if isinstance(module, ViT) else f"a {type(module).__name__}"
        raise UserError(f"{path} must contain a ViT with a classifier, got {what}. Choose another file")
    if spec is None:
        raise UserError(
            f"{path} does not say how its images must be prepared. Add --normalize imagenet (or half, clip, none) and "
            "--image-size HEIGHT WIDTH, or put timm's config.json or Hugging Face's preprocessor_config.json beside it"
        )
    if spec.label_names is None:
        spec = replace(spec, label_names=describe_names(path, **fields))
    config = with_spec(Config(Data(image_size=spec.image_size), model=module, init_from=path), spec)
    notes = [f"the weights in {path}", *notes, describe_images(config), *_assumptions(module, assumed)]
    return config, spec, "; ".join(notes)


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
    patch = patch_sides(model.patch_size)
    reads = input_channels(config.normalize, channels)
    variables, adapted = _with_channels(path, variables, math.prod(patch), source.name, reads)
    notes += [describe_images(config), *adapted, *["each gray value is used as R, G and B"] * (channels < reads)]
    new = patch_grid((height, width), patch)
    is_partial = bool(height % patch[0] or width % patch[1])
    if 0 in new or (is_partial and model.partial_patches == "error"):
        fitting = [max(round(side / part), 1) * part for side, part in zip((height, width), patch, strict=True)]
        raise UserError(
            f"--data.image-size must be divisible by {' '.join(map(str, dict.fromkeys(patch)))}, the patch size of "
            f"{path}, got {height} {width}. Add --data.image-size {fitting[0]} {fitting[1]}"
        )
    if model.positions == "learned":
        old_size = _trained_size(path, model, variables["params"]["positions"].shape[1], (height, width))
        old = patch_grid(old_size, patch)
        variables = model.resize(variables, old_size, (height, width))
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
    if begun := _begun_with(path, run_dir):
        return begun
    with as_weights_error():
        return pinned(path)


def _begun_with(path: str, run_dir: str | None) -> str | None:
    """Returns the path or the name with its commit in a run's config if the run began with `path`, else None."""
    folder = Path(str(run_dir))
    saved = read_config_tree(folder).get("init_from") if (folder / CONFIG).is_file() else None
    is_same = isinstance(saved, str) and re.fullmatch(f"{re.escape(path)}(@[0-9a-f]{{40}})?", saved)
    return saved if is_same else None


def _with_channels(
    path: str, variables: dict[str, Any], pixels: int, dataset: str, channels: int
) -> tuple[dict[str, Any], list[str]]:
    """Changes the patch embedding from color to gray images or back, if images with `channels` channels need it.

    `pixels` is the number of pixels of a patch.

    Returns:
        The variables, and a note for the user if they changed.

    Raises:
        UserError: the numbers of channels differ, and are not 1 and 3.
    """
    params = variables["params"]
    projection = params["patch_embed"]["projection"]
    kernel = projection["kernel"]
    reads = kernel.shape[0] // pixels
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
    if is_run_folder(Path(path)):
        return describe_run(Path(path), **fields), {}
    return describe(path, head="if_linear", **fields)


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
    loaded = load_described(path, "if_linear", **fields)
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
        return describe_spec(path, head="if_linear", num_heads=num_heads)
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
    note = "not stated in the file, set from your options or usual values"
    return [f"{note}: {values}"] if values else []


@contextmanager
def as_weights_error() -> Iterator[None]:
    """Turns the converter's errors into UserErrors. Some of them list tensors on several lines."""
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        raise UserError(str(error)) from error


def _trained_size(path: str, model: ViT, positions: int, new: tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of images that have this number of position embeddings: `new`, else a square."""
    patches = positions - model.prefix_positions
    rows, columns = patch_grid(new, model.patch_size)
    old = new if patches == rows * columns else square_image(model, positions)
    if old is None:
        raise UserError(
            f"--data.image-size must give {patches} patches, got {rows}×{columns}. The {patches} position embeddings "
            f"in {path} are not those of a square image, so they cannot be resized. Choose another --data.image-size"
        )
    return old
