"""Read the architecture of a Vision Transformer from the names and shapes of its tensors."""

import math
import operator
import re
from collections.abc import Collection, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from w2jax.convert.layouts import Format, flax_layout
from w2jax.convert.lazy_tensor import LazyTensor
from w2jax.convert.prefixes import check_single, prefixes
from w2jax.convert.rules import Pair, axis_sizes, flat, our_size
from w2jax.convert.schema import module_leaves
from w2jax.convert.vit_configs import config_fields, describes, image_sides, square_image, square_side
from w2jax.convert.vit_heads import replaced_head
from w2jax.convert.vit_tables import FORMATS, TIMM_FAMILIES
from w2jax.text import count_of, shorten
from w2jax.vit import SIZES, PatchSize, ViT, patch_grid, patch_sides

_POSITIONS = ("class_position", "register_positions")
_CHUNK = re.compile(r"(^|\.)blocks\.[0-9]+\.(?=[0-9]+\.)")
_MAX_DEPTH = 1000  # layers; only a malicious file has more


class Architecture(NamedTuple):
    """A ViT, and the fields whose values are assumed."""

    module: ViT
    """The ViT."""
    assumed: dict[str, Any]
    """Fields that neither the tensors nor a config determine, with the default values of the library."""
    config: Mapping[str, Any] | None
    """The config.json, if it belongs to the file; else None."""
    image_size: tuple[int, int] | None
    """(height, width) in pixels: given, or in the config, or of a square with these positions; None if unknown."""


def recognize(keys: Mapping[str, Any]) -> tuple[Format, str]:
    """Find the format that has names for most of the keys: return (format, prefix of the names).

    Raises:
        ValueError: in every format, fewer than half of the keys under the prefix are names of ViT parameters; or the
            file has more than one ViT.
    """
    best: dict[str, tuple[int, bool, int]] = {}  # the scores by the name of the patch projection, one for each model
    found: dict[str, tuple[Format, str]] = {}
    for form in FORMATS:
        projection = _patch_projection(form)
        for prefix in prefixes(keys, projection, form.separator):
            inside = {key[len(prefix) :] for key in keys if key.startswith(prefix)}
            by_path = known_pairs(form, inside)
            has_positions = "positions" in by_path or _allows_sincos(form)
            fits = ("cls" in by_path) in form.fixed.get("class_token", (True, False))
            fits &= "registers" not in by_path or form.fixed.get("num_registers") != (0,)
            fits &= not form.beside or form.beside in keys
            known = len({pair.theirs for pair in by_path.values()}) + len(replaced_head(form, inside))
            known += form.count_ignored(inside)
            score = known, has_positions and fits, len(prefix)
            name = prefix + projection
            has_blocks = any(path.startswith("encoder/") for path in by_path)  # other networks have a "conv1" too
            if has_blocks and 2 * known >= len(inside) and score > best.get(name, (0, False, 0)):
                best[name], found[name] = score, (form, prefix)
    if not found:
        some = ", ".join(map(shorten, list(keys)[:3]))
        families = ", ".join(dict.fromkeys(form.family for form in FORMATS))
        raise ValueError(
            f"the tensors must be those of a ViT in one of the formats {families}, got {count_of(len(keys), 'tensor')} "
            f"(the first are {some}). For other models, pass module and rename to w2jax.convert.load"
        )
    most = max(score[0] for score in best.values())
    models = [name for name, score in best.items() if 2 * score[0] > most]
    check_single(found[name][1] for name in models)
    return found[models[0]]


def vit_prefixes(keys: Collection[str]) -> list[str]:
    """Return the prefixes under which the keys have a patch projection."""
    return list(dict.fromkeys(p for form in FORMATS for p in prefixes(keys, _patch_projection(form), form.separator)))


def known_pairs(form: Format, keys: Collection[str]) -> dict[str, Pair]:
    """Return the pairs of a format whose names are in `keys`, by w2jax path."""
    present = [pair for pair in form.pairs(_all_leaves(_depth(form, keys))) if pair.theirs in keys]
    return {path: pair for pair in present for path in pair.ours}


def _patch_projection(form: Format) -> str:
    """Return the name of the kernel of the patch projection."""
    return next(pair.theirs for pair in form.pairs(_all_leaves(1)) if "patch_embed/projection/kernel" in pair.ours)


def read_architecture(
    form: Format,
    by_path: Mapping[str, Pair],
    tensors: Mapping[str, LazyTensor],
    config: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
    own_config: bool = True,
) -> Architecture:
    """Build the ViT that has the parameters in `tensors`.

    Args:
        form: format of the tensors.
        by_path: pairs by w2jax path, as `recognize` returns them.
        tensors: tensors of the file, by name.
        config: content of the config.json next to the file.
        fields: the user's values of ViT fields, and `image_size`, (height, width) in pixels. They override values from
            the file.
        own_config: the config is that of this file. False: it is used only if it describes a ViT with these sizes.

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

    def size(path: str, axis: int) -> int:
        """Return a size of our parameter; 0 if the file does not have it or does not determine the size."""
        pair = by_path.get(path)
        return 0 if pair is None else our_size(pair, tensors[pair.theirs].shape, axis)

    attention = "encoder/block_0/attention/"
    # A gated MLP has two inputs for each output of its activation.
    is_gated = 2 * size("encoder/block_0/mlp/fc2/kernel", 0) == width("encoder/block_0/mlp/fc1/bias")
    head_bias = form.fixed.get("head_bias", (True,))[0] or "head/kernel" not in by_path
    read: dict[str, Any] = {
        "num_classes": size("head/bias", 0) if head_bias else size("head/kernel", 1),
        "head_bias": head_bias,
        "final_norm": form.fixed.get("final_norm", (True,))[0],
        "patch_size": _patch_size(by_path["patch_embed/projection/kernel"], tensors),
        "embed_dim": width("encoder/block_0/norm1/scale"),
        "depth": len({path.split("/")[1] for path in by_path if path.startswith("encoder/")}),
        "mlp_dim": width("encoder/block_0/mlp/fc1/bias") // (1 + is_gated),
        "class_token": "cls" in by_path,
        "num_registers": width("registers", 1, 3) if "registers" in by_path else 0,
        "patch_bias": "patch_embed/projection/bias" in by_path,
        "embed_norm": "embed_norm/scale" in by_path,
        "qkv_bias": attention + "query/bias" in by_path,
        "qk_norm": attention + "query_norm/scale" in by_path,
        "sub_norm": attention + "norm/scale" in by_path,
        "norm_after_pool": "pool_norm/scale" in by_path,
        "layer_scale": 1e-5 if "encoder/block_0/scale1/gamma" in by_path else None,
        "pre_logits_dim": width("pre_logits/bias") if "pre_logits/bias" in by_path else None,
        "distilled": form.fixed.get("distilled") == (True,),
    }
    if config is not None and not own_config and not describes(config, form, read):
        config = None
    by_class = "cls" in by_path and not read["norm_after_pool"]
    assumed = dict(form.assumed) | ({"activation": "swiglu"} if is_gated else {})
    assumed["pool"] = "map" if "pool/probe" in by_path else "cls" if by_class else "gap"
    if form.fixed.get("rms_norm") != (False,) and not any(path.endswith("/norm1/bias") for path in by_path):
        assumed["rms_norm"] = True  # or LayerNorms without a bias, which no library has by default
    sides = image_sides(fields.get("image_size"), config)
    patches = None
    if sides is not None:
        patches = math.prod(patch_grid(sides, read["patch_size"]))
        is_partial = any(map(operator.mod, sides, patch_sides(read["patch_size"])))
        read["partial_patches"] = "drop" if is_partial else "error"
    if "positions" in by_path:
        read |= _positions(form, size("positions", 1), read, patches)
    elif _allows_sincos(form):
        read |= {"positions": "sincos2d", "class_position": False}
    if form.layout is flax_layout:
        read["num_heads"] = width(attention + "query/kernel", 1, 3)
    elif attention + "query_norm/scale" in by_path:
        read["num_heads"] = read["embed_dim"] // width(attention + "query_norm/scale")
    else:
        assumed["num_heads"] = _usual_heads(read["embed_dim"], read["depth"], read["mlp_dim"])
    pools = form.fixed.get("pool", ())
    if len(pools) == 1:
        assumed["pool"] = pools[0]
    if "pool/probe" in by_path or "cls" not in by_path or len(pools) == 1:
        read["pool"] = assumed.pop("pool")
    given = {name: value for name, value in fields.items() if name != "image_size"}
    stated = config_fields(config, given) | given
    assumed = {name: value for name, value in assumed.items() if name not in stated and name not in read}
    values: dict[str, Any] = assumed | read | stated
    if values["num_heads"] is None:
        raise ValueError(
            "num_heads must be given, because the tensors do not contain the number of heads and there is no usual "
            f"number for the width {read['embed_dim']}. Pass num_heads (--num-heads)"
        )
    module = ViT(**values)
    if sides is None and "positions" in by_path:
        sides = square_image(module, size("positions", 1))
    return Architecture(module, assumed, config, sides)


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


def join_chunks(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Remove the numbers of chunks from the names, such as 3 in "blocks.3.11.norm1" of DINOv2's training.

    If two names become equal, as in a network whose stages count their own blocks, no name is changed.
    """
    joined = {_CHUNK.sub(r"\1blocks.", key): tensor for key, tensor in tensors.items()}
    return joined if len(joined) == len(tensors) else dict(tensors)


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
    options: dict[str, Any] = dict.fromkeys(("embed_norm", "qk_norm", "sub_norm"), True)
    options |= {"num_registers": 1, "layer_scale": 1.0}
    module = ViT(1, 1, 4, depth, 1, 1, pool="map", pre_logits_dim=1, **options)
    other = ViT(1, 1, 4, depth, 1, 1, norm_after_pool=True, num_registers=1, distilled=True)
    return {path: leaf.shape for path, leaf in (module_leaves(module) | module_leaves(other)).items()}


def _depth(form: Format, keys: Collection[str]) -> int:
    """Count the different layer numbers in the keys, from 1 to `_MAX_DEPTH`. The numbers do not need to be in order."""
    numbered = [re.escape(rule.theirs) for rule in flat(form.table, form.separator) if "{i}" in rule.theirs]
    if not numbered:
        return 1
    matcher = re.compile("|".join(name.replace(re.escape("{i}"), "([0-9]+)") for name in numbered))
    matches = filter(None, (matcher.match(key) for key in keys))
    numbers = {next(filter(None, match.groups())) for match in matches}
    return min(max(len(numbers), 1), _MAX_DEPTH)


def _patch_size(pair: Pair, tensors: Mapping[str, LazyTensor]) -> PatchSize:
    """Return the patch size that the patch projection has; raise a ValueError if it is not a convolution."""
    shape = tensors[pair.theirs].shape
    sizes = axis_sizes(pair.pattern.split("->")[0], shape, {}) if pair.pattern else {}
    if not sizes or not all(sizes.values()):
        raise ValueError(f"{pair.theirs} must have the axes of a convolution, not empty, got the shape {shape}")
    height, width = sizes["p1"], sizes["p2"]
    return height if height == width else (height, width)


def _allows_sincos(form: Format) -> bool:
    """Return True if the library has models with fixed positions, for which the file has no tensor."""
    return "sincos2d" in form.fixed.get("positions", ("sincos2d",))


def _positions(form: Format, count: int, fields: Mapping[str, Any], patches: int | None) -> dict[str, bool]:
    """Find out whether class token and registers have positions. In timm, either all have one or none has.

    In timm, the number of positions determines this if the number of patches is known. Otherwise the answer is the one
    for which the patches form a square image. If both or none do, class token and registers are assumed to have
    positions.
    """
    prefix = fields["class_token"] + fields["num_registers"]
    if form.family not in TIMM_FAMILIES:
        return {name: form.fixed.get(name, (name == "class_position",))[0] for name in _POSITIONS}
    if patches is not None:
        have = count == patches + prefix
        if not have and count != patches:
            raise ValueError(
                f"image_size must give {count} or {count - prefix} patches, because the file has {count} positions, "
                f"got {patches} patches from config.json or your image_size. Pass image_size (--image-size), height "
                "and width in pixels"
            )
    else:
        with_prefix, without = (square_side(patches, fields["patch_size"]) for patches in (count - prefix, count))
        have = with_prefix > 0 or without == 0
    return {"class_position": have, "register_positions": have and fields["num_registers"] > 0}


def _usual_heads(embed_dim: int, depth: int, mlp_dim: int) -> int | None:
    """Return the heads of the published size with these numbers, else embed_dim / 64; None if this is no integer."""
    for width, layers, heads, hidden in SIZES.values():
        if (embed_dim, depth, mlp_dim) == (width, layers, hidden):
            return heads
    return None if embed_dim % 64 else embed_dim // 64
