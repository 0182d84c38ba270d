"""The Vision Transformer in other libraries: one table each, and the architecture that its tensors tell."""

import math
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from w2jax.convert.layouts import CONV, MULTIHEAD, QKV, Format, flax_layout
from w2jax.convert.lazy_tensor import LazyTensor, brief
from w2jax.convert.rules import Pair, Rule, Table, axis_sizes, flat
from w2jax.convert.schema import Leaf, module_leaves
from w2jax.vit import SIZES, ViT

TIMM = (
    Rule("cls_token", "cls"),
    Rule("reg_token", "registers"),
    Rule("pos_embed", "positions"),
    Rule("patch_embed.proj", "patch_embed/projection", CONV),
    Rule("norm_pre", "embed_norm"),
    Rule("blocks.{i}.norm1", "encoder/block_{i}/norm1"),
    Rule("blocks.{i}.attn.qkv", "encoder/block_{i}/attention/{query,key,value}", QKV),
    Rule("blocks.{i}.attn.q_norm", "encoder/block_{i}/attention/query_norm"),
    Rule("blocks.{i}.attn.k_norm", "encoder/block_{i}/attention/key_norm"),
    Rule("blocks.{i}.attn.proj", "encoder/block_{i}/attention/out"),
    Rule("blocks.{i}.ls1", "encoder/block_{i}/scale1"),
    Rule("blocks.{i}.norm2", "encoder/block_{i}/norm2"),
    Rule("blocks.{i}.mlp", "encoder/block_{i}/mlp"),
    Rule("blocks.{i}.ls2", "encoder/block_{i}/scale2"),
    Rule("norm", "norm"),
    Rule("attn_pool.latent", "pool/probe"),
    Rule("attn_pool.q", "pool/attention/query"),
    Rule("attn_pool.kv", "pool/attention/{key,value}", QKV),
    Rule("attn_pool.proj", "pool/attention/out"),
    Rule("attn_pool.norm", "pool/norm"),
    Rule("attn_pool.mlp", "pool/mlp"),
    Rule("fc_norm", "pool_norm"),
    Rule("head", "head"),
)

HUGGINGFACE_EMBEDDINGS = (
    Rule("cls_token", "cls"),
    Rule("position_embeddings", "positions"),
    Rule("patch_embeddings.projection", "patch_embed/projection", CONV),
)
HUGGINGFACE_BODY = (
    Rule("embeddings", "", HUGGINGFACE_EMBEDDINGS),
    Rule("encoder.layer.{i}.layernorm_before", "encoder/block_{i}/norm1"),
    Rule("encoder.layer.{i}.attention.output.dense", "encoder/block_{i}/attention/out"),
    Rule("encoder.layer.{i}.attention.attention", "encoder/block_{i}/attention"),  # query, key, value
    Rule("encoder.layer.{i}.layernorm_after", "encoder/block_{i}/norm2"),
    Rule("encoder.layer.{i}.intermediate.dense", "encoder/block_{i}/mlp/fc1"),
    Rule("encoder.layer.{i}.output.dense", "encoder/block_{i}/mlp/fc2"),
    Rule("layernorm", "norm"),
    Rule("pooler.dense", "pre_logits"),
)
# The names that modules have in memory since transformers 5; its files keep those above.
HUGGINGFACE_MEMORY_BODY = (
    Rule("embeddings", "", HUGGINGFACE_EMBEDDINGS),
    Rule("layers.{i}.layernorm_before", "encoder/block_{i}/norm1"),
    Rule("layers.{i}.attention.q_proj", "encoder/block_{i}/attention/query"),
    Rule("layers.{i}.attention.k_proj", "encoder/block_{i}/attention/key"),
    Rule("layers.{i}.attention.v_proj", "encoder/block_{i}/attention/value"),
    Rule("layers.{i}.attention.o_proj", "encoder/block_{i}/attention/out"),
    Rule("layers.{i}.layernorm_after", "encoder/block_{i}/norm2"),
    Rule("layers.{i}.mlp", "encoder/block_{i}/mlp"),
    Rule("layernorm", "norm"),
    Rule("pooler.dense", "pre_logits"),
)


def huggingface(body: Table) -> Table:
    """ViTForImageClassification around a ViTModel, which has no pooler there."""
    return Rule("vit", "", tuple(rule for rule in body if rule.ours != "pre_logits")), Rule("classifier", "head")


def torchvision(fc1: str, fc2: str) -> Table:
    """torchvision.models.VisionTransformer, given what a block's two MLP layers are called."""
    layer = "encoder.layers.encoder_layer_{i}."
    return (
        Rule("class_token", "cls"),
        Rule("conv_proj", "patch_embed/projection", CONV),
        Rule("encoder.pos_embedding", "positions"),
        Rule(layer + "ln_1", "encoder/block_{i}/norm1"),
        Rule(layer + "self_attention", "encoder/block_{i}/attention", MULTIHEAD),
        Rule(layer + "ln_2", "encoder/block_{i}/norm2"),
        Rule(layer + fc1, "encoder/block_{i}/mlp/fc1"),
        Rule(layer + fc2, "encoder/block_{i}/mlp/fc2"),
        Rule("encoder.ln", "norm"),
        Rule("heads.pre_logits", "pre_logits"),
        Rule("heads.head", "head"),
    )


def google(positions: str, norm1: int, attention: int, norm2: int, mlp: int) -> Table:
    """Flax's automatic names, given where the positions lie and how the layers of a block are numbered."""
    block = "Transformer/encoderblock_{i}/"
    return (
        Rule("cls", "cls"),
        Rule("embedding/kernel", "patch_embed/projection/kernel", "p1 p2 c d -> (p1 p2 c) d"),
        Rule("embedding/bias", "patch_embed/projection/bias"),
        Rule(positions, "positions"),
        Rule(f"{block}LayerNorm_{norm1}", "encoder/block_{i}/norm1"),
        Rule(f"{block}MultiHeadDotProductAttention_{attention}", "encoder/block_{i}/attention"),
        Rule(f"{block}LayerNorm_{norm2}", "encoder/block_{i}/norm2"),
        Rule(f"{block}MlpBlock_{mlp}/Dense_0", "encoder/block_{i}/mlp/fc1"),
        Rule(f"{block}MlpBlock_{mlp}/Dense_1", "encoder/block_{i}/mlp/fc2"),
        Rule("Transformer/encoder_norm", "norm"),
        Rule("MAPHead_0/probe", "pool/probe"),
        Rule("MAPHead_0/MultiHeadDotProductAttention_0", "pool/attention"),
        Rule("MAPHead_0/LayerNorm_0", "pool/norm"),
        Rule("MAPHead_0/MlpBlock_0/Dense_0", "pool/mlp/fc1"),
        Rule("MAPHead_0/MlpBlock_0/Dense_1", "pool/mlp/fc2"),
        Rule("pre_logits", "pre_logits"),
        Rule("head", "head"),
    )


_EVERYWHERE: dict[str, tuple[Any, ...]] = {"residual_from_norm": (False,), "attention_scale": (None,)}
_PLAIN = _EVERYWHERE | {
    **dict.fromkeys(("norm_after_pool", "register_positions", "qk_norm"), (False,)),
    "num_registers": (0,),
    "patch_bias": (True,),
}
_TIMM = _EVERYWHERE | {"positions": ("learned",)}
_CLASS_TOKEN = _PLAIN | {"pool": ("cls",), "class_position": (True,), "positions": ("learned",)}
_TORCHVISION = _CLASS_TOKEN | {"qkv_bias": (True,)}
_GOOGLE = _PLAIN | {"qkv_bias": (True,)}
_VIT_JAX: dict[str, tuple[Any, ...]] = {
    "class_position": (True,),
    "positions": ("learned",),
    "pool": ("cls", "gap"),
}
_EXACT: dict[str, Any] = {"activation": "gelu", "norm_eps": 1e-6}
_HUGGINGFACE: dict[str, Any] = {"activation": "gelu", "norm_eps": 1e-12}
_TANH: dict[str, Any] = {"activation": "gelu_tanh", "norm_eps": 1e-6}
_POSITIONS_WITH_CLASS = "Transformer/posembed_input/pos_embedding"


def _google(name: str, table: Table, fixed: dict[str, tuple[Any, ...]]) -> Format:
    return Format(name, table, "google", flax_layout, "/", _TANH, _GOOGLE | fixed)


# Of formats of one family the first that can express a module is written.
FORMATS = (
    Format("timm", TIMM, assumed=_EXACT, fixed=_TIMM | {"class_position": (True,), "register_positions": (True,)}),
    Format(
        "timm_no_embed_class",
        TIMM,
        "timm",
        assumed=_EXACT,
        fixed=_TIMM | {"class_position": (False,), "register_positions": (False,)},
    ),
    Format("huggingface", huggingface(HUGGINGFACE_BODY), assumed=_HUGGINGFACE, fixed=_CLASS_TOKEN),
    Format("huggingface_model", HUGGINGFACE_BODY, "huggingface", assumed=_HUGGINGFACE, fixed=_CLASS_TOKEN),
    Format(
        "huggingface_memory",
        huggingface(HUGGINGFACE_MEMORY_BODY),
        "huggingface",
        assumed=_HUGGINGFACE,
        fixed=_CLASS_TOKEN,
    ),
    Format(
        "huggingface_model_memory",
        HUGGINGFACE_MEMORY_BODY,
        "huggingface",
        assumed=_HUGGINGFACE,
        fixed=_CLASS_TOKEN,
    ),
    Format("torchvision", torchvision("mlp.0", "mlp.3"), assumed=_EXACT, fixed=_TORCHVISION),
    Format(
        "torchvision_old",
        torchvision("mlp.linear_1", "mlp.linear_2"),
        "torchvision",
        assumed=_EXACT,
        fixed=_TORCHVISION,
    ),
    _google("google", google(_POSITIONS_WITH_CLASS, 0, 0, 1, 0), _VIT_JAX),
    _google("big_vision", google("pos_embedding", 0, 0, 1, 0), {"class_position": (False,)}),
    _google("google_old", google(_POSITIONS_WITH_CLASS, 0, 1, 2, 3), _VIT_JAX),
    Format("torch", assumed=_EXACT),
)


_MAX_DEPTH = 1000  # layers; more are a file that is made to take time and memory


class Architecture(NamedTuple):
    """A ViT as its tensors tell it."""

    module: ViT
    assumed: dict[str, Any]
    """Those of its fields that neither tensors nor a config told."""


def recognise(keys: Mapping[str, Any]) -> tuple[Format, dict[str, Pair]]:
    """The format that most of the keys belong to, and its pairs by our path for the keys that are there.

    Raises:
        ValueError: if fewer than half of the keys are those of a ViT in any format.
    """
    candidates = []
    for form in FORMATS:
        found = [pair for pair in form.pairs(_all_leaves(_depth(form, keys))) if pair.theirs in keys]
        here = {path: pair for pair in found for path in pair.ours}
        placed = "positions" in here or "sincos2d" in form.fixed.get("positions", ("sincos2d",))
        candidates.append((len(found), placed, form, here))
    known, _, form, here = max(candidates, key=itemgetter(0, 1))
    if "patch_embed/projection/kernel" not in here or 2 * known < len(keys):
        some = ", ".join(map(brief, list(keys)[:3]))
        families = ", ".join(dict.fromkeys(form.family for form in FORMATS))
        raise ValueError(
            f"the tensors are those of no ViT of {families}: {known} of {len(keys)} names are known; "
            f"there are {some}, ..."
        )
    return form, here


def architecture(
    form: Format,
    found: Mapping[str, Pair],
    tensors: Mapping[str, LazyTensor],
    config: Mapping[str, Any] | None,
    given: Mapping[str, Any],
) -> Architecture:
    """The ViT whose parameters `tensors` are.

    Args:
        form: of the tensors.
        found: pairs by our path, as `recognise` gives them.
        tensors: theirs by name.
        config: what stands in config.json beside them.
        given: fields of the ViT that the user knows better, and `image_size`, (height, width).

    Raises:
        ValueError: if something cannot be read from the tensors and was not given.
    """

    def axes(path: str) -> dict[str, int]:
        pair, shape = found[path], tensors[found[path].theirs].shape
        return axis_sizes(pair.pattern.split("->")[0], shape, {}) if pair.pattern else {}

    def width(path: str, axis: int = -1, rank: int = 1) -> int:
        if path not in found:
            raise ValueError(f"the tensors are not those of a {form.name} ViT: there is none for {path}")
        shape = tensors[found[path].theirs].shape
        if len(shape) != rank or 0 in shape:
            raise ValueError(f"{found[path].theirs} is {shape}, wanted {rank} axes, none of them 0, for {path}")
        return shape[axis]

    patch, embed_dim = axes("patch_embed/projection/kernel"), width("encoder/block_0/norm1/scale")
    if not all(patch.values()) or not patch.get("p1") or patch["p1"] != patch["p2"]:
        shape = tensors[found["patch_embed/projection/kernel"].theirs].shape
        raise ValueError(f"patches must be square, the kernel that projects them is {shape}")
    attention = "encoder/block_0/attention/"
    told: dict[str, Any] = {
        "num_classes": width("head/bias") if "head/bias" in found else 0,
        "patch_size": patch["p1"],
        "embed_dim": embed_dim,
        "depth": len({path.split("/")[1] for path in found if path.startswith("encoder/")}),
        "mlp_dim": width("encoder/block_0/mlp/fc1/bias"),
        "class_token": "cls" in found,
        "num_registers": width("registers", 1, 3) if "registers" in found else 0,
        "patch_bias": "patch_embed/projection/bias" in found,
        "embed_norm": "embed_norm/scale" in found,
        "qkv_bias": attention + "query/bias" in found,
        "qk_norm": attention + "query_norm/scale" in found,
        "norm_after_pool": "pool_norm/scale" in found,
        "layer_scale": 1e-5 if "encoder/block_0/scale1/gamma" in found else None,
        "pre_logits_dim": width("pre_logits/bias") if "pre_logits/bias" in found else None,
    }
    by_class = "cls" in found and not told["norm_after_pool"]
    assumed = dict(form.assumed) | {"pool": "map" if "pool/probe" in found else "cls" if by_class else "gap"}
    if "positions" in found:
        count = width("positions", 1, 3)
        told |= _positions(form, count, told, _grid_size(given, config, told["patch_size"]))
    elif "sincos2d" in form.fixed.get("positions", ("sincos2d",)):
        told |= {"positions": "sincos2d", "class_position": False}
    if form.layout is flax_layout:
        told["num_heads"] = width(attention + "query/kernel", 1, 3)
    elif attention + "query_norm/scale" in found:
        told["num_heads"] = embed_dim // width(attention + "query_norm/scale")
    else:
        assumed["num_heads"] = _usual_heads(embed_dim, told["depth"], told["mlp_dim"])
    if "pool/probe" in found or "cls" not in found or form.fixed.get("pool") == ("cls",):
        told["pool"] = assumed.pop("pool")
    known = _from_config(config) | {name: value for name, value in given.items() if name != "image_size"}
    assumed = {name: value for name, value in assumed.items() if name not in known and name not in told}
    fields: dict[str, Any] = assumed | told | known
    if fields["num_heads"] is None:
        raise ValueError(
            f"the number of heads cannot be read from the tensors: none is usual for a width of {embed_dim}; "
            "give num_heads"
        )
    return Architecture(ViT(**fields), assumed)


def unexpressed(form: Format, module: ViT) -> list[str]:
    """What a module is or has that a format cannot say, as "field value"."""
    irrelevant = set()
    if not module.class_token or module.positions != "learned":
        irrelevant.add("class_position")
    if not module.num_registers:
        irrelevant.add("register_positions")
    together: list[tuple[str, str]] = []
    if form.family == "timm" and module.patch_bias == module.embed_norm:  # its pre_norm is both
        together.append(("patch_bias", "embed_norm"))
    if form.family == "google" and module.class_token != (module.pool == "cls"):
        together.append(("class_token", "pool"))
    return [
        f"{name} {getattr(module, name)}"
        for name, values in form.fixed.items()
        if name not in irrelevant and getattr(module, name) not in values
    ] + [" with ".join(f"{name} {getattr(module, name)}" for name in names) for names in together]


def unusual(name: str, module: ViT) -> str:
    """What a format's library has otherwise than the module, unless it is told."""
    assumed = next(form.assumed for form in FORMATS if name in (form.name, form.family))
    return ", ".join(
        f"{field} is {getattr(module, field)} here and {usual} there"
        for field, usual in assumed.items()
        if getattr(module, field) != usual
    )


def unstack(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Layers that big_vision stacked for a scan, under the names they have one by one."""
    apart: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        prefix, here, name = key.partition("Transformer/encoderblock/")
        if not here:
            apart[key] = tensor
            continue
        if not tensor.shape or 0 in tensor.shape or tensor.shape[0] > _MAX_DEPTH:
            raise ValueError(f"{brief(key)} is {tensor.shape}, wanted 1 to {_MAX_DEPTH} layers along its first axis")
        last = _Last(tensor)
        for i in range(tensor.shape[0]):
            layer = f"{prefix}Transformer/encoderblock_{i}/{name}"
            apart[layer] = LazyTensor(tensor.shape[1:], tensor.dtype, partial(last.layer, i))
    return apart


class _Last:
    """A stacked tensor that is kept from the first of its layers to the last, and read once for all of them."""

    def __init__(self, tensor: LazyTensor):
        self.tensor, self.array = tensor, None

    def layer(self, i: int) -> np.ndarray:
        array = self.tensor.read() if self.array is None else self.array
        self.array = None if i == self.tensor.shape[0] - 1 else array
        return array[i]


@lru_cache(maxsize=16)
def _all_leaves(depth: int) -> dict[str, tuple[int, ...]]:
    """The leaves of a ViT that has every parameter there is."""
    options: dict[str, Any] = {"num_registers": 1, "embed_norm": True, "qk_norm": True, "layer_scale": 1.0}
    module = ViT(1, 1, 4, depth, 1, 1, pool="map", pre_logits_dim=1, **options)
    both = module_leaves(module) | module_leaves(module.clone(norm_after_pool=True))
    return {path: leaf.shape for path, leaf in both.items()}


def _depth(form: Format, keys: Mapping[str, Any]) -> int:
    """How many layers are numbered; a number that is none of the first so many is not one of a ViT's."""
    numbered = [re.escape(rule.theirs) for rule in flat(form.table, form.separator) if "{i}" in rule.theirs]
    if not numbered:
        return 1
    matcher = re.compile("|".join(name.replace(re.escape("{i}"), "([0-9]+)") for name in numbered))
    matches = filter(None, (matcher.match(key) for key in keys))
    found = {next(filter(None, match.groups())) for match in matches}
    return min(max(len(found), 1), _MAX_DEPTH)


def _grid_size(given: Mapping[str, Any], config: Mapping[str, Any] | None, patch: int) -> int | None:
    """Number of patches of the images that the model was made for."""
    size = given.get("image_size")
    if size is None and config is not None:
        size = config.get("image_size") or _model_args(config).get("img_size")
    if size is None:
        return None
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 2**31 for side in sides):
        raise ValueError(f"the image size is one number of pixels or two, got {brief(repr(size))}")
    height, width = sides
    return (height // patch) * (width // patch)


def _positions(form: Format, count: int, told: Mapping[str, Any], patches: int | None) -> dict[str, bool]:
    """Which tokens in front have positions: all or, without the library saying so in the tensors, none of them.

    The number of positions tells, if that of the patches is known or one of the two leaves a square of them.
    """
    prefix = told["class_token"] + told["num_registers"]
    if form.family != "timm":
        return {"class_position": form.fixed.get("class_position", (True,))[0]}
    if patches is not None:
        placed = count == patches + prefix
    else:
        with_prefix, without = (n > 0 and math.isqrt(n) ** 2 == n for n in (count - prefix, count))
        placed = with_prefix or not without
    return {"class_position": placed, "register_positions": placed and told["num_registers"] > 0}


def _usual_heads(embed_dim: int, depth: int, mlp_dim: int) -> int | None:
    """Of the published size, else heads of 64."""
    for width, layers, heads, hidden in SIZES.values():
        if (embed_dim, depth, mlp_dim) == (width, layers, hidden):
            return heads
    return None if embed_dim % 64 else embed_dim // 64


_HUGGINGFACE_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def constructor(module: ViT, leaves: Mapping[str, Leaf], image_size: tuple[int, int] | None) -> str:
    """How timm builds the model that its names are for; what timm does by itself is left out."""
    height, width = image_size or _square(module, leaves) or ("HEIGHT", "WIDTH")
    arguments = {
        "img_size": f"({height}, {width})",
        "patch_size": module.patch_size,
        "in_chans": leaves["patch_embed/projection/kernel"].shape[0] // module.patch_size**2,
        "num_classes": module.num_classes,
        "embed_dim": module.embed_dim,
        "depth": module.depth,
        "num_heads": module.num_heads,
        "mlp_ratio": f"{module.mlp_dim} / {module.embed_dim}",
    }
    pool = {"cls": "token", "gap": "avg", "map": "map"}[module.pool]
    placed = module.class_position if module.class_token else module.register_positions
    special = {
        "global_pool": (f"'{pool}'", pool != "token"),
        "fc_norm": (module.norm_after_pool, module.norm_after_pool != (pool == "avg")),
        "class_token": (False, not module.class_token),
        "no_embed_class": (True, not placed and bool(module.class_token or module.num_registers)),
        "reg_tokens": (module.num_registers, module.num_registers > 0),
        "qkv_bias": (False, not module.qkv_bias),
        "qk_norm": (True, module.qk_norm),
        "init_values": (module.layer_scale, module.layer_scale is not None),
        "pre_norm": (True, module.embed_norm),
        "act_layer": (f"'{module.activation}'", module.activation != "gelu"),
        "norm_layer": (f"partial(nn.LayerNorm, eps={module.norm_eps})", module.norm_eps != 1e-6),
    }
    arguments |= {name: value for name, (value, unusual) in special.items() if unusual}
    return f"VisionTransformer({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def _square(module: ViT, leaves: Mapping[str, Leaf]) -> tuple[int, int] | None:
    """Height and width of a square image of as many patches as there are positions."""
    patches = leaves["positions"].shape[1] - module.prefix_positions
    side = math.isqrt(patches) * module.patch_size
    return (side, side) if side**2 == patches * module.patch_size**2 else None


def huggingface_config(
    module: ViT, leaves: Mapping[str, Leaf], architecture: str, image_size: tuple[int, int] | None
) -> dict[str, Any]:
    """The config.json of an architecture, ViTForImageClassification or ViTModel.

    Raises:
        ValueError: if `image_size`, (height, width), is None and the patches make no square.
    """
    image_size = image_size or _square(module, leaves)
    if image_size is None:
        patches = leaves["positions"].shape[1] - module.prefix_positions
        raise ValueError(f"{patches} patches are no square: give image_size, (height, width) in pixels")
    names = {ours: theirs for theirs, ours in reversed(_HUGGINGFACE_ACTIVATIONS.items())}
    labels = {str(i): f"LABEL_{i}" for i in range(module.num_classes)}
    return {
        "architectures": [architecture],
        "model_type": "vit",
        "hidden_size": module.embed_dim,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.num_heads,
        "intermediate_size": module.mlp_dim,
        "hidden_act": names[module.activation],
        "layer_norm_eps": module.norm_eps,
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": module.attention_dropout,
        "image_size": list(image_size),
        "patch_size": module.patch_size,
        "num_channels": leaves["patch_embed/projection/kernel"].shape[0] // module.patch_size**2,
        "qkv_bias": module.qkv_bias,
        "pooler_output_size": module.pre_logits_dim or module.embed_dim,
        "pooler_act": "tanh",
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    }


_TIMM_POOLS = {"token": "cls", "avg": "gap", "map": "map"}


def _from_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of the ViT that a config.json of Hugging Face or of timm tells."""
    if config is None:
        return {}
    if "model_type" in config:
        _chosen(config, "model_type", "vit", {"vit": None})
        _chosen(config, "pooler_act", "tanh", {"tanh": None})
        return {
            "num_heads": _number(config, "num_attention_heads", 12),
            "norm_eps": _number(config, "layer_norm_eps", 1e-12),
            "activation": _chosen(config, "hidden_act", "gelu", _HUGGINGFACE_ACTIVATIONS),
        }
    told: dict[str, Any] = {}
    arguments = _model_args(config)
    if "num_heads" in arguments:
        told["num_heads"] = _number(arguments, "num_heads", 12)
    place = arguments if arguments.get("global_pool") else config
    if place.get("global_pool"):
        told["pool"] = _chosen(place, "global_pool", "", _TIMM_POOLS)
    return told


def _model_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of timm's constructor, of which a config.json may have some."""
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise ValueError(f"config.json has model_args {brief(repr(arguments))}, wanted an object")
    return arguments


def _chosen(config: Mapping[str, Any], name: str, otherwise: str, known: Mapping[str, Any]) -> Any:
    value = config.get(name, otherwise)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"config.json has {name} {brief(repr(value))}, wanted {' or '.join(known)}")
    return known[value]


def _number(config: Mapping[str, Any], name: str, otherwise: int | float) -> Any:
    value = config.get(name, otherwise)
    kinds = (int,) if isinstance(otherwise, int) else (int, float)
    if type(value) not in kinds or not 0 < value < 2**31:
        raise ValueError(f"config.json has {name} {brief(repr(value))}, wanted a number like {otherwise}")
    return value
