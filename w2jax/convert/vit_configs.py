"""Vision Transformer options in Hugging Face and timm: config.json, and the constructor of timm."""

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
    """Return the Python call that builds the module in timm, without arguments that have timm's default values."""
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
    """Return height and width of the square image that fits the number of positions, or None if none fits."""
    patches = leaves["positions"].shape[1] - module.prefix_positions
    side = math.isqrt(patches) * module.patch_size
    return (side, side) if side**2 == patches * module.patch_size**2 else None


def huggingface_config(
    module: ViT, leaves: Mapping[str, Leaf], architecture: str, image_size: tuple[int, int] | None
) -> dict[str, Any]:
    """Build the config.json of Hugging Face.

    Args:
        module: the ViT.
        leaves: its leaves.
        architecture: ViTForImageClassification or ViTModel.
        image_size: (height, width) in pixels. None: the images are square.

    Raises:
        ValueError: `image_size` is None, and the number of patches is not a square number.
    """
    image_size = image_size or _square_image(module, leaves)
    if image_size is None:
        patches = leaves["positions"].shape[1] - module.prefix_positions
        raise ValueError(
            f"image_size must be given, because {patches} patches are not a square image. "
            "Pass image_size (--image-size), height and width in pixels"
        )
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
    """Read fields of the ViT from a config.json of Hugging Face or timm.

    Raises:
        ValueError: a value has the wrong type, or `ViT` does not support it.
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
    """Compute the number of patches of an image, from `image_size` or else from the config; None if both are None."""
    if image_size is None and config is not None:
        image_size = config.get("image_size") or _model_args(config).get("img_size")
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, list | tuple) else [image_size, image_size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 2**31 for side in sides):
        raise ValueError(f"image_size must be one or two positive integers (pixels), got {shorten(repr(image_size))}")
    height, width = sides
    return (height // patch) * (width // patch)


def _model_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of timm's constructor in a config.json, or {}."""
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise ValueError(f"model_args in config.json must be an object, got {shorten(repr(arguments))}")
    return arguments


def _choice(config: Mapping[str, Any], name: str, default: str, values: Mapping[str, Any]) -> Any:
    value = config.get(name, default)
    if not isinstance(value, str) or value not in values:
        raise ValueError(f"{name} in config.json must be {' or '.join(values)}, got {shorten(repr(value))}")
    return values[value]


def _number(config: Mapping[str, Any], name: str, default: int | float) -> Any:
    value = config.get(name, default)
    types = (int,) if isinstance(default, int) else (int, float)
    if type(value) not in types or not 0 < value < 2**31:
        kind = "a positive integer" if isinstance(default, int) else "a positive number"
        raise ValueError(f"{name} in config.json must be {kind}, such as {default}, got {shorten(repr(value))}")
    return value
