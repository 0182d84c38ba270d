"""Write a module's variables in the format of a library, with the files that describe them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from w2jax.convert.files import folder_files, is_folder, read_metadata, write_weights
from w2jax.convert.image_configs import PREPROCESSOR, huggingface_images, timm_images
from w2jax.convert.schema import Leaf
from w2jax.convert.state_dict import format_of, variable_leaves, write_tensors
from w2jax.convert.vit_configs import class_names, huggingface_config, timm_arguments, timm_config, timm_constructor
from w2jax.convert.vit_tables import different_defaults
from w2jax.files import read_json
from w2jax.image_spec import ImageSpec
from w2jax.serialize import module_to_json
from w2jax.text import count_of
from w2jax.vit import ViT, patch_grid

METADATA = "w2jax"  # key in the metadata of a written file; its value describes the module as JSON
IMAGE_METADATA = "w2jax_images"  # key whose value is an ImageSpec as JSON

_CONFIG = "config.json"
_ONNX_PRODUCER = b"\x12\x05w2jax"  # field 2 of an ONNX file (protobuf): the producer's name, 5 bytes


class Saved(NamedTuple):
    """Information about a written file, for a user of the other library."""

    names: list[str]
    """The names of the tensors."""
    different: str = ""
    """Fields that differ from the library's defaults, and what to do; "" if none differs or config.json has them."""
    constructor: str = ""
    """The Python call that builds the model in timm; "" for other formats, or if config.json contains it."""
    images: str = ""
    """Why the folder does not say how to prepare images, although it is known; else ""."""

    def rows(self, path: Path) -> dict[str, str]:
        """Return a table for the user: the text of each row, by the row's name."""
        rows = {"written": f"{path}: {count_of(len(self.names), 'tensor')}, the first is {self.names[0]}"}
        if self.different:
            rows["differs"] = self.different
        rows |= {"in timm": self.constructor} if self.constructor else {}
        return rows | ({"images": self.images} if self.images else {})


def save_described(
    path: str | Path,
    module: nn.Module,
    variables: Mapping[str, Any],
    format: str | None = None,
    shard_bytes: int | None = None,
    image_size: tuple[int, int] | None = None,
    leaves: Mapping[str, Leaf] | None = None,
    label_names: Sequence[str] | None = None,
    source_config: Mapping[str, Any] | None = None,
    spec: ImageSpec | None = None,
    overwrite: bool = True,
) -> Saved:
    """Save like `save`, and return information for the user.

    `leaves` are the module's leaves, if already computed. A config.json keeps the class names and the unknown fields of
    `source_config`, the config.json of the file from which the module was read. Without `overwrite`, files for which
    `check_replaceable` raises a ValueError are kept.
    """
    path, format = Path(path), format or default_format(module, Path(path))
    leaves = leaves or variable_leaves(module, variables)
    tensors = write_tensors(module, variables, format, leaves=leaves)
    metadata = {"format": "pt", METADATA: json.dumps(module_to_json(module))}  # transformers requires "pt"
    if spec is not None:
        metadata[IMAGE_METADATA] = json.dumps(asdict(spec))
    configs: dict[str, Any] = {}
    saved = Saved(list(tensors))
    if isinstance(module, ViT):
        fits = spec is not None and _fits(module, leaves, spec.image_size)
        if image_size is None and spec is not None and fits:
            image_size = spec.image_size
        if label_names is None and spec is not None and len(spec.label_names or ()) == module.num_classes:
            label_names = spec.label_names
        images = _images(format, spec, fits)
        if is_folder(path):
            configs = _configs(module, leaves, format, image_size, label_names, source_config, images)
        saved = saved._replace(**_differences(module, leaves, format, image_size, bool(configs)))
        if configs and spec and not images:
            told = f"{format} cannot say how to prepare the images of this model, so no file says it: {spec}"
            saved = saved._replace(images=told)
    if not overwrite:
        check_replaceable([*folder_files(path), *(path / name for name in configs)] if is_folder(path) else [path])
    write_weights(path, tensors, metadata, configs, shard_bytes)
    return saved


def check_replaceable(files: Iterable[Path]) -> None:
    """Raise a ValueError if one of the files exists and nothing in it shows that w2jax wrote it.

    The metadata of w2jax's .safetensors and .npz files shows it, and the producer of an .onnx file. Other files are
    w2jax's if they belong to such a model.safetensors in the same folder. torch's files have no metadata.
    """
    for file in files:
        if file.is_file() and not _is_ours(file):
            raise ValueError(
                f"{file} exists, and nothing in it shows that w2jax wrote it. Choose another path, or replace it with "
                "--overwrite"
            )


def _is_ours(file: Path) -> bool:
    try:
        # A run folder with exported weights has a config.json too, that of the run.
        if file.name == _CONFIG and {"architecture", "architectures"}.isdisjoint(read_json(file)):
            return False
        if file.suffix == ".onnx":
            with file.open("rb") as content:
                return _ONNX_PRODUCER in content.read(16)  # behind the format's version
        weights = folder_files(file.parent) if file.suffix in (".json", ".stablehlo") else [file]
        return bool(weights) and all(METADATA in read_metadata(path) for path in weights)
    except (OSError, ValueError):
        return False


def _images(format: str, spec: ImageSpec | None, fits: bool) -> Any:
    """Return how images are prepared, in the terms of the format's library; None if it cannot express it."""
    if spec is None:
        return None
    if format.startswith("timm"):  # its models do not interpolate their position embeddings, as some of Hugging Face's
        return timm_images(spec) if fits else None
    return huggingface_images(spec)


def _configs(
    module: ViT,
    leaves: Mapping[str, Leaf],
    format: str,
    image_size: tuple[int, int] | None,
    label_names: Sequence[str] | None,
    source: Mapping[str, Any] | None,
    images: Any,
) -> dict[str, Any]:
    """Return the contents of the JSON files of a folder by their names; {} if the library has none for the model."""
    if format.startswith("timm"):
        names = label_names or class_names(source, module.num_classes)
        config = timm_config(module, timm_arguments(module, leaves, image_size), images or {}, names, source)
        return {} if config is None else {_CONFIG: config}
    model = format_of(module, leaves, format).huggingface
    if model is None:
        return {}
    config = huggingface_config(module, leaves, model, image_size, label_names, source)
    return {_CONFIG: config} | ({PREPROCESSOR: images} if images else {})


def _differences(
    module: ViT, leaves: Mapping[str, Leaf], format: str, image_size: tuple[int, int] | None, has_config: bool
) -> dict[str, str]:
    """Return the fields `different` and `constructor` of `Saved`."""
    is_timm = format.startswith("timm")
    different = "" if has_config else different_defaults(format, module)
    if different:
        different += ". Build the model in that library with these values, or its outputs will differ"
    elif is_timm and has_config and module.norm_eps < 1e-6:
        different = f"norm_eps {module.norm_eps} here, 1e-06 in config.json. The outputs in timm differ slightly"
    constructor = timm_constructor(module, leaves, image_size) if is_timm and not has_config else ""
    return {"different": different, "constructor": constructor}


def _fits(module: ViT, leaves: Mapping[str, Leaf], image_size: tuple[int, int]) -> bool:
    """Return True if the position embeddings are those of images of this size."""
    patches = prod(patch_grid(image_size, module.patch_size))
    return "positions" in leaves and leaves["positions"].shape[1] == module.prefix_positions + patches


def default_format(module: nn.Module, path: Path) -> str:
    """Return the format that `save` uses by default."""
    if not isinstance(module, ViT):
        return "torch"
    return "google" if path.suffix == ".npz" else "timm"
