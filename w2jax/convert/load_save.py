"""Load a module with its variables from a weight file, and save them to a file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from w2jax.convert.files import Weights, read_weights
from w2jax.convert.hub import local_path
from w2jax.convert.image_configs import PREPROCESSOR, assumed_spec, config_names, exported_spec, image_spec
from w2jax.convert.lazy_tensor import LazyTensor
from w2jax.convert.prefixes import under, without_wrappers
from w2jax.convert.saving import IMAGE_METADATA, METADATA, save_described
from w2jax.convert.schema import Leaf, module_leaves
from w2jax.convert.state_dict import Rename, prefix_of, read_variables
from w2jax.convert.timm_names import check_model
from w2jax.convert.vit_architecture import join_chunks, known_pairs, read_architecture, recognize, unstack_layers
from w2jax.convert.vit_heads import FileHead, Head, with_usual_head
from w2jax.files import json_object, read_json
from w2jax.image_spec import ImageSpec
from w2jax.module import field_names
from w2jax.serialize import check_field_names, module_from_json, spec_from_json, with_fields
from w2jax.text import count_of, first_few, shorten
from w2jax.vit import ViT

EXPORTED_IMAGES = "images.json"  # the file of train.export beside the weights

# Prefixes of the parameters in a file with a complete training state, and prefixes of the rest of the state.
_PARAMETERS = ("opt/target/", "params/", "target/")
_TRAINING_STATE = ("opt/", "chrono/", "extra/")

_DEPTHS = ("depth", "num_layers", "encoder_depth", "decoder_depth")
_LISTS = ("hidden_sizes", "batch_norm")  # fields that are lists with one entry per layer
_HARMLESS = 2**16  # a field up to this value needs little memory, so it is not compared with the tensors


class Loaded(NamedTuple):
    """The content of a weight file."""

    module: nn.Module
    """The module."""
    variables: dict[str, Any]
    """The variables of the module."""
    leaves: Mapping[str, Leaf]
    """Each parameter, by path: shape, dtype and place in `variables`."""
    source: str
    """The name of the file's format."""
    tensors: int
    """The number of tensors in the file."""
    assumed: dict[str, Any]
    """Fields of the module that the file does not determine, with the default values of the library."""
    notes: list[str]
    """Other messages for the user."""
    config: Mapping[str, Any] | None
    """The config.json of the file, or None."""
    spec: ImageSpec | None = None
    """How images must be prepared for the module; None if the files do not say it or are not understood."""
    spec_error: str = ""
    """Why `spec` is None although the files describe images; else ""."""
    image_size: tuple[int, int] | None = None
    """(height, width) in pixels of the images that the position embeddings are for; None if unknown."""


class _Found(NamedTuple):
    """A module that a weight file describes, without its variables."""

    module: nn.Module  # The module.
    source: str  # The name of the file's format.
    assumed: dict[str, Any]  # Fields that the file does not determine.
    config: Mapping[str, Any] | None  # The config.json of the file.
    tensors: dict[str, LazyTensor]  # The module's tensors.
    notes: list[str]  # Messages for the user.
    image_size: tuple[int, int] | None = None  # (height, width) in pixels, if known.
    family: str = "w2jax"  # The library of the file's format.


def load(
    path: str | Path,
    head: Head = None,
    module: nn.Module | None = None,
    rename: Rename | None = None,
    average: bool = True,
    prefix: str | None = None,
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a module and its variables from a file or a folder.

    The file can contain a ViT of timm, Hugging Face, torchvision, Google, Facebook or open_clip, or any module that
    `save` wrote.

    Args:
        path: a `.safetensors`, `.safetensors.index.json` or `.npz` file, torch's `.pt`, `.pth`, `.ckpt`, `.tar` or
            `.bin`, which need torch, or a folder with one of them and optionally a config.json. Or a string, the name
            of a model on the Hugging Face hub: OWNER/NAME or OWNER/NAME@REVISION. It needs huggingface_hub.
        head: "drop" loads the model without the classifier (`num_classes` is 0); "reinit" initializes a new classifier
            (pass `num_classes`). None: the classifier is loaded.
        module: the module of the parameters, if the file does not describe the module. `from_torch` lists the possible
            modules.
        rename: your own names of the parameters, as in `from_torch`. It needs `module`.
        average: read the averaged weights of a torch file that has raw and averaged ones. False: read the raw ones.
        prefix: the start of the names of the module's tensors, such as "teacher.backbone.". The other tensors are left
            out. None: the prefix is found.
        **fields: fields of the ViT. Pass those that the tensors do not determine and that differ from the library's
            defaults, such as num_heads, activation, norm_eps or pool. You can also set fields for training, such as
            dropout or dtype. Pass `image_size`, (height, width) in pixels, if the images are not square. Without it,
            the loader cannot tell which position embeddings belong to the class token and the registers.

    Returns:
        (module, variables).

    Raises:
        FileNotFoundError: the file or the model on the hub does not exist.
        OSError: the model on the hub cannot be downloaded.
        ValueError: the file is broken, incomplete or of another kind. The message lists the tensors that are missing,
            unexpected or have a wrong shape (at most 200). A run folder is of another kind: `python -m train.export`
            writes it to a file.
        ImportError: the file needs torch, and torch is not installed or too old to read files safely. Or the hub needs
            huggingface_hub.
    """
    loaded = load_described(path, head, module, rename, average, prefix, **fields)
    return loaded.module, loaded.variables


def save(
    path: str | Path,
    module: nn.Module,
    variables: Mapping[str, Any],
    format: str | None = None,
    shard_bytes: int | None = None,
    image_size: tuple[int, int] | None = None,
    label_names: Sequence[str] | None = None,
    spec: ImageSpec | None = None,
) -> None:
    """Save a module's variables with the tensor names and layouts of another library.

    A file is written completely or not at all, and replaces an existing one. In a folder, the files are replaced one by
    one.

    Tensors do not contain all fields, for example the kind of GELU and the epsilon of LayerNorm. `.safetensors` and
    `.npz` files store all fields for `load`. In another library you must build the model with the same values.

    Args:
        path: a `.safetensors`, `.npz`, `.pt` or `.pth` file; or a folder, which also gets the config.json of Hugging
            Face or timm, if it is their format.
        module: a module of w2jax.
        variables: its variables.
        format: as in `to_torch`. None: "google" for a ViT in an `.npz` file, else the default of `to_torch`.
        shard_bytes: maximum size in bytes of each file in a folder. None: one file.
        image_size: (height, width) in pixels for Hugging Face's config.json. None: the images are square.
        label_names: names of the classes for Hugging Face's config.json. None: those of `spec`, else LABEL_0 ….
        spec: how images must be prepared. `.safetensors` and `.npz` files store it for `load_pretrained`,
            and folders of Hugging Face and timm in their own files.

    Raises:
        ValueError: the format cannot express the module, or the file type is unknown.
        ImportError: a `.pt` or `.pth` file needs torch, and torch is not installed.
    """
    save_described(path, module, variables, format, shard_bytes, image_size, label_names=label_names, spec=spec)


def load_described(
    path: str | Path,
    head: FileHead = None,
    module: nn.Module | None = None,
    rename: Rename | None = None,
    average: bool = True,
    prefix: str | None = None,
    **fields: Any,
) -> Loaded:
    """Load like `load`, and also return the file's format, the assumed fields and messages for the user.

    With `head` "if_linear", a classifier of several layers is left out (`num_classes` is then 0), and any other is
    loaded.
    """
    if rename is not None and module is None:
        raise ValueError("module must be given with rename, got None. Pass the module whose paths are in rename")
    if module is not None and fields:
        raise ValueError(
            f"{', '.join(fields)} cannot be passed together with module. Set the fields of the module instead"
        )
    weights = read_weights(local_path(path), average)
    source, assumed, config = "your model", {}, None
    spec, spec_error, image_size = None, "", None
    try:
        # With rename the user gives complete names, so no prefix is removed.
        tensors, notes = (weights.tensors, []) if rename is not None else parameters_in(weights.tensors)
        left_out: list[str] = []
        if prefix is not None:
            tensors, left_out = under(tensors, prefix)
        elif module is not None and rename is None:
            tensors, left_out = under(tensors, prefix_of(module, tensors))
        notes = notes + left_out
        if module is None:
            found = _module_in(weights, tensors, head, fields)
            module, source, assumed, config, tensors, left_out, image_size, family = found
            notes += left_out
            try:
                spec = _spec(weights, found)
            except ValueError as error:  # The weights can be used without it.
                spec_error = str(error)
                notes.append(f"how to prepare images is unknown, because {error}")
            if spec is not None and family in ("torchvision", "google"):
                notes.append(f"images are assumed to be prepared as for {family}'s published models")
        module = without_classes(module) if head == "drop" else module
        variables, leaves = read_variables(module, tensors, rename, None if head == "if_linear" else head)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    notes = weights.notes + notes
    if config is not None and source != "w2jax":
        notes.append(f"{'open_clip_' if 'model_cfg' in config else ''}config.json was read too")
    count = len(weights.tensors)
    return Loaded(module, variables, leaves, source, count, assumed, notes, config, spec, spec_error, image_size)


def describe(path: str | Path, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return the module that `load_described` would return and its assumed fields, without reading a tensor."""
    with _header(path, fields) as (_, found):
        module_leaves(found.module)
    return found.module, found.assumed


def describe_notes(path: str | Path, **fields: Any) -> list[str]:
    """Return messages for the user about the tensors that `load` reads from a file or folder, and those it leaves out.

    Args:
        path: as in `load`.
        **fields: as in `load`.

    Raises:
        ValueError: the file is broken.
    """
    with _header(path, fields) as (weights, found):
        return [*weights.notes, *found.notes]


def describe_spec(path: str | Path, **fields: Any) -> ImageSpec | None:
    """Return how images must be prepared for the weights in a file or folder, without reading a tensor.

    Args:
        path: as in `load`.
        **fields: as in `load`.

    Returns:
        The description. For the formats of torchvision and Google, whose files do not have one, it is that of their
        published models. None: the file is of another kind and has no description.

    Raises:
        ValueError: the file is broken, or a value in its description is not understood.
    """
    with _header(path, fields) as (weights, found):
        return _spec(weights, found)


def describe_names(path: str | Path, **fields: Any) -> tuple[str, ...] | None:
    """Return the names of the classes in the files of weights, also if how to prepare images is unknown.

    Args:
        path: as in `load`.
        **fields: as in `load`.

    Returns:
        A name for each class, or None if the files have none.

    Raises:
        ValueError: the file is broken.
    """
    with _header(path, fields) as (weights, found):
        try:
            spec = _spec(weights, found)
        except ValueError:  # The names can be used without it.
            spec = None
        if spec is not None and spec.label_names is not None:
            return spec.label_names
        return config_names(found.config, getattr(found.module, "num_classes", 0))


@contextmanager
def _header(path: str | Path, fields: Mapping[str, Any]) -> Iterator[tuple[Weights, _Found]]:
    """A context with the header of a weight file and the module that it describes. A ValueError names the file."""
    weights, others = read_weights(local_path(path)), {**fields}
    head = others.pop("head", None)
    try:
        yield weights, _module_in(weights, parameters_in(weights.tensors)[0], head, others)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error


def without_classes(module: nn.Module) -> nn.Module:
    """Return the module with `num_classes` 0 if it has this field, else the module."""
    return module.clone(num_classes=0) if hasattr(module, "num_classes") else module


def _module_in(weights: Weights, tensors: dict[str, LazyTensor], head: FileHead, fields: Mapping[str, Any]) -> _Found:
    """Find the module that a file describes."""
    changes = {name: value for name, value in fields.items() if name != "image_size"}
    if METADATA in weights.metadata:
        module = with_fields(_described_module(weights.metadata[METADATA], tensors), changes)
        return _Found(module, "w2jax", {}, weights.config if weights.own_config else None, tensors, [])
    if weights.config is not None and weights.own_config:
        check_model(weights.config.get("architecture"))  # Some of these models have other names of tensors.
    tensors = join_chunks(tensors)
    form, prefix = recognize(tensors)
    check_field_names(ViT, changes)
    tensors, left_out = under(tensors, prefix)
    tensors, notes = with_usual_head(form, tensors, head)
    found = read_architecture(form, known_pairs(form, tensors), tensors, weights.config, fields, weights.own_config)
    if unneeded := [key for key in tensors if key.startswith(form.ignored)]:
        names = first_few([*map(shorten, unneeded)])
        left_out.append(f"left out {count_of(len(unneeded), 'tensor')} (not needed by the ViT): {names}")
    if form.family == "open_clip" and "activation" in found.assumed:
        notes.append(
            "OpenAI's CLIP and some models of open_clip have the same names, but the activation quick_gelu. If this is "
            "such a model, pass activation (--activation quick_gelu)"
        )
    notes = left_out + notes
    return _Found(found.module, form.name, found.assumed, found.config, tensors, notes, found.image_size, form.family)


def _spec(weights: Weights, found: _Found) -> ImageSpec | None:
    """Return how images must be prepared for the module that was found in a file."""
    if IMAGE_METADATA in weights.metadata:
        return spec_from_json(json_object("the description of images", weights.metadata[IMAGE_METADATA].encode()))
    exported = weights.path.with_name(EXPORTED_IMAGES)
    if found.source == "w2jax" and exported.is_file():
        return exported_spec(read_json(exported)) if isinstance(found.module, ViT) else None
    classes = getattr(found.module, "num_classes", 0)
    assumed = assumed_spec(found.family, found.image_size, classes)
    if assumed is not None:
        return assumed
    file = weights.path.with_name(PREPROCESSOR)
    is_huggingface = found.config is not None and "model_type" in found.config
    preprocessor = read_json(file) if is_huggingface and file.is_file() else None
    return image_spec(found.config, preprocessor, classes)


def parameters_in(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], list[str]]:
    """Select the parameters in a file: return them without the rest of a training state, and notes for the user."""
    notes: list[str] = []
    params = dict(tensors)
    for prefix in _PARAMETERS:
        if any(key.startswith(prefix) for key in params):
            rest = [key for key in params if not key.startswith(prefix)]
            state = [key for key in rest if key.startswith(_TRAINING_STATE)]
            if state:
                notes.append(f"the optimizer state was ignored ({count_of(len(state), 'tensor')}, such as {state[0]})")
            params = {key.removeprefix(prefix): params[key] for key in params if key not in set(state)}
            break
    return unstack_layers(without_wrappers(params)), notes


def _described_module(text: str, tensors: Mapping[str, LazyTensor]) -> nn.Module:
    """Build the module that the metadata of a file written by `save` describes.

    Raises:
        ValueError: the description is wrong, or the module has more parameters than the file can contain.
    """
    try:
        module = module_from_json(json_object("the module's description", text.encode(errors="replace")))
        _check_sizes(module, len(tensors), sum(prod(tensor.shape) for tensor in tensors.values()))
    except ValueError as error:
        raise ValueError(shorten(str(error))) from error
    return module


def _check_sizes(module: nn.Module, tensors: int, elements: int) -> None:
    """Raise a ValueError if the module has more layers than tensors, or a size above the number of all elements."""
    for name in field_names(module):
        value: Any = getattr(module, name)
        if isinstance(value, nn.Module):
            _check_sizes(value, tensors, elements)
        sizes: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
        layers: int = sizes[0] if name in _DEPTHS else len(sizes) if name in _LISTS else 0
        if layers > tensors:
            raise ValueError(
                f"{name} in the module's description must be at most {tensors}, the number of tensors, got {layers}"
            )
        if any(isinstance(size, int) and size > max(elements, _HARMLESS) for size in sizes):
            raise ValueError(
                f"{name} in the module's description must be at most {elements}, the number of values in the tensors, "
                f"got {value}"
            )
