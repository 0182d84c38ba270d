"""Load a module with its variables from a weight file, and save them to a file."""

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

METADATA = "w2jax"  # key in the metadata of a file written by `save`; its value describes the module as JSON

# Prefixes of the parameters in a file with a complete training state, and prefixes of the rest of the state.
_PARAMETERS = ("opt/target/", "params/", "target/")
_TRAINING_STATE = ("opt/", "chrono/", "extra/")
# Prefixes that DataParallel, torch.compile and a user's wrapper class add to the names of parameters.
_WRAPPERS = ("module.", "_orig_mod.", "model.")

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


class Saved(NamedTuple):
    """Information about a written file, for a user of the other library."""

    names: list[str]
    """The names of the tensors."""
    different: str
    """Fields that differ from the library's defaults, as text; "" if no field differs, or config.json contains them."""
    constructor: str
    """The Python call that builds the model in timm; "" for other formats."""

    def rows(self, path: Path) -> dict[str, str]:
        """Return a table for the user: the text of each row, by the row's name."""
        rows = {"written": f"{path}: {len(self.names)} tensors, the first is {self.names[0]}"}
        if self.different:
            rows["differs"] = (
                f"{self.different}. Build the model in that library with these values, or its outputs will differ"
            )
        return rows | ({"in timm": self.constructor} if self.constructor else {})


def load(
    path: str | Path,
    head: Head = None,
    module: nn.Module | None = None,
    rename: Rename | None = None,
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a module and its variables from a file or a folder.

    The file can contain a ViT of timm, Hugging Face, torchvision or Google, or any module that `save` wrote.

    Args:
        path: a `.safetensors`, `.safetensors.index.json`, `.npz`, `.pt` or `.pth` file, or a folder with one of them
            and optionally a config.json. `.pt` and `.pth` need torch.
        head: "drop" loads the model without the classifier (`num_classes` is 0); "reinit" initialises a new classifier
            (pass `num_classes`). None: the classifier is loaded.
        module: the module of the parameters, if the file does not describe the module. `from_torch` lists the possible
            modules.
        rename: your own names of the parameters, as in `from_torch`. It needs `module`.
        **fields: fields of the ViT. Pass those that the tensors do not determine and that differ from the library's
            defaults, such as num_heads, activation, norm_eps or pool. You can also set fields for training, such as
            dropout or dtype. Pass `image_size`, (height, width) in pixels, if the images are not square. Without it,
            the loader cannot tell which position embeddings belong to the class token and the registers.

    Returns:
        (module, variables).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is broken, incomplete or of another kind. The message lists the tensors that are missing,
            unexpected or have a wrong shape (at most 200). A run folder is of another kind: `python -m train.export`
            writes it to a file.
        ImportError: the file needs torch, and torch is not installed or too old to read files safely.
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
    """Save a module's variables with the tensor names and layouts of another library.

    A file is written completely or not at all. In a folder, the files are replaced one by one.

    Tensors do not contain all fields, for example the kind of GELU and the epsilon of LayerNorm. `.safetensors` and
    `.npz` files store all fields for `load`. In another library you must build the model with the same values.

    Args:
        path: a `.safetensors`, `.npz`, `.pt` or `.pth` file; or a folder, which also gets a config.json if the format
            is Hugging Face's.
        module: a module of w2jax.
        variables: its variables.
        format: as in `to_torch`. None: "google" for a ViT in an `.npz` file, else the default of `to_torch`.
        shard_bytes: maximum size in bytes of each file in a folder. None: one file.
        image_size: (height, width) in pixels for Hugging Face's config.json. None: the images are square.

    Raises:
        ValueError: the format cannot express the module, or the file type is unknown.
        ImportError: a `.pt` or `.pth` file needs torch, and torch is not installed.
    """
    save_described(path, module, variables, format, shard_bytes, image_size)


def load_described(
    path: str | Path,
    head: Head = None,
    module: nn.Module | None = None,
    rename: Rename | None = None,
    **fields: Any,
) -> Loaded:
    """Load like `load`, and also return the file's format, the assumed fields and messages for the user."""
    if rename is not None and module is None:
        raise ValueError("module must be given with rename, got None. Pass the module whose paths are in rename")
    if module is not None and fields:
        raise ValueError(
            f"{', '.join(fields)} cannot be passed together with module. Set the fields of the module instead"
        )
    weights = read_weights(path)
    source, assumed = "your model", {}
    try:
        # With rename the user gives complete names, so no prefix is removed.
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
    """Save like `save`, and return information for the user. `leaves`: the module's leaves, if already computed."""
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
    """Return the format that `save` uses by default."""
    if not isinstance(module, ViT):
        return "torch"
    return "google" if path.suffix == ".npz" else "timm"


def describe(path: str | Path, **fields: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return the module that `load` would return and its assumed fields, without reading a tensor."""
    weights = read_weights(path)
    try:
        module, _, assumed = _module_in(weights, parameters_in(weights.tensors)[0], fields)
        module_leaves(module)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    return module, assumed


def without_classes(module: nn.Module) -> nn.Module:
    """Return the module with `num_classes` 0 if it has this field, else the module."""
    return module.clone(num_classes=0) if hasattr(module, "num_classes") else module


def _module_in(
    weights: Weights, tensors: Mapping[str, LazyTensor], fields: Mapping[str, Any]
) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return the module in a file, the format of the tensor names, and the assumed fields."""
    changes = {name: value for name, value in fields.items() if name != "image_size"}
    if METADATA in weights.metadata:
        return with_fields(_described_module(weights.metadata[METADATA], tensors), changes), "w2jax", {}
    form, by_path = recognise(tensors)
    check_field_names(ViT, changes)
    module, assumed = read_architecture(form, by_path, tensors, weights.config, fields)
    return module, form.name, assumed


def parameters_in(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], list[str]]:
    """Select the parameters in a file: return them without the rest of a training state, and notes for the user."""
    notes: list[str] = []
    params = dict(tensors)
    for prefix in _PARAMETERS:
        if any(key.startswith(prefix) for key in params):
            rest = [key for key in params if not key.startswith(prefix)]
            state = [key for key in rest if key.startswith(_TRAINING_STATE)]
            if state:
                notes.append(f"the optimizer state was ignored ({len(state)} tensors, such as {state[0]})")
            params = {key.removeprefix(prefix): params[key] for key in params if key not in set(state)}
            break
    for prefix in _WRAPPERS:
        if params and all(key.startswith(prefix) for key in params):
            params = {key.removeprefix(prefix): tensor for key, tensor in params.items()}
    return unstack_layers(params), notes


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
