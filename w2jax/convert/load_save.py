"""Between a module with its variables and a file."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from train.run import weights as run_folder
from w2jax.convert import vit_tables as vit
from w2jax.convert.files import Weights, read_weights, write_weights
from w2jax.convert.files.safe_io import json_object
from w2jax.convert.lazy_tensor import LazyTensor, brief
from w2jax.convert.schema import field_names, module_from_json, module_leaves, module_to_json
from w2jax.convert.state_dict import Head, Rename, read_variables, variable_leaves, write_tensors
from w2jax.vit import ViT

METADATA = "w2jax"  # under which our files keep the module, so that nothing of it need be inferred

# Where parameters lie inside a whole training state, and what else lies there.
_PARAMETERS = ("opt/target/", "params/", "target/")
_TRAINING_STATE = ("opt/", "chrono/", "extra/")
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DataParallel, of torch.compile, of a class around the model

_DEPTHS = ("depth", "num_layers", "encoder_depth", "decoder_depth")
_LISTS = ("hidden_sizes", "batch_norm")  # fields with an entry a layer
_COMMON = 2**16  # no field up to it takes much memory, whatever the tensors are


class Loaded(NamedTuple):
    """What a file held."""

    module: nn.Module
    variables: dict[str, Any]
    source: str
    """Whose names and layouts they were."""
    tensors: int
    """How many there were."""
    assumed: dict[str, Any]
    """Fields of the module that the file does not tell, as its library usually has them."""
    notes: list[str]
    """What else the user should know."""


def load(
    path: str | Path,
    head: Head = None,
    module: nn.Module | None = None,
    rename: Rename | None = None,
    **given: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """The module and the variables in a file or folder.

    Args:
        path: `.safetensors`, `.safetensors.index.json`, `.npz`, `.pt` or `.pth` (these need torch), or a folder with
            one of them and perhaps a config.json: a ViT of timm, Hugging Face, torchvision or Google, or any module
            that `save` wrote. Or the run folder of a training here, of which it takes the last checkpoint (its average
            of the parameters, if it has one). This needs orbax.
        head: "drop" leaves the classifier out; "reinit" makes a new one, of the `num_classes` given.
        module: what the parameters are for, where the file does not tell: any module that `from_torch` takes.
        rename: as in `from_torch`, with `module`.
        **given: fields of the ViT that the tensors do not tell and that are not as usual in that library, such as
            num_heads, activation, norm_eps or pool; or that matter in training only, such as dropout or dtype. And
            `image_size`, (height, width), where the number of positions leaves open which tokens have one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is broken, none of these, or not whole: what is missing, left over or of another shape
            is listed.
    """
    loaded = load_described(path, head, module, rename, **given)
    return loaded.module, loaded.variables


def save(
    path: str | Path,
    module: nn.Module,
    variables: Mapping[str, Any],
    format: str | None = None,
    shard_bytes: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> None:
    """Writes a module's variables as another library names and lays them out.

    Written whole or not at all, except for a folder's several files. What a library's code decides (the kind of GELU,
    the epsilon of LayerNorm) is kept in the file for `load`; whoever reads it elsewhere must build the model alike.

    Args:
        path: `.safetensors`, `.npz`, `.pt`, `.pth`; or a folder, with config.json if the format is Hugging Face's.
        module: one of ours.
        variables: its variables.
        format: see `to_torch`; when None, "google" for a ViT in an `.npz`.
        shard_bytes: of a folder: the largest file; None is one file.
        image_size: height and width for Hugging Face's config.json, where the patches make no square.

    Raises:
        ValueError: if the format cannot express the module, or the kind of file is not known.
    """
    path = Path(path)
    format = format or usual_format(module, path)
    tensors = write_tensors(module, variables, format)
    metadata = {"format": "pt", METADATA: json.dumps(module_to_json(module))}  # transformers asks for "pt"
    config = None
    if isinstance(module, ViT) and format.startswith("huggingface") and not path.suffix:
        architecture = "ViTModel" if "embeddings.cls_token" in tensors else "ViTForImageClassification"
        config = vit.huggingface_config(module, variable_leaves(module, variables), architecture, image_size)
    write_weights(path, tensors, metadata, config, shard_bytes)


def usual_format(module: nn.Module, path: Path) -> str:
    """The format that `save` writes where none is asked for."""
    if not isinstance(module, ViT):
        return "torch"
    return "google" if path.suffix == ".npz" else "timm"


def load_described(
    path: str | Path,
    head: Head = None,
    module: nn.Module | None = None,
    rename: Rename | None = None,
    **given: Any,
) -> Loaded:
    """`load`, with what the file was and what was assumed."""
    path = Path(path)
    if rename is not None and module is None:
        raise ValueError("rename leads to the paths of a module: give that too")
    if module is not None and given:
        raise ValueError(f"{', '.join(given)} are fields of the module: give them to it")
    if run_folder.is_run_folder(path):
        if module is not None:
            raise ValueError(f"{path} is a run folder, which holds its module: leave module and rename out")
        trained = module_from_json(run_folder.read_module(path))
        variables, notes = run_folder.read_variables(path)
        tensors = write_tensors(trained, variables, "torch")
        module = _without_classes(_with_fields(trained, given), head)
        return Loaded(module, read_variables(module, tensors, head=head), "a run folder", len(tensors), {}, notes)
    weights = read_weights(path)
    source, assumed = "your model", {}
    try:
        # The user's own names are taken as they stand.
        tensors, notes = (weights.tensors, []) if rename is not None else parameters_in(weights.tensors)
        if module is None:
            module, source, assumed = _module_in(weights, tensors, given)
        module = _without_classes(module, head)
        variables = read_variables(module, tensors, rename, head)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    return Loaded(module, variables, source, len(weights.tensors), assumed, notes)


def describe(path: str | Path, **given: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The module that `load` would give, and those of its fields that are only assumed; no tensor is read."""
    path = Path(path)
    if run_folder.is_run_folder(path):
        return _with_fields(module_from_json(run_folder.read_module(path)), given), {}
    weights = read_weights(path)
    try:
        module, _, assumed = _module_in(weights, parameters_in(weights.tensors)[0], given)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    return module, assumed


def _module_in(
    weights: Weights, tensors: Mapping[str, LazyTensor], given: Mapping[str, Any]
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The module of a file, whose names its tensors have, and which of its fields are assumed."""
    if METADATA in weights.metadata:
        return _with_fields(_described(weights.metadata[METADATA], tensors), given), "w2jax", {}
    form, found = vit.recognise(tensors)
    _check_fields(given, ViT)
    module, assumed = vit.architecture(form, found, tensors, weights.config, given)
    return module, form.name, assumed


def _with_fields(module: nn.Module, given: Mapping[str, Any]) -> nn.Module:
    """The module with other fields; `image_size` is none of them and tells nothing here."""
    _check_fields(given, type(module))
    return module.clone(**{name: value for name, value in given.items() if name != "image_size"})


def _without_classes(module: nn.Module, head: Head) -> nn.Module:
    """The module, if its head is to be dropped without one."""
    return module.clone(num_classes=0) if head == "drop" and hasattr(module, "num_classes") else module


def _check_fields(given: Mapping[str, Any], cls: type[nn.Module]) -> None:
    known = [*field_names(cls), "image_size"]
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise ValueError(f'the model has no field "{name}"' + (f'; did you mean "{close[0]}"?' if close else ""))


def parameters_in(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], list[str]]:
    """The parameters without what is around them in a training state, and what was left out."""
    notes: list[str] = []
    kept = dict(tensors)
    for prefix in _PARAMETERS:
        if any(key.startswith(prefix) for key in kept):
            rest = [key for key in kept if not key.startswith(prefix)]
            state = [key for key in rest if key.startswith(_TRAINING_STATE)]
            if state:
                notes.append(f"{len(state)} tensors of an optimizer's state were left out, such as {state[0]}")
            kept = {key.removeprefix(prefix): kept[key] for key in kept if key not in set(state)}
            break
    for prefix in _WRAPPERS:
        if kept and all(key.startswith(prefix) for key in kept):
            kept = {key.removeprefix(prefix): tensor for key, tensor in kept.items()}
    return vit.unstack(kept), notes


def _described(text: str, tensors: Mapping[str, LazyTensor]) -> nn.Module:
    """The module that a file of ours describes.

    Raises:
        ValueError: if it describes none, or one that is larger than the file can be.
    """
    try:
        module = module_from_json(json_object("its description of the module", text.encode(errors="replace")))
        _check_sizes(module, len(tensors), sum(prod(tensor.shape) for tensor in tensors.values()))
        module_leaves(module)
    except ValueError as error:
        raise ValueError(brief(str(error))) from error
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
            raise ValueError(f"it has {tensors} tensors, fewer than the layers that its description tells")
        if any(isinstance(size, int) and size > max(elements, _COMMON) for size in sizes):
            raise ValueError(f"its description has {name} {value}, its tensors have {elements} numbers")
