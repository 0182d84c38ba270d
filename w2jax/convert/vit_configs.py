"""How Hugging Face and timm configure a Vision Transformer: config.json, and timm's constructor."""

import math
from collections.abc import Mapping
from typing import Any

from w2jax.convert.schema import Leaf
from w2jax.text import shorten
from w2jax.vit import ViT

_HUGGINGFACE_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
_TIMM_POOLS = {"token": "cls", "avg": "gap", "map": "map"}


def timm_constructor(module: ViT, leaves: Mapping[str, Leaf], image_size: tuple[int, int] | None) -> str:
    """The call that builds the module in timm, without the arguments that are timm's defaults."""
    height, width = image_size or _square_image(module, leaves) or ("HEIGHT", "WIDTH")
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
    pool = {ours: theirs for theirs, ours in _TIMM_POOLS.items()}[module.pool]
    prefix_positions = module.class_position if module.class_token else module.register_positions
    options = {  # name: (value, whether it differs from timm's default)
        "global_pool": (f"'{pool}'", pool != "token"),
        "fc_norm": (module.norm_after_pool, module.norm_after_pool != (pool == "avg")),
        "class_token": (False, not module.class_token),
        "no_embed_class": (True, not prefix_positions and bool(module.class_token or module.num_registers)),
        "reg_tokens": (module.num_registers, module.num_registers > 0),
        "qkv_bias": (False, not module.qkv_bias),
        "qk_norm": (True, module.qk_norm),
        "init_values": (module.layer_scale, module.layer_scale is not None),
        "pre_norm": (True, module.embed_norm),
        "act_layer": (f"'{module.activation}'", module.activation != "gelu"),
        "norm_layer": (f"partial(nn.LayerNorm, eps={module.norm_eps})", module.norm_eps != 1e-6),
    }
    arguments |= {name: value for name, (value, differs) in options.items() if differs}
    return f"VisionTransformer({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def _square_image(module: ViT, leaves: Mapping[str, Leaf]) -> tuple[int, int] | None:
    """Height and width of the square image with as many patches as there are positions, None if there is none."""
    patches = leaves["positions"].shape[1] - module.prefix_positions
    side = math.isqrt(patches) * module.patch_size
    return (side, side) if side**2 == patches * module.patch_size**2 else None


def huggingface_config(
    module: ViT, leaves: Mapping[str, Leaf], architecture: str, image_size: tuple[int, int] | None
) -> dict[str, Any]:
    """The config.json of `architecture`, ViTForImageClassification or ViTModel.

    Raises:
        ValueError: if `image_size`, (height, width), is None and the number of patches is not a square.
    """
    image_size = image_size or _square_image(module, leaves)
    if image_size is None:
        patches = leaves["positions"].shape[1] - module.prefix_positions
        raise ValueError(f"{patches} patches are not a square: give image_size, (height, width) in pixels")
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


def config_fields(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of the ViT that a config.json of Hugging Face or timm states.

    Raises:
        ValueError: if a value has the wrong type, or is one that no `ViT` has.
    """
    if config is None:
        return {}
    if "model_type" in config:
        _choice(config, "model_type", "vit", {"vit": None})
        _choice(config, "pooler_act", "tanh", {"tanh": None})
        return {
            "num_heads": _number(config, "num_attention_heads", 12),
            "norm_eps": _number(config, "layer_norm_eps", 1e-12),
            "activation": _choice(config, "hidden_act", "gelu", _HUGGINGFACE_ACTIVATIONS),
        }
    fields: dict[str, Any] = {}
    arguments = _model_args(config)
    if "num_heads" in arguments:
        fields["num_heads"] = _number(arguments, "num_heads", 12)
    place = arguments if arguments.get("global_pool") else config
    if place.get("global_pool"):
        fields["pool"] = _choice(place, "global_pool", "", _TIMM_POOLS)
    return fields


def patch_count(image_size: Any, config: Mapping[str, Any] | None, patch: int) -> int | None:
    """The number of patches in an image of `image_size` pixels, else of the config's size; None if both are None."""
    if image_size is None and config is not None:
        image_size = config.get("image_size") or _model_args(config).get("img_size")
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, list | tuple) else [image_size, image_size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 2**31 for side in sides):
        raise ValueError(f"the image size must be one or two numbers of pixels, got {shorten(repr(image_size))}")
    height, width = sides
    return (height // patch) * (width // patch)


def _model_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of timm's constructor that a config.json may have."""
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise ValueError(f"config.json: model_args must be an object, got {shorten(repr(arguments))}")
    return arguments


def _choice(config: Mapping[str, Any], name: str, default: str, values: Mapping[str, Any]) -> Any:
    value = config.get(name, default)
    if not isinstance(value, str) or value not in values:
        raise ValueError(f"config.json: {name} must be {' or '.join(values)}, got {shorten(repr(value))}")
    return values[value]


def _number(config: Mapping[str, Any], name: str, default: int | float) -> Any:
    value = config.get(name, default)
    types = (int,) if isinstance(default, int) else (int, float)
    if type(value) not in types or not 0 < value < 2**31:
        raise ValueError(f"config.json: {name} must be a number like {default}, got {shorten(repr(value))}")
    return value
