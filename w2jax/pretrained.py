"""A model with pretrained weights, and how to prepare images for it, in one call."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from jaxtyping import Float

from w2jax.convert.load_save import Loaded, load_described
from w2jax.image_spec import ImageSpec
from w2jax.vit import ViT, patch_grid, patch_sides


class Pretrained(NamedTuple):
    """A model with its weights."""

    model: nn.Module
    """The model. A `ViT` returns logits first: `model.apply(variables, images)[0]`."""
    variables: dict[str, Any]
    """The variables of the model."""
    spec: ImageSpec | None
    """How to prepare images: `spec.preprocess("photo.jpg")`. None: the files do not say it."""


def load_pretrained(path_or_name: str | Path, spec: ImageSpec | None = None, **fields: Any) -> Pretrained:
    """Load a model, its weights and how to prepare images for it.

    If images have another size than the model's position embeddings, as in most DINOv2 models of Hugging Face, the
    embeddings are interpolated as in the source's library.

    Args:
        path_or_name: a weight file, a folder, or the name of a model on the Hugging Face hub, as in
            `w2jax.convert.load`; or a folder of `python -m train.export`.
        spec: how to prepare images, if the files do not say it or are wrong. None: read from the files.
        **fields: other arguments of `w2jax.convert.load`, such as `head`, and fields of the ViT.

    Returns:
        (model, variables, spec).

    Raises:
        FileNotFoundError, ImportError: as in `w2jax.convert.load`.
        ValueError: as in `w2jax.convert.load`; or the files describe images in a way that is not understood.
    """
    loaded = load_described(path_or_name, **fields)
    if spec is None and loaded.spec_error:
        raise ValueError(f"{path_or_name}: {loaded.spec_error}. Pass spec, a w2jax.ImageSpec with the model's values")
    spec = spec or loaded.spec
    variables = loaded.variables if spec is None else _resized(loaded, spec)
    return Pretrained(loaded.module, variables, spec)


def _resized(loaded: Loaded, spec: ImageSpec) -> dict[str, Any]:
    """Return the variables with position embeddings for the images of `spec`."""
    module, variables = loaded.module, loaded.variables
    if not isinstance(module, ViT) or module.positions != "learned":
        return variables
    positions = variables["params"]["positions"]
    new = patch_grid(spec.image_size, module.patch_size)
    patches = positions.shape[1] - module.prefix_positions
    if patches == new[0] * new[1]:
        return variables
    side = math.isqrt(patches)
    height, width = patch_sides(module.patch_size)
    old_size = loaded.image_size or (side * height, side * width)
    if loaded.config is None or loaded.config.get("model_type") != "dinov2":
        return module.resize(variables, old_size, spec.image_size)
    old = patch_grid(old_size, module.patch_size)
    prefix = positions[:, : module.prefix_positions]
    grid = np.asarray(positions[:, module.prefix_positions :]).reshape(*old, -1)
    grid = np.einsum("nr,mc,rcd->nmd", _bicubic(old[0], new[0]), _bicubic(old[1], new[1]), grid)
    grid = grid.reshape(1, new[0] * new[1], -1).astype(positions.dtype)
    return {**variables, "params": {**variables["params"], "positions": np.concatenate([prefix, grid], axis=1)}}


def _bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Return the matrix of torch's bicubic interpolation without antialiasing, by which Hugging Face resizes DINOv2.

    Its kernel is that of Keys 1981, with a = -3/4. Positions outside of the axis have the value at its end.
    """
    centers = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    taps = np.floor(centers).astype(int) + np.arange(-1, 3)
    x = np.abs(centers - taps)
    inner, outer = (1.25 * x - 2.25) * x**2 + 1, -0.75 * (((x - 5) * x + 8) * x - 4)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), np.where(x <= 1, inner, outer))
    return matrix
