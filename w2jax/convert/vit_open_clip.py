"""The image towers of OpenAI's CLIP and of open_clip: names of parameters, and options in open_clip_config.json.

The names are those of the code <https://github.com/openai/CLIP> and <https://github.com/mlfoundations/open_clip>. In
files they have the prefix "visual.".
"""

from collections.abc import Mapping
from typing import Any

from w2jax.convert.layouts import CONV, MULTIHEAD, Format
from w2jax.convert.rules import Rule, Table
from w2jax.convert.timm_names import POOLS, fields_of_model
from w2jax.convert.vit_huggingface import CLASS_TOKEN
from w2jax.text import shorten


def _tower(last_norm: str) -> Table:
    """Return the table of a tower whose last LayerNorm has this path in w2jax."""
    block = "transformer.resblocks.{i}."
    return (
        Rule("class_embedding", "cls", "d -> 1 1 d"),
        Rule("positional_embedding", "positions", "n d -> 1 n d"),
        Rule("conv1", "patch_embed/projection", CONV),
        Rule("ln_pre", "embed_norm"),
        Rule(block + "ln_1", "encoder/block_{i}/norm1"),
        Rule(block + "attn", "encoder/block_{i}/attention", MULTIHEAD),
        Rule(block + "ls_1", "encoder/block_{i}/scale1"),
        Rule(block + "ln_2", "encoder/block_{i}/norm2"),
        Rule(block + "mlp.c_fc", "encoder/block_{i}/mlp/fc1"),
        Rule(block + "mlp.c_proj", "encoder/block_{i}/mlp/fc2"),
        Rule(block + "ls_2", "encoder/block_{i}/scale2"),
        Rule("ln_post", last_norm),
        Rule("proj", "head/kernel", "d v -> d v"),
    )


_OPEN_CLIP = CLASS_TOKEN | {
    **dict.fromkeys(("patch_bias", "head_bias"), (False,)),
    "qkv_bias": (True,),
    "activation": ("gelu", "gelu_tanh", "quick_gelu"),
    "pool": ("cls", "gap"),
}
_OPENAI = _OPEN_CLIP | {
    "pool": ("cls",),
    "embed_norm": (True,),
    "layer_scale": (None,),
    "activation": ("quick_gelu",),
    "norm_eps": (1e-5,),
}
_AVERAGE = _OPEN_CLIP | {"pool": ("gap",), "norm_after_pool": (True,)}
_ASSUMED: dict[str, Any] = {"activation": "gelu", "norm_eps": 1e-5}

OPEN_CLIP_FORMATS = (
    Format(
        "openai_clip",
        _tower("norm"),
        assumed=_ASSUMED | {"activation": "quick_gelu"},
        fixed=_OPENAI,
        beside="input_resolution",
    ),
    Format("open_clip", _tower("norm"), assumed=_ASSUMED, fixed=_OPEN_CLIP),
    Format("open_clip_average", _tower("pool_norm"), "open_clip", assumed=_ASSUMED, fixed=_AVERAGE),
)

_POOLS = {"tok": "cls", "avg": "gap"}
_KNOWN = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "patch_dropout"}
_KNOWN |= {"no_ln_pre", "pos_embed_type", "output_tokens", "block_type", "attn_pooler_queries", "attn_pooler_heads"}
_KNOWN |= {"act_kwargs", "norm_kwargs", "pool_type", "final_ln_after_pool", "timm_model_name", "timm_model_pretrained"}
_KNOWN |= {"timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"}
"""Options that are read here, whose effect the tensors show, or that do not change the outputs."""


def vision_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of the image tower in an open_clip_config.json.

    Raises:
        ValueError: the file has no such options.
    """
    model = config["model_cfg"]
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(vision, dict):
        raise ValueError("open_clip_config.json must have the object vision_cfg in model_cfg")
    return vision


def open_clip_fields(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Read fields of the ViT from an open_clip_config.json. `given` are the user's values of fields.

    Raises:
        ValueError: an option has a wrong value, is unknown, or `ViT` does not have it.
    """
    vision = vision_options(config)
    for name, value in vision.items():
        if name not in _KNOWN and value not in (None, False):
            raise ValueError(f"w2jax.ViT does not have {shorten(name)}, which open_clip_config.json turns on")
    name = vision.get("timm_model_name")
    if name is None:
        return _fields_of_tower(vision, config["model_cfg"].get("quick_gelu", False))
    if not isinstance(name, str):
        raise ValueError(f"timm_model_name in open_clip_config.json must be a name, got {shorten(repr(name))}")
    fields = fields_of_model(name, {}, given)
    if vision.get("timm_pool") == "" and vision.get("timm_proj", "linear") in ("linear", "mlp"):
        return fields  # the pool of the named model
    return fields | {"pool": _choice("timm_pool", vision.get("timm_pool", "avg"), POOLS)}


def _fields_of_tower(vision: Mapping[str, Any], quick_gelu: Any) -> dict[str, Any]:
    width, head_width = (vision.get(name, default) for name, default in (("width", 768), ("head_width", 64)))
    sizes = (vision.get("layers", 12), width, head_width)
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes) or width % head_width:
        raise ValueError(
            "layers, width and head_width in open_clip_config.json must be positive integers, and head_width must "
            f"divide width, got {shorten(repr(sizes))}. A list of layers is a ResNet, which w2jax does not have"
        )
    activations = [(False, None, "gelu"), (False, {"approximate": "tanh"}, "gelu_tanh"), (True, None, "quick_gelu")]
    chosen = quick_gelu, vision.get("act_kwargs")
    activation = next((name for *options, name in activations if chosen == tuple(options)), None)
    if activation is None:
        raise ValueError(
            'open_clip_config.json must have quick_gelu true, or act_kwargs {"approximate": "tanh"}, or neither, got '
            f"{shorten(repr(chosen))}"
        )
    norm = vision.get("norm_kwargs") or {"eps": 1e-5}
    eps = norm["eps"] if isinstance(norm, dict) and norm.keys() == {"eps"} else None
    if type(eps) is not float or not 0 < eps < 1:
        raise ValueError(
            f'norm_kwargs in open_clip_config.json must have only "eps", from 0 to 1, got {shorten(repr(norm))}'
        )
    pool = _choice("pool_type", vision.get("pool_type", "tok"), _POOLS)
    return {
        "num_heads": width // head_width,
        "activation": activation,
        "norm_eps": eps,
        "pool": pool,
        "norm_after_pool": pool == "gap" and vision.get("final_ln_after_pool") is True,
    }


def _choice(name: str, value: Any, values: Mapping[str, str]) -> str:
    if not isinstance(value, str) or value not in values:
        raise ValueError(f"{name} in open_clip_config.json must be {' or '.join(values)}, got {shorten(repr(value))}")
    return values[value]
