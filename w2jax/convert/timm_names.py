"""Fields of a Vision Transformer that timm's model names and arguments determine, and its tensors do not.

The names are those of `timm.list_models()` in timm 1.0.31 <https://github.com/huggingface/pytorch-image-models>.
"""

import re
from collections.abc import Mapping
from typing import Any

from w2jax.text import shorten

POOLS = {"token": "cls", "avg": "gap", "map": "map"}
"""The pool of `ViT` for each of timm's names."""

_HEADS = {"tiny": 3, "xsmall": 4, "wee": 4, "little": 5, "small": 6, "medium": 8, "mediumd": 8, "betwixt": 10}
_HEADS |= {"base": 12, "so150m2": 13, "so150m": 14, "vit": 2, "vit2": 2, "vit3": 3, "vit4": 3}
_HEADS |= dict.fromkeys(("large", "huge", "giant", "giantopt", "gigantic", "so400m", "intern300m"), 16)
"""Number of heads of a size; "vit" to "vit4" are those of test_vit to test_vit4."""

_MORE_HEADS = {r".*_giant_.*(dinov2|tipsv2|radio)": 24, r".*_plus_": 14, r"vit_base_patch16_gap_": 16}
"""Number of heads of names that differ from their size."""

_WORDS = {"deit", "deit3", "flexivit", "eva", "test", "clip", "quickgelu", "siglip", "dinov2", "tipsv2", "radio"}
_WORDS |= {"beit3", "v3", "v4", "distilled", "gap", "map", "plus", "miil", "36x1", "rpn", *_HEADS}
_NUMBERED_WORD = re.compile(r"(patch|reg)?\d+")  # patch16, reg4, and the image size 224

_REFUSED = {
    r"aimv2_": "projections without biases in the attention and the MLP",
    r".*_(xp|pwee|dpwee|18x2)_": "parallel blocks",
    r".*_(dlittle|dwee)_": "differential attention",
}
"""Models that have what `ViT` does not have. Some have tensors with the names of other models' tensors."""

_SPECIAL = {r".*_rpn_": "res_post_norm", r"test_vit3": "pool_prefix", r"test_vit4": "rms_norm"}
"""The option of `ViT` that a name implies. The tensors do not show the first two."""

# SigLIP 2.
_TANH = re.compile(r".*_(giantopt_patch16|so400m_patch16|base_patch32)_siglip_|.*_large_patch16_siglip_(gap_)?512")

_HARMLESS = {"img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "mlp_ratio"}
_HARMLESS |= {"qkv_bias", "qk_norm", "init_values", "class_token", "pos_embed", "no_embed_class", "reg_tokens"}
_HARMLESS |= {"pre_norm", "fc_norm", "dynamic_img_size", "strict_img_size", "drop_rate", "pos_drop_rate", "weight_init"}
_HARMLESS |= {"patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "fix_init"}
_HARMLESS |= {"scale_attn_norm", "scale_mlp_norm"}
"""Arguments of timm's constructor whose effect the tensors show, or that only training uses."""

_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu")
_DETERMINED = ("num_heads", "activation", "norm_eps")


def check_model(name: Any) -> None:
    """Raise a ValueError if a timm model is known to have what `ViT` does not have. `name` is None if it is unknown."""
    if not isinstance(name, str | None):
        raise ValueError(f"architecture in config.json must be a name, got {shorten(repr(name))}")
    for pattern, reason in _REFUSED.items():
        if name is not None and re.match(pattern, name):
            raise ValueError(f"{name} cannot be converted: w2jax.ViT does not have {reason}")


def fields_of_model(name: str | None, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a timm model that its tensors do not determine.

    Args:
        name: "architecture" in timm's config.json, such as "vit_base_patch16_clip_224"; None if absent.
        arguments: "model_args" in config.json, the arguments that differ from those of the name.
        given: the user's values of fields. They override those of the model.

    Raises:
        ValueError: the name or an argument is unknown, and the user has not given the fields; or `check_model` raises.
    """
    check_model(name)
    fields = {} if name is None else _of_name(name)
    unknown = [] if fields or name is None else [f'the architecture "{shorten(name)}"']
    fields |= _of_arguments(arguments)
    unknown += [f"the argument {shorten(argument)}" for argument in arguments if _is_unknown(argument, arguments)]
    missing = [field for field in _DETERMINED if field not in given]
    if unknown and missing:
        flags = ", ".join(f"--{field.replace('_', '-')}" for field in missing)
        raise ValueError(
            f"config.json has {', '.join(unknown)}, which w2jax does not know. Pass {', '.join(missing)} ({flags}) "
            "with the values of the model"
        )
    return fields


def _of_name(name: str) -> dict[str, Any]:
    """Return {} for an unknown name."""
    words = name.split("_")
    sizes = [word for word in words[1:] if word in _HEADS]
    if len(sizes) != 1 or not all(word in _WORDS or _NUMBERED_WORD.fullmatch(word) for word in words):
        return {}
    heads = next((heads for pattern, heads in _MORE_HEADS.items() if re.match(pattern, name)), _HEADS[sizes[0]])
    activation = "gelu"
    if "quickgelu" in words:
        activation = "quick_gelu"
    elif _TANH.match(name):
        activation = "gelu_tanh"
    elif "giant" in words and ("dinov2" in words or "tipsv2" in words):
        activation = "swiglu"
    return {
        "num_heads": heads,
        "activation": activation,
        "norm_eps": 1e-5 if {"clip", "beit3"} & {*words} else 1e-6,
        "final_norm": not {"radio", "intern300m"} & {*words},
        **{field: True for pattern, field in _SPECIAL.items() if re.match(pattern, name)},
    }


def _of_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    fields = {}
    if "num_heads" in arguments:
        fields["num_heads"] = arguments["num_heads"]
        if type(fields["num_heads"]) is not int or not 0 < fields["num_heads"] < 2**16:
            shown = shorten(repr(fields["num_heads"]))
            raise ValueError(f"num_heads in config.json must be a positive integer, such as 12, got {shown}")
    if arguments.get("act_layer") in _ACTIVATIONS:
        fields["activation"] = arguments["act_layer"]
    if "final_norm" in arguments:
        fields["final_norm"] = bool(arguments["final_norm"])
    if isinstance(arguments.get("pool_include_prefix"), bool):
        fields["pool_prefix"] = arguments["pool_include_prefix"]
    if arguments.get("norm_layer") == "rmsnorm":
        fields |= {"rms_norm": True, "norm_eps": 1e-6}
    return fields


def _is_unknown(argument: str, arguments: Mapping[str, Any]) -> bool:
    """Return True for an argument that may change the outputs in a way that is not known."""
    if argument == "act_layer":
        return arguments[argument] not in (None, *_ACTIVATIONS)
    if argument == "norm_layer":
        return arguments[argument] not in (None, "rmsnorm")
    if argument == "pool_include_prefix":
        return not isinstance(arguments[argument], bool | None)
    return argument not in _HARMLESS | {"num_heads", "final_norm"} and arguments[argument] not in (None, False)
