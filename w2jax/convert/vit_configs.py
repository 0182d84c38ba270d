"""Vision Transformer options in Hugging Face and timm: config.json, and the constructor of timm."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from w2jax.convert.layouts import Format
from w2jax.convert.schema import Leaf
from w2jax.convert.timm_names import POOLS, fields_of_model
from w2jax.convert.vit_huggingface import DEFAULTS, WITH_TEXT
from w2jax.convert.vit_open_clip import open_clip_fields, vision_options
from w2jax.text import shorten
from w2jax.vit import PatchSize, ViT, patch_sides

_HUGGINGFACE_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}

_TIMM_ARCHITECTURES = {
    ((), 1e-6): "vit_base_patch16_224",
    ((), 1e-5): "vit_base_patch16_clip_224",
    (("distilled",), 1e-6): "deit_base_distilled_patch16_224",
    (("gated",), 1e-6): "vit_giant_patch14_dinov2",
    (("res_post_norm",), 1e-6): "vit_base_patch16_rpn_224",
}
"""Models of timm that have a kind of block, MLP or head, and an epsilon of LayerNorm. Arguments determine the rest."""


def timm_constructor(module: ViT, leaves: Mapping[str, Leaf], image_size: tuple[int, int] | None) -> str:
    """Return the Python call that builds the module in timm, without arguments that have timm's default values."""
    arguments = {name: repr(value) for name, value in timm_arguments(module, leaves, image_size).items()}
    height, width = image_size or square_image(module, leaves["positions"].shape[1]) or ("HEIGHT", "WIDTH")
    is_gated = module.activation == "swiglu"
    arguments |= {
        "img_size": f"({height}, {width})",
        "mlp_ratio": f"{module.mlp_dim * (2 if is_gated else 1)} / {module.embed_dim}",
    }
    if is_gated:
        arguments |= {"act_layer": "'silu'", "mlp_layer": "partial(GluMlp, gate_last=False)"}
    if module.norm_eps != 1e-6:
        arguments["norm_layer"] = f"partial({'RmsNorm' if module.rms_norm else 'nn.LayerNorm'}, eps={module.norm_eps})"
    if module.res_post_norm:
        arguments["block_fn"] = "ResPostBlock"
    name = "VisionTransformerDistilled" if module.distilled else "VisionTransformer"
    return f"{name}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def timm_arguments(module: ViT, leaves: Mapping[str, Leaf], image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Return timm's arguments for the module as JSON values, without those that have timm's default values.

    JSON can express neither a gated MLP nor the position of the norms nor another epsilon of LayerNorm. The name of the
    architecture does.
    """
    width = module.mlp_dim * (2 if module.activation == "swiglu" else 1)
    ratio = width / module.embed_dim
    arguments: dict[str, Any] = {
        "img_size": image_size or square_image(module, leaves["positions"].shape[1]),
        "patch_size": module.patch_size,
        "in_chans": _channels(module, leaves),
        "num_classes": module.num_classes,
        "embed_dim": module.embed_dim,
        "depth": module.depth,
        "num_heads": module.num_heads,
        # timm rounds the product with embed_dim down.
        "mlp_ratio": ratio if int(module.embed_dim * ratio) == width else (width + 0.5) / module.embed_dim,
    }
    pool = {ours: theirs for theirs, ours in POOLS.items()}[module.pool]
    prefix_positions = module.class_position if module.class_token else module.register_positions
    options = {  # name: (value, whether it differs from timm's default)
        "global_pool": (pool, pool != "token"),
        "fc_norm": (module.norm_after_pool, module.norm_after_pool != (pool == "avg")),
        "class_token": (False, not module.class_token),
        "no_embed_class": (True, not prefix_positions and bool(module.class_token or module.num_registers)),
        "reg_tokens": (module.num_registers, module.num_registers > 0 and not module.distilled),
        "qkv_bias": (False, not module.qkv_bias),
        "qk_norm": (True, module.qk_norm),
        "init_values": (module.layer_scale, module.layer_scale is not None),
        "scale_attn_norm": (True, module.sub_norm),
        "scale_mlp_norm": (True, module.sub_norm),
        "pool_include_prefix": (True, module.pool_prefix),
        "pre_norm": (True, module.embed_norm),
        "final_norm": (False, not module.final_norm),
        "act_layer": (module.activation, module.activation not in ("gelu", "swiglu")),
        "norm_layer": ("rmsnorm", module.rms_norm),
    }
    return arguments | {name: value for name, (value, differs) in options.items() if differs}


def timm_config(
    module: ViT,
    arguments: Mapping[str, Any],
    images: Mapping[str, Any],
    label_names: Sequence[str] | None,
    source: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """Build timm's config.json, so that `timm.create_model("local-dir:FOLDER", pretrained=True)` builds the module.

    Args:
        module: the ViT.
        arguments: its `timm_arguments`.
        images: how images are prepared, in timm's terms.
        label_names: names of the classes, or None.
        source: config.json of the file from which the module was read. Its tag and license are kept.

    Returns:
        The config; None if no architecture of timm has the module's epsilon or nearly so, or the image size is unknown.
        Epsilons below 1e-6, such as Hugging Face's 1e-12, become 1e-6.
    """
    kinds = {
        "distilled": module.distilled,
        "gated": module.activation == "swiglu",
        "res_post_norm": module.res_post_norm,
    }
    eps = max(module.norm_eps, 1e-6)
    architecture = _TIMM_ARCHITECTURES.get((tuple(name for name, has in kinds.items() if has), eps))
    if architecture is None or arguments["img_size"] is None or (module.rms_norm and eps != 1e-6):
        return None
    given = {} if source is None or "model_type" in source else timm_pretrained(source)
    kept = {name: given[name] for name in ("tag", "license") if isinstance(given.get(name), str)}
    # These differ between the architectures, so they are always stated.
    defaults = {"pre_norm": False, "init_values": None, "qkv_bias": True, "class_token": True, "global_pool": "token"}
    arguments = {**defaults, **arguments}
    return {
        "architecture": architecture,
        "num_classes": module.num_classes,
        "num_features": module.embed_dim,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        **({} if label_names is None else {"label_names": list(label_names)}),
        "pretrained_cfg": {
            **kept,
            "custom_load": False,
            "fixed_input_size": True,
            **images,
            "num_classes": module.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if module.distilled else "head",
        },
    }


def square_image(module: ViT, positions: int) -> tuple[int, int] | None:
    """Return height and width of the square image that fits the number of positions, or None if none fits."""
    side = square_side(positions - module.prefix_positions, module.patch_size)
    return (side, side) if side else None


def square_side(patches: int, patch_size: PatchSize) -> int:
    """Return the side in pixels of the square image that has this number of patches; 0 if no square image has it."""
    height, width = patch_sides(patch_size)
    area = max(patches, 0) * height * width
    side = math.isqrt(area)
    return side if side**2 == area and side % height == 0 == side % width else 0


def _channels(module: ViT, leaves: Mapping[str, Leaf]) -> int:
    """Return the number of channels of the images."""
    return leaves["patch_embed/projection/kernel"].shape[0] // math.prod(patch_sides(module.patch_size))


def huggingface_config(
    module: ViT,
    leaves: Mapping[str, Leaf],
    model: tuple[str, str],
    image_size: tuple[int, int] | None,
    label_names: Sequence[str] | None = None,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the config.json of Hugging Face.

    Args:
        module: the ViT.
        leaves: its leaves.
        model: "model_type" and the architecture, such as ("vit", "ViTForImageClassification").
        image_size: (height, width) in pixels. None: that of `source`, else the images are square.
        label_names: names of the classes. None: those in `source`, else LABEL_0, LABEL_1 ….
        source: config.json of the file from which the module was read. Its other fields are kept, if it has the same
            "model_type".

    Raises:
        ValueError: `image_size` is None, and the number of patches is not a square number; there are more or fewer
            `label_names` than classes; or the library cannot have the MLP's width or such patches.
    """
    model_type, architecture = model
    if isinstance(module.patch_size, tuple) and model_type not in ("vit", "deit", "vit_msn", "ijepa"):
        raise ValueError(f"patches must be square in Hugging Face's {architecture}, got patch_size {module.patch_size}")
    if label_names is not None and len(label_names) != module.num_classes:
        raise ValueError(f"label_names must have {module.num_classes} names (num_classes), got {len(label_names)}")
    label_names = label_names or class_names(source, module.num_classes)
    kept = dict(source) if source is not None and source.get("model_type") == model_type else {}
    inner = kept.get("vision_config")
    encoder = kept if model_type not in WITH_TEXT else inner if isinstance(inner, dict) else {}
    size: Any = image_size or encoder.get("image_size") or square_image(module, leaves["positions"].shape[1])
    if size is None:
        patches = leaves["positions"].shape[1] - module.prefix_positions
        raise ValueError(
            f"image_size must be given, because {patches} patches are not a square image. "
            "Pass image_size (--image-size), height and width in pixels"
        )
    names = {ours: theirs for theirs, ours in reversed(_HUGGINGFACE_ACTIVATIONS.items())}
    activation = names.get(module.activation, "gelu")
    if _HUGGINGFACE_ACTIVATIONS.get(str(encoder.get("hidden_act"))) == module.activation:
        activation = encoder["hidden_act"]
    labels = {str(i): f"LABEL_{i}" for i in range(module.num_classes)}
    if label_names:
        labels = {str(i): name for i, name in enumerate(label_names)}
    named = {"architectures": [architecture], "model_type": model_type}
    classes = {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
    config = {
        "hidden_size": module.embed_dim,
        "num_hidden_layers": module.depth,
        "num_attention_heads": module.num_heads,
        "hidden_act": activation,
        "layer_norm_eps": module.norm_eps,
        "image_size": list(size) if isinstance(size, tuple) else size,
        "patch_size": module.patch_size,
        "num_channels": _channels(module, leaves),
    }
    if model_type.startswith(WITH_TEXT):
        if isinstance(size, tuple):
            if size[0] != size[1]:
                raise ValueError(f"image_size must be square in Hugging Face's {architecture}, got {size}")
            config["image_size"] = size[0]
        dropout = {"attention_dropout": module.attention_dropout}
        encoder = dropout | encoder | config | {"intermediate_size": module.mlp_dim}
        if model_type in WITH_TEXT:
            encoder |= {"model_type": f"{model_type}_vision_model"}
            # SigLIP's classifier does not use the attention pool, so the file does not have it.
            encoder |= {"vision_use_head": False} if model_type == "siglip" else {}
            return kept | named | {"vision_config": encoder} | classes
        projection = {"projection_dim": module.num_classes} if module.num_classes else {}
        return encoder | named | projection
    dropout = {"hidden_dropout_prob": module.dropout, "attention_probs_dropout_prob": module.attention_dropout}
    config |= {"qkv_bias": module.qkv_bias} | named | classes
    if model_type.startswith("dinov2"):
        return dropout | kept | config | _dinov2_fields(module)
    if model_type in ("vit", "deit"):
        config |= {"pooler_output_size": module.pre_logits_dim or module.embed_dim, "pooler_act": "tanh"}
    return dropout | kept | config | {"intermediate_size": module.mlp_dim}


def _dinov2_fields(module: ViT) -> dict[str, Any]:
    """Return the fields of config.json that only DINOv2 has."""
    is_gated = module.activation == "swiglu"
    if is_gated and module.mlp_dim % 8:
        raise ValueError(f"mlp_dim must be a multiple of 8 in Hugging Face's DINOv2 with SwiGLU, got {module.mlp_dim}")
    ratio = module.mlp_dim * (1.5 if is_gated else 1) / module.embed_dim  # The library takes two thirds for SwiGLU.
    fields = {
        "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
        "use_swiglu_ffn": is_gated,
        "layerscale_value": 1.0 if module.layer_scale is None else module.layer_scale,
    }
    if module.num_registers:
        return fields | {"num_register_tokens": module.num_registers}
    return fields | {"use_mask_token": False}


def config_fields(config: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read fields of the ViT from a config of Hugging Face, timm or open_clip. `given` are the user's values of fields.

    Raises:
        ValueError: a value has the wrong type, `ViT` does not support it, or the config has something unknown that may
            change the outputs, and `given` does not have the fields that it may change.
    """
    if config is None:
        return {}
    if "model_cfg" in config:
        return open_clip_fields(config, given)
    if "model_type" in config:
        config = vision_config(config)
        defaults = _choice(config, "model_type", "", DEFAULTS)
        _choice(config, "pooler_act", "tanh", {"tanh": None})
        activation = defaults["activation"]
        if config.get("use_swiglu_ffn") is True:
            activation = "swiglu"
        elif "hidden_act" in config:
            activation = _choice(config, "hidden_act", "", _HUGGINGFACE_ACTIVATIONS)
        return {
            "num_heads": _number(config, "num_attention_heads", 12),
            "norm_eps": _number(config, "layer_norm_eps", defaults["norm_eps"]),
            "activation": activation,
        }
    arguments = model_args(config)
    fields = fields_of_model(config.get("architecture"), arguments, given)
    place = arguments if arguments.get("global_pool") else config
    if place.get("global_pool"):
        fields["pool"] = _choice(place, "global_pool", "", POOLS)
    return fields


def vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a Hugging Face config that describes images, if the model is one of images and text."""
    inner = config.get("vision_config")
    if config.get("model_type") not in WITH_TEXT or not isinstance(inner, dict):
        return config
    return {"model_type": f"{config['model_type']}_vision_model", **inner}


def describes(config: Mapping[str, Any], form: Format, sizes: Mapping[str, Any]) -> bool:
    """Return True if a config.json is that of a ViT with these sizes in the format's library.

    A config.json of another program, or of a ViT with other sizes, gives False.
    """
    if "model_type" in config:
        config = vision_config(config)
        stated = {
            "embed_dim": config.get("hidden_size", 768),
            "depth": config.get("num_hidden_layers", 12),
            "patch_size": _as_field(config.get("patch_size", 16)),
        }
        if "mlp_ratio" not in config:
            stated["mlp_dim"] = config.get("intermediate_size", 3072)
        is_type = form.huggingface is not None and config.get("model_type") in DEFAULTS
        return is_type and all(sizes[name] == size for name, size in stated.items())
    architecture, arguments = config.get("architecture"), config.get("model_args") or {}
    if form.family != "timm" or not isinstance(architecture, str) or not isinstance(arguments, dict):
        return False
    stated = {name: _as_field(arguments[name]) for name in ("embed_dim", "depth", "patch_size") if name in arguments}
    stated = {"embed_dim": config.get("num_features")} | stated
    is_vit = "vit" in architecture or architecture.startswith(("deit", "beit3"))
    return is_vit and all(sizes[name] == size for name, size in stated.items())


def _as_field(size: Any) -> Any:
    """Return a size in JSON as a field of `ViT` has it. The patch size can be a list of height and width."""
    if not isinstance(size, list):
        return size
    return size[0] if len(set(map(str, size))) == 1 else tuple(size)


def class_names(config: Mapping[str, Any] | None, count: int) -> list[str] | None:
    """Return the names of the classes in a config.json, if it has `count` names, else None.

    timm's names can be codes such as n01440764. If each has a description, the descriptions are returned. Hugging Face
    writes LABEL_0, LABEL_1 … if there are no names.
    """
    if config is None:
        return None
    names: Any = config.get("id2label")
    descriptions: Any = None
    if names is None:
        places = (config, timm_pretrained(config))
        names = next((place[key] for place in places for key in ("label_names", "labels") if place.get(key)), None)
        descriptions = next((place["label_descriptions"] for place in places if "label_descriptions" in place), None)
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        return None
    if names == [f"LABEL_{i}" for i in range(count)]:
        return None
    if isinstance(descriptions, dict) and all(isinstance(descriptions.get(name), str) for name in names):
        return [descriptions[name] for name in names]
    return names


def image_sides(image_size: Any, config: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Return (height, width) in pixels, from `image_size` or else from the config; None if neither has it."""
    if image_size is None and config is not None and "model_cfg" in config:
        image_size = vision_options(config).get("image_size", 224)
    elif image_size is None and config is not None:
        image_size = vision_config(config).get("image_size") or timm_image_size(config)
    if image_size is None:
        return None
    sides = image_size if isinstance(image_size, list | tuple) else [image_size, image_size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 2**31 for side in sides):
        raise ValueError(f"image_size must be one or two positive integers (pixels), got {shorten(repr(image_size))}")
    height, width = sides
    return height, width


def timm_pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of timm's config.json that describes the weights and their images. Older files have no part."""
    stated = config.get("pretrained_cfg") or config
    if not isinstance(stated, Mapping):
        raise ValueError(f"pretrained_cfg in config.json must be an object, got {shorten(repr(stated))}")
    return stated


def timm_image_size(config: Mapping[str, Any]) -> Any:
    """Return the image size that a model of timm is built for, as config.json has it; None if it has none."""
    stated = timm_pretrained(config)
    input_size = stated.get("input_size") if stated.get("fixed_input_size", True) else None
    sides = input_size[1:] if isinstance(input_size, list) and len(input_size) == 3 else None
    return model_args(config).get("img_size") or sides


def model_args(config: Mapping[str, Any]) -> dict[str, Any]:
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
