"""Tables of the Vision Transformer's parameter names in other libraries, and the options that each library supports."""

from typing import Any

from w2jax.convert.layouts import CONV, MULTIHEAD, QKV, Format, flax_layout
from w2jax.convert.rules import Rule, Table
from w2jax.convert.vit_huggingface import CLASS_TOKEN, EVERYWHERE, EXACT, HUGGINGFACE_FORMATS, PLAIN
from w2jax.convert.vit_open_clip import OPEN_CLIP_FORMATS
from w2jax.vit import ViT

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
    Rule("blocks.{i}.attn.norm", "encoder/block_{i}/attention/norm"),
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

TIMM_DISTILLED = (
    Rule("dist_token", "registers"),
    Rule("head_dist", "head_distilled"),
    *(rule for rule in TIMM if rule.ours != "registers"),
)

# A tower of timm in open_clip, whose projection is not a part of timm's model.
_TRUNK = (Rule("trunk", "", tuple(rule for rule in TIMM if rule.ours != "head")), Rule("head.proj", "head"))


def _facebook(*rules: Rule) -> Table:
    """Return the table of Facebook's releases, whose names differ from timm's only in the given rules."""
    return (*rules, Rule("register_tokens", "registers"), *(rule for rule in TIMM if rule.ours != "registers"))


def torchvision(fc1: str, fc2: str) -> Table:
    """Return the table of torchvision.models.VisionTransformer; `fc1` and `fc2` name the MLP layers of a block."""
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
    """Return the table of Google's ViTs, which have Flax's automatic names.

    `positions` is the name of the positions. `norm1`, `attention`, `norm2` and `mlp` are the numbers in the names of a
    block's layers.
    """
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


_TIMM = EVERYWHERE | {
    "positions": ("learned",),
    "distilled": (False,),
    "head_bias": (True,),
    "pool": ("cls", "gap", "map"),
}
_WITH_POSITIONS: dict[str, tuple[Any, ...]] = {"class_position": (True,), "register_positions": (True,)}
# The registers of DINOv2 have no positions.
_FACEBOOK = {field: values for field, values in CLASS_TOKEN.items() if field != "num_registers"} | {
    "class_token": (True, False),
    "embed_norm": (False,),
    "norm_after_pool": (False, True),
    "pool": ("cls", "gap"),
    "activation": ("gelu",),
}
_TORCHVISION = CLASS_TOKEN | {"qkv_bias": (True,)}
_GOOGLE = PLAIN | {"qkv_bias": (True,)}
_VIT_JAX: dict[str, tuple[Any, ...]] = {
    "class_position": (True,),
    "positions": ("learned",),
    "pool": ("cls", "gap"),
}
_TANH: dict[str, Any] = {"activation": "gelu_tanh", "norm_eps": 1e-6}
_POSITIONS_WITH_CLASS = "Transformer/posembed_input/pos_embedding"


def _google(name: str, table: Table, fixed: dict[str, tuple[Any, ...]]) -> Format:
    return Format(name, table, "google", flax_layout, "/", _TANH, _GOOGLE | fixed)


def _facebook_format(name: str, table: Table, fixed: dict[str, tuple[Any, ...]]) -> Format:
    """Return a format of the family "facebook". Only pretraining uses the mask token and MAE's decoder."""
    return Format(name, table, "facebook", assumed=EXACT, fixed=_FACEBOOK | fixed, ignored=("mask_token", "decoder_"))


TIMM_FAMILIES = ("timm", "open_clip_trunk")
"""The families whose models have the options of timm's VisionTransformer."""

# A module is written in the first format of a family that supports all its options.
FORMATS = (
    Format("timm", TIMM, assumed=EXACT, fixed=_TIMM | _WITH_POSITIONS),
    Format(
        "timm_no_embed_class",
        TIMM,
        "timm",
        assumed=EXACT,
        fixed=_TIMM | {"class_position": (False,), "register_positions": (False,)},
    ),
    Format(
        "timm_distilled",
        TIMM_DISTILLED,
        "timm",
        assumed=EXACT,
        fixed=_TIMM | _WITH_POSITIONS | {"distilled": (True,), "num_registers": (1,)},
    ),
    *HUGGINGFACE_FORMATS,
    Format("torchvision", torchvision("mlp.0", "mlp.3"), assumed=EXACT, fixed=_TORCHVISION),
    Format(
        "torchvision_old",
        torchvision("mlp.linear_1", "mlp.linear_2"),
        "torchvision",
        assumed=EXACT,
        fixed=_TORCHVISION,
    ),
    _google("google", google(_POSITIONS_WITH_CLASS, 0, 0, 1, 0), _VIT_JAX),
    _google("big_vision", google("pos_embedding", 0, 0, 1, 0), {"class_position": (False,)}),
    _google("google_old", google(_POSITIONS_WITH_CLASS, 0, 1, 2, 3), _VIT_JAX),
    _facebook_format("facebook", _facebook(), {}),
    _facebook_format(
        "facebook_swiglu",
        _facebook(
            Rule("blocks.{i}.mlp.w12", "encoder/block_{i}/mlp/fc1"),
            Rule("blocks.{i}.mlp.w3", "encoder/block_{i}/mlp/fc2"),
        ),
        {"activation": ("swiglu",)},
    ),
    _facebook_format(
        "facebook_deit3",
        _facebook(
            Rule("blocks.{i}.gamma_1", "encoder/block_{i}/scale1/gamma"),
            Rule("blocks.{i}.gamma_2", "encoder/block_{i}/scale2/gamma"),
        ),
        {"class_position": (False,), "num_registers": (0,)},
    ),
    *OPEN_CLIP_FORMATS,
    Format("open_clip_trunk", _TRUNK, assumed=EXACT, fixed=_TIMM | _WITH_POSITIONS | {"head_bias": (False,)}),
    Format("torch", assumed=EXACT),
)


def inexpressible(form: Format, module: ViT) -> list[str]:
    """List the options of a module that a format does not support, each as "field value"."""
    irrelevant = set()
    if not module.class_token or module.positions != "learned":
        irrelevant.add("class_position")
    if not module.num_classes:
        irrelevant.add("head_bias")
    if not module.num_registers:
        irrelevant.add("register_positions")
    together: list[tuple[str, str]] = []
    if form.family in TIMM_FAMILIES and module.patch_bias == module.embed_norm:  # one option, pre_norm
        together.append(("patch_bias", "embed_norm"))
    if form.family == "google" and module.class_token != (module.pool == "cls"):
        together.append(("class_token", "pool"))
    return [
        f"{name} {getattr(module, name)}"
        for name, values in form.fixed.items()
        if name not in irrelevant and getattr(module, name) not in values
    ] + [" with ".join(f"{name} {getattr(module, name)}" for name in names) for names in together]


def different_defaults(name: str, module: ViT) -> str:
    """Describe the fields that differ from the defaults of a format's library; "" if no field differs."""
    form = next(form for form in FORMATS if name in (form.name, form.family))
    return ", ".join(
        f"{field} is {getattr(module, field)} in this model and {default} by default in {form.family}"
        for field, default in form.assumed.items()
        if getattr(module, field) != default
    )
