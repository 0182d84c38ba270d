"""Between a module with its variables and a file."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from w2jax.convert.files import Weights, read_weights, write_weights
from w2jax.convert.lazy_tensor import LazyTensor
from w2jax.convert.schema import Leaf, module_leaves
from w2jax.convert.state_dict import Head, Rename, read_variables, variable_leaves, write_tensors
from w2jax.convert.vit_architecture import read_architecture, recognise, unstack_layers
from w2jax.convert.vit_configs import huggingface_config, timm_constructor
from w2jax.convert.vit_tables import different_defaults
from w2jax.files import json_object
from w2jax.module import field_names
from w2jax.serialize import check_field_names, module_from_json, module_to_json, with_fields
from w2jax.text import shorten
from w2jax.vit import ViT

METADATA = "w2jax"  # the key of our files' metadata that describes the module

# Prefixes of the parameters in a whole training state, and of its other parts.
_PARAMETERS = ("opt/target/", "params/", "target/")
_TRAINING_STATE = ("opt/", "chrono/", "extra/")
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DataParallel, of torch.compile, of a class around the model

_DEPTHS = ("depth", "num_layers", "encoder_depth", "decoder_depth")
_LISTS = ("hidden_sizes", "batch_norm")  # fields with an entry a layer
_HARMLESS = 2**16  # a field up to this takes little memory, whatever the tensors are


class Loaded(NamedTuple):
    """The content of a file."""

    module: nn.Module
    variables: dict[str, Any]
    leaves: Mapping[str, Leaf]
    """The parameters by path."""
    source: str
    """The format of the names and layouts."""
    tensors: int
    """How many the file has."""
    assumed: dict[str, Any]
    """Fields of the module that the file does not determine, with the library's usual values."""
    notes: list[str]
    """What else the user should know."""


class Saved(NamedTuple):
    """What was written, and what a user of the other library needs to know."""

    names: list[str]
    """Of the tensors."""
    different: str
    """Fields in which the module differs from the library's defaults, in words; "" if a written config has them."""
    constructor: str
    """The call that builds the model in timm; "" for other formats."""

    def rows(self, path: Path) -> dict[str, str]:
        """A table for the user: text by row."""
        rows = {"written": f"{path}: {len(self.names)} tensors, the first is {self.names[0]}"}
        if self.different:
            rows["differs"] = f"{self.different}: build the model there with these values, or its outputs will differ"
        return rows | ({"in timm": self.constructor} if self.constructor else {})


def load(
    path: str | Path,
    head: Head = None,
    module: nn.Module | None = None,
    rename: Rename | None = None,
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """The module and the variables in a file or folder.

    Args:
        path: `.safetensors`, `.safetensors.index.json`, `.npz`, `.pt` or `.pth` (these need torch), or a folder with
            one of them and perhaps a config.json: a ViT of timm, Hugging Face, torchvision or Google, or any module
            that `save` wrote.
        head: "drop" leaves the classifier out; "reinit" makes a new one with `num_classes`.
        module: the module of the parameters, if the file does not describe it: any module that `from_torch` takes.
        rename: as in `from_torch`, with `module`.
        **fields: fields of the ViT that the tensors do not determine and that differ from that library's defaults, such
            as num_heads, activation, norm_eps or pool; or that matter in training only, such as dropout or dtype. And
            `image_size`, (height, width), if the number of positions does not show which tokens have one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is broken, of another kind (such as a run folder, which `python -m train.export`
            writes to a file), or incomplete: every tensor that is missing, left over or of another shape is listed.
    """
    loaded = load_described(path, head, module, rename, **fields)
    return loaded.module, loaded.variables


def save(
    path: str | Path,
    module: nn.Module,
    variables: Mapping[str, Any],
    format: str | None = None,
    shard_bytes: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> None:
    """Writes a module's variables with the names and layouts of another library.

    A file is written completely or not at all; the files of a folder are replaced one by one. Fields that a library's
    code decides (the kind of GELU, the epsilon of LayerNorm) are kept in the file for `load`; elsewhere, the model must
    be built with the same ones.

    Args:
        path: `.safetensors`, `.npz`, `.pt`, `.pth`; or a folder, with config.json if the format is Hugging Face's.
        module: one of ours.
        variables: its variables.
        format: see `to_torch`; when None, "google" for a ViT in an `.npz`.
        shard_bytes: of a folder: the largest file; None writes one file.
        image_size: height and width for Hugging Face's config.json, if the number of patches is not a square.

    Raises:
        ValueError: if the format cannot express the module, or the kind of file is not known.
    """
    save_described(path, module, variables, format, shard_bytes, image_size)


def load_described(
    path: str | Path,
    head: Head = None,
    module: nn.Module | None = None,
    rename: Rename | None = None,
    **fields: Any,
) -> Loaded:
    """`load`, with the file's format and the fields that were assumed."""
    if rename is not None and module is None:
        raise ValueError("rename needs the module that its paths belong to: give module too")
    if module is not None and fields:
        raise ValueError(f"{', '.join(fields)} are fields of the module: set them there")
    weights = read_weights(path)
    source, assumed = "your model", {}
    try:
        # With the user's own names nothing is a wrapper's prefix.
        tensors, notes = (weights.tensors, []) if rename is not None else parameters_in(weights.tensors)
        if module is None:
            module, source, assumed = _module_in(weights, tensors, fields)
        module = without_classes(module) if head == "drop" else module
        variables, leaves = read_variables(module, tensors, rename, head)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    return Loaded(module, variables, leaves, source, len(weights.tensors), assumed, notes)


def save_described(
    path: str | Path,
    module: nn.Module,
    variables: Mapping[str, Any],
    format: str | None = None,
    shard_bytes: int | None = None,
    image_size: tuple[int, int] | None = None,
    leaves: Mapping[str, Leaf] | None = None,
) -> Saved:
    """`save`, with what a user of the file needs to know; `leaves` are those of the variables, where they are known."""
    path, format = Path(path), format or default_format(module, Path(path))
    leaves = leaves or variable_leaves(module, variables)
    tensors = write_tensors(module, variables, format, leaves=leaves)
    metadata = {"format": "pt", METADATA: json.dumps(module_to_json(module))}  # transformers requires "pt"
    config, different, constructor = None, "", ""
    if isinstance(module, ViT):
        if format.startswith("huggingface") and not path.suffix:
            architecture = "ViTModel" if "embeddings.cls_token" in tensors else "ViTForImageClassification"
            config = huggingface_config(module, leaves, architecture, image_size)
        different = different_defaults(format, module) if config is None else ""
        constructor = timm_constructor(module, leaves, image_size) if format.startswith("timm") else ""
    write_weights(path, tensors, metadata, config, shard_bytes)
    return Saved(list(tensors), different, constructor)


def default_format(module: nn.Module, path: Path) -> str:
    """The format of `save` when none is given."""
    if not isinstance(module, ViT):
        return "torch"
    return "google" if path.suffix == ".npz" else "timm"


def describe(path: str | Path, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The module that `load` would return, and those of its fields that are only assumed; no tensor is read."""
    weights = read_weights(path)
    try:
        module, _, assumed = _module_in(weights, parameters_in(weights.tensors)[0], fields)
        module_leaves(module)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    return module, assumed


def without_classes(module: nn.Module) -> nn.Module:
    """The module without a classifier, if it can have one."""
    return module.clone(num_classes=0) if hasattr(module, "num_classes") else module


def _module_in(
    weights: Weights, tensors: Mapping[str, LazyTensor], fields: Mapping[str, Any]
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The module in a file, the format of its tensors' names, and the fields that are assumed."""
    changes = {name: value for name, value in fields.items() if name != "image_size"}
    if METADATA in weights.metadata:
        return with_fields(_described_module(weights.metadata[METADATA], tensors), changes), "w2jax", {}
    form, by_path = recognise(tensors)
    check_field_names(ViT, changes)
    module, assumed = read_architecture(form, by_path, tensors, weights.config, fields)
    return module, form.name, assumed


def parameters_in(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], list[str]]:
    """The parameters without the rest of a training state, and notes on what was left out."""
    notes: list[str] = []
    params = dict(tensors)
    for prefix in _PARAMETERS:
        if any(key.startswith(prefix) for key in params):
            rest = [key for key in params if not key.startswith(prefix)]
            state = [key for key in rest if key.startswith(_TRAINING_STATE)]
            if state:
                notes.append(f"{len(state)} tensors of an optimizer's state were left out, such as {state[0]}")
            params = {key.removeprefix(prefix): params[key] for key in params if key not in set(state)}
            break
    for prefix in _WRAPPERS:
        if params and all(key.startswith(prefix) for key in params):
            params = {key.removeprefix(prefix): tensor for key, tensor in params.items()}
    return unstack_layers(params), notes


def _described_module(text: str, tensors: Mapping[str, LazyTensor]) -> nn.Module:
    """The module that the metadata of a file of ours describes.

    Raises:
        ValueError: if it describes none, or one that is larger than the file can be.
    """
    try:
        module = module_from_json(json_object("its description of the module", text.encode(errors="replace")))
        _check_sizes(module, len(tensors), sum(prod(tensor.shape) for tensor in tensors.values()))
    except ValueError as error:
        raise ValueError(shorten(str(error))) from error
    return module


def _check_sizes(module: nn.Module, tensors: int, elements: int) -> None:
    """ValueError if a stack has more layers than there are tensors, or a field is more than the elements of all."""
    for name in field_names(module):
        value: Any = getattr(module, name)
        if isinstance(value, nn.Module):
            _check_sizes(value, tensors, elements)
        sizes: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
        layers: int = sizes[0] if name in _DEPTHS else len(sizes) if name in _LISTS else 0
        if layers > tensors:
            raise ValueError(f"its description must have at most {tensors} layers, as many as tensors, got {layers}")
        if any(isinstance(size, int) and size > max(elements, _HARMLESS) for size in sizes):
            raise ValueError(f"its description has {name} {value}, its tensors have {elements} numbers")
