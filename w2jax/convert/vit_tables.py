"""Tables of the Vision Transformer's parameter names in other libraries, and the options that each library supports."""

from typing import Any

from w2jax.convert.layouts import CONV, MULTIHEAD, QKV, Format, flax_layout
from w2jax.convert.rules import Rule, Table
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
# The names in a model's state_dict since transformers 5. Its files still have the names above.
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
    """Return the table of ViTForImageClassification: a ViTModel without pooler, and a classifier."""
    return Rule("vit", "", tuple(rule for rule in body if rule.ours != "pre_logits")), Rule("classifier", "head")


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


# A module is written in the first format of a family that supports all its options.
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


def inexpressible(form: Format, module: ViT) -> list[str]:
    """List the options of a module that a format does not support, each as "field value"."""
    irrelevant = set()
    if not module.class_token or module.positions != "learned":
        irrelevant.add("class_position")
    if not module.num_registers:
        irrelevant.add("register_positions")
    together: list[tuple[str, str]] = []
    if form.family == "timm" and module.patch_bias == module.embed_norm:  # timm sets both with one option, pre_norm
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
