"""Read the architecture of a Vision Transformer from the names and shapes of its tensors."""

import math
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from w2jax.convert.layouts import Format, flax_layout
from w2jax.convert.lazy_tensor import LazyTensor
from w2jax.convert.rules import Pair, axis_sizes, flat
from w2jax.convert.schema import module_leaves
from w2jax.convert.vit_configs import config_fields, patch_count
from w2jax.convert.vit_tables import FORMATS
from w2jax.text import shorten
from w2jax.vit import SIZES, ViT

_MAX_DEPTH = 1000  # layers; only a malicious file has more


class Architecture(NamedTuple):
    """A ViT, and the fields whose values are assumed."""

    module: ViT
    """The ViT."""
    assumed: dict[str, Any]
    """Fields that neither the tensors nor a config determine, with the default values of the library."""


def recognise(keys: Mapping[str, Any]) -> tuple[Format, dict[str, Pair]]:
    """Find the format that has names for most of the keys: return (format, pairs by w2jax path).

    Raises:
        ValueError: in every format, fewer than half of the keys are names of ViT parameters.
    """
    candidates = []
    for form in FORMATS:
        present = [pair for pair in form.pairs(_all_leaves(_depth(form, keys))) if pair.theirs in keys]
        by_path = {path: pair for pair in present for path in pair.ours}
        has_positions = "positions" in by_path or _allows_sincos(form)
        candidates.append((len(present), has_positions, form, by_path))
    known, _, form, by_path = max(candidates, key=itemgetter(0, 1))
    if "patch_embed/projection/kernel" not in by_path or 2 * known < len(keys):
        some = ", ".join(map(shorten, list(keys)[:3]))
        families = ", ".join(dict.fromkeys(form.family for form in FORMATS))
        raise ValueError(
            f"the tensors must be those of a ViT in one of the formats {families}, got {len(keys)} tensors of which "
            f"{known} have known names (the first tensors are {some}). For other models, pass module and rename to "
            "w2jax.convert.load"
        )
    return form, by_path


def read_architecture(
    form: Format,
    by_path: Mapping[str, Pair],
    tensors: Mapping[str, LazyTensor],
    config: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
) -> Architecture:
    """Build the ViT that has the parameters in `tensors`.

    Args:
        form: format of the tensors.
        by_path: pairs by w2jax path, as `recognise` returns them.
        tensors: tensors of the file, by name.
        config: content of the config.json next to the file.
        fields: the user's values of ViT fields, and `image_size`, (height, width) in pixels. They override values from
            the file.

    Raises:
        ValueError: a size cannot be read from the tensors, or the number of heads is unknown.
    """

    def width(path: str, axis: int = -1, rank: int = 1) -> int:
        if path not in by_path:
            raise ValueError(f"the tensor for {path} is missing in this {form.name} ViT")
        shape = tensors[by_path[path].theirs].shape
        if len(shape) != rank or 0 in shape:
            axes = "1 axis" if rank == 1 else f"{rank} axes"
            raise ValueError(f"{by_path[path].theirs} must have {axes}, not empty, for {path}, got the shape {shape}")
        return shape[axis]

    attention = "encoder/block_0/attention/"
    read: dict[str, Any] = {
        "num_classes": width("head/bias") if "head/bias" in by_path else 0,
        "patch_size": _patch_size(by_path["patch_embed/projection/kernel"], tensors),
        "embed_dim": width("encoder/block_0/norm1/scale"),
        "depth": len({path.split("/")[1] for path in by_path if path.startswith("encoder/")}),
        "mlp_dim": width("encoder/block_0/mlp/fc1/bias"),
        "class_token": "cls" in by_path,
        "num_registers": width("registers", 1, 3) if "registers" in by_path else 0,
        "patch_bias": "patch_embed/projection/bias" in by_path,
        "embed_norm": "embed_norm/scale" in by_path,
        "qkv_bias": attention + "query/bias" in by_path,
        "qk_norm": attention + "query_norm/scale" in by_path,
        "norm_after_pool": "pool_norm/scale" in by_path,
        "layer_scale": 1e-5 if "encoder/block_0/scale1/gamma" in by_path else None,
        "pre_logits_dim": width("pre_logits/bias") if "pre_logits/bias" in by_path else None,
    }
    by_class = "cls" in by_path and not read["norm_after_pool"]
    assumed = dict(form.assumed) | {"pool": "map" if "pool/probe" in by_path else "cls" if by_class else "gap"}
    if "positions" in by_path:
        patches = patch_count(fields.get("image_size"), config, read["patch_size"])
        read |= _positions(form, width("positions", 1, 3), read, patches)
    elif _allows_sincos(form):
        read |= {"positions": "sincos2d", "class_position": False}
    if form.layout is flax_layout:
        read["num_heads"] = width(attention + "query/kernel", 1, 3)
    elif attention + "query_norm/scale" in by_path:
        read["num_heads"] = read["embed_dim"] // width(attention + "query_norm/scale")
    else:
        assumed["num_heads"] = _usual_heads(read["embed_dim"], read["depth"], read["mlp_dim"])
    if "pool/probe" in by_path or "cls" not in by_path or form.fixed.get("pool") == ("cls",):
        read["pool"] = assumed.pop("pool")
    stated = config_fields(config) | {name: value for name, value in fields.items() if name != "image_size"}
    assumed = {name: value for name, value in assumed.items() if name not in stated and name not in read}
    values: dict[str, Any] = assumed | read | stated
    if values["num_heads"] is None:
        raise ValueError(
            "num_heads must be given, because the tensors do not contain the number of heads and there is no usual "
            f"number for the width {read['embed_dim']}. Pass num_heads (--num-heads)"
        )
    return Architecture(ViT(**values), assumed)


def unstack_layers(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Split the layers that big_vision stacks for a scan into single tensors, with the names of single layers."""
    single: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        prefix, stack, name = key.partition("Transformer/encoderblock/")
        if not stack:
            single[key] = tensor
            continue
        if not tensor.shape or 0 in tensor.shape or tensor.shape[0] > _MAX_DEPTH:
            raise ValueError(
                f"{shorten(key)} must have 1 to {_MAX_DEPTH} layers along its first axis, got the shape {tensor.shape}"
            )
        layers = _StackedLayers(tensor)
        for i in range(tensor.shape[0]):
            layer = f"{prefix}Transformer/encoderblock_{i}/{name}"
            single[layer] = LazyTensor(tensor.shape[1:], tensor.dtype, partial(layers.read, i))
    return single


class _StackedLayers:
    """A stacked tensor that is read once for all its layers, and freed after the last layer."""

    def __init__(self, tensor: LazyTensor):
        self.tensor, self.array = tensor, None

    def read(self, i: int) -> np.ndarray:
        array = self.tensor.read() if self.array is None else self.array
        self.array = None if i == self.tensor.shape[0] - 1 else array
        return array[i]


@lru_cache(maxsize=16)
def _all_leaves(depth: int) -> dict[str, tuple[int, ...]]:
    """Return the leaves of a ViT with every optional parameter."""
    options: dict[str, Any] = {"num_registers": 1, "embed_norm": True, "qk_norm": True, "layer_scale": 1.0}
    module = ViT(1, 1, 4, depth, 1, 1, pool="map", pre_logits_dim=1, **options)
    both = module_leaves(module) | module_leaves(module.clone(norm_after_pool=True))
    return {path: leaf.shape for path, leaf in both.items()}


def _depth(form: Format, keys: Mapping[str, Any]) -> int:
    """Count the different layer numbers in the keys, from 1 to `_MAX_DEPTH`. The numbers do not need to be in order."""
    numbered = [re.escape(rule.theirs) for rule in flat(form.table, form.separator) if "{i}" in rule.theirs]
    if not numbered:
        return 1
    matcher = re.compile("|".join(name.replace(re.escape("{i}"), "([0-9]+)") for name in numbered))
    matches = filter(None, (matcher.match(key) for key in keys))
    numbers = {next(filter(None, match.groups())) for match in matches}
    return min(max(len(numbers), 1), _MAX_DEPTH)


def _patch_size(pair: Pair, tensors: Mapping[str, LazyTensor]) -> int:
    """Return the patch size that the patch projection has; raise a ValueError if patches are not square."""
    shape = tensors[pair.theirs].shape
    sizes = axis_sizes(pair.pattern.split("->")[0], shape, {}) if pair.pattern else {}
    if not all(sizes.values()) or not sizes.get("p1") or sizes["p1"] != sizes["p2"]:
        raise ValueError(f"patches must be square, got {pair.theirs} of shape {shape}")
    return sizes["p1"]


def _allows_sincos(form: Format) -> bool:
    """Return True if the library has models with fixed positions, for which the file has no tensor."""
    return "sincos2d" in form.fixed.get("positions", ("sincos2d",))


def _positions(form: Format, count: int, fields: Mapping[str, Any], patches: int | None) -> dict[str, bool]:
    """Find out whether class token and registers have positions. In timm, either all have one or none has.

    In timm, the number of positions determines this if the number of patches is known. Otherwise the answer is the one
    for which the patches form a square. If both or none do, class token and registers are assumed to have positions.
    """
    prefix = fields["class_token"] + fields["num_registers"]
    if form.family != "timm":
        return {"class_position": form.fixed.get("class_position", (True,))[0]}
    if patches is not None:
        have = count == patches + prefix
    else:
        with_prefix, without = (n > 0 and math.isqrt(n) ** 2 == n for n in (count - prefix, count))
        have = with_prefix or not without
    return {"class_position": have, "register_positions": have and fields["num_registers"] > 0}


def _usual_heads(embed_dim: int, depth: int, mlp_dim: int) -> int | None:
    """Return the heads of the published size with these numbers, else embed_dim / 64; None if this is no integer."""
    for width, layers, heads, hidden in SIZES.values():
        if (embed_dim, depth, mlp_dim) == (width, layers, hidden):
            return heads
    return None if embed_dim % 64 else embed_dim // 64
