"""Between a module with its variables and a file."""

import json
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from w2jax.convert import run_folder, vit
from w2jax.convert.io import read_weights, write_weights
from w2jax.convert.modules import module_from_json, module_to_json
from w2jax.convert.state_dict import Head, read_variables, variable_leaves, write_tensors
from w2jax.convert.tensors import Tensor
from w2jax.vit import ViT

METADATA = "w2jax"  # under which our files keep the module, so that nothing of it need be inferred

# Where parameters lie inside a whole training state, and what else lies there.
_PARAMETERS = ("opt/target/", "params/", "target/")
_TRAINING_STATE = ("opt/", "chrono/", "extra/")
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DataParallel, of torch.compile, of a class around the model


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


def load(path: str | Path, head: Head = None, **given: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The module and the variables in a file or folder.

    Args:
        path: `.safetensors`, `.safetensors.index.json`, `.npz`, `.pt` or `.pth` (these need torch), or a folder with
            one of them and perhaps a config.json: a ViT of timm, Hugging Face, torchvision or Google, or any module
            that `save` wrote. Or the run folder of a training here, of which it takes the last checkpoint (its average
            of the parameters, if it has one). This needs orbax.
        head: "drop" leaves the classifier out; "reinit" makes a new one, of the `num_classes` given.
        **given: fields of the ViT that the tensors do not tell and that are not as usual in that library, such as
            num_heads, activation, norm_eps or pool; or that matter in training only, such as dropout or dtype. And
            `image_size`, (height, width), where the number of positions leaves open which tokens have one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is broken, none of these, or not whole: what is missing, left over or of another shape
            is listed.
    """
    loaded = load_described(path, head, **given)
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
    if format is None and isinstance(module, ViT) and path.suffix == ".npz":
        format = "google"
    tensors = write_tensors(module, variables, format)
    metadata = {"format": "pt", METADATA: json.dumps(module_to_json(module))}  # transformers asks for "pt"
    config = None
    if isinstance(module, ViT) and (format or "").startswith("huggingface") and not path.suffix:
        config = vit.huggingface_config(module, variable_leaves(module, variables), image_size)
    write_weights(path, tensors, metadata, config, shard_bytes)


def load_described(path: str | Path, head: Head = None, **given: Any) -> Loaded:
    """`load`, with what the file was and what was assumed."""
    path = Path(path)
    _check_given(given)
    if run_folder.is_run_folder(path):
        return _load_run(path, head, given)
    weights = read_weights(path)
    tensors, notes = parameters_in(weights.tensors)
    size = {"image_size": given.pop("image_size")} if "image_size" in given else {}
    assumed: dict[str, Any] = {}
    try:
        if METADATA in weights.metadata:
            module, source = _described(weights.metadata[METADATA]), "w2jax"
            module = module.clone(**given)
        else:
            form, found = vit.recognise(tensors)
            module, assumed = vit.architecture(form, found, tensors, weights.config, given | size)
            source = form.name
        if head == "drop":
            module = module.clone(num_classes=0)
        variables = read_variables(module, tensors, head=head)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{weights.path}: {error}") from error
    return Loaded(module, variables, source, len(weights.tensors), assumed, notes)


def parameters_in(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
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


def _load_run(path: Path, head: Head, given: dict[str, Any]) -> Loaded:
    run = run_folder.read_run(path)
    trained = module_from_json(run.module)
    tensors = write_tensors(trained, run.variables, "torch")
    given.pop("image_size", None)
    module = trained.clone(**given) if head != "drop" else trained.clone(**given, num_classes=0)
    variables = read_variables(module, tensors, head=head)
    return Loaded(module, variables, "a run folder", len(tensors), {}, [run.note])


def _described(text: str) -> nn.Module:
    """The module that a file of ours describes."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"its description of the module is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError("its description of the module is no JSON object")
    return module_from_json(tree)


def _check_given(given: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(ViT) if field.name not in ("parent", "name")] + ["image_size"]
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise ValueError(f'a ViT has no field "{name}"' + (f'; did you mean "{close[0]}"?' if close else ""))
