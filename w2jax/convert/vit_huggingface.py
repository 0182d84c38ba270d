"""Tables of the parameter names of Hugging Face's Vision Transformers, and the options that each model supports.

The names are those of the files that `transformers` <https://github.com/huggingface/transformers> writes. The formats
with "memory" in their name have the names of its models in memory.
"""

from collections.abc import Iterator
from typing import Any

from w2jax.convert.layouts import CONV, MULTIHEAD, Format
from w2jax.convert.rules import Rule, Table

_EMBEDDINGS = (
    Rule("cls_token", "cls"),
    Rule("position_embeddings", "positions"),
    Rule("patch_embeddings.projection", "patch_embed/projection", CONV),
)
_ATTENTION = (
    Rule("encoder.layer.{i}.attention.output.dense", "encoder/block_{i}/attention/out"),
    Rule("encoder.layer.{i}.attention.attention", "encoder/block_{i}/attention"),  # query, key, value
)
_ENCODER = (
    Rule("encoder.layer.{i}.layernorm_before", "encoder/block_{i}/norm1"),
    *_ATTENTION,
    Rule("encoder.layer.{i}.layernorm_after", "encoder/block_{i}/norm2"),
    Rule("encoder.layer.{i}.intermediate.dense", "encoder/block_{i}/mlp/fc1"),
    Rule("encoder.layer.{i}.output.dense", "encoder/block_{i}/mlp/fc2"),
)
_NORM, _POOLER, _CLASSIFIER = Rule("layernorm", "norm"), Rule("pooler.dense", "pre_logits"), Rule("classifier", "head")

# ViT, and without pooler I-JEPA and the encoder of MAE.
_VIT = (Rule("embeddings", "", _EMBEDDINGS), *_ENCODER, _NORM)
_DEIT = (Rule("embeddings", "", (Rule("distillation_token", "registers"), *_EMBEDDINGS)), *_ENCODER, _NORM)
# The names in a model's state_dict since transformers 5.
_VIT_MEMORY = (
    Rule("embeddings", "", _EMBEDDINGS),
    Rule("layers.{i}.layernorm_before", "encoder/block_{i}/norm1"),
    Rule("layers.{i}.attention.q_proj", "encoder/block_{i}/attention/query"),
    Rule("layers.{i}.attention.k_proj", "encoder/block_{i}/attention/key"),
    Rule("layers.{i}.attention.v_proj", "encoder/block_{i}/attention/value"),
    Rule("layers.{i}.attention.o_proj", "encoder/block_{i}/attention/out"),
    Rule("layers.{i}.layernorm_after", "encoder/block_{i}/norm2"),
    Rule("layers.{i}.mlp", "encoder/block_{i}/mlp"),
    _NORM,
)
# transformers 5 writes the encoder of a classifier of MSN without the prefix "vit.".
_MSN_CLASSIFIER = (Rule("vit.embeddings", "", _EMBEDDINGS), *_ENCODER, Rule("vit.layernorm", "norm"), _CLASSIFIER)


def _dinov2(*mlp: Rule) -> Table:
    """Return the table of DINOv2, with and without registers."""
    return (
        Rule("embeddings", "", (Rule("register_tokens", "registers"), *_EMBEDDINGS)),
        *_ATTENTION,
        Rule("encoder.layer.{i}.norm1", "encoder/block_{i}/norm1"),
        Rule("encoder.layer.{i}.layer_scale1.lambda1", "encoder/block_{i}/scale1/gamma"),
        Rule("encoder.layer.{i}.norm2", "encoder/block_{i}/norm2"),
        *mlp,
        Rule("encoder.layer.{i}.layer_scale2.lambda1", "encoder/block_{i}/scale2/gamma"),
        _NORM,
    )


_DINOV2_PLAIN = _dinov2(Rule("encoder.layer.{i}.mlp", "encoder/block_{i}/mlp"))
_DINOV2_SWIGLU = _dinov2(
    Rule("encoder.layer.{i}.mlp.weights_in", "encoder/block_{i}/mlp/fc1"),
    Rule("encoder.layer.{i}.mlp.weights_out", "encoder/block_{i}/mlp/fc2"),
)
_VISION = (
    Rule("embeddings.patch_embedding", "patch_embed/projection", CONV),
    Rule("embeddings.position_embedding.weight", "positions", "n d -> 1 n d"),
    Rule("encoder.layers.{i}.layer_norm1", "encoder/block_{i}/norm1"),
    Rule("encoder.layers.{i}.self_attn.q_proj", "encoder/block_{i}/attention/query"),
    Rule("encoder.layers.{i}.self_attn.k_proj", "encoder/block_{i}/attention/key"),
    Rule("encoder.layers.{i}.self_attn.v_proj", "encoder/block_{i}/attention/value"),
    Rule("encoder.layers.{i}.self_attn.out_proj", "encoder/block_{i}/attention/out"),
    Rule("encoder.layers.{i}.layer_norm2", "encoder/block_{i}/norm2"),
    Rule("encoder.layers.{i}.mlp", "encoder/block_{i}/mlp"),
    Rule("post_layernorm", "norm"),
)
_CLIP = (
    Rule("embeddings.class_embedding", "cls", "d -> 1 1 d"),
    Rule("pre_layrnorm", "embed_norm"),  # the library's spelling
    *_VISION,
)
_SIGLIP = (
    *_VISION,
    Rule("head.probe", "pool/probe"),
    Rule("head.attention", "pool/attention", MULTIHEAD),
    Rule("head.layernorm", "pool/norm"),
    Rule("head.mlp", "pool/mlp"),
)


def _classifier(prefix: str, body: Table, *heads: Rule) -> Table:
    """Return the table of a classifier: a model under a prefix, and its heads."""
    return Rule(prefix, "", body), *heads


# The values of the fields of `ViT` that a library supports.
EVERYWHERE: dict[str, tuple[Any, ...]] = {"residual_from_norm": (False,), "attention_scale": (None,)}
PLAIN: dict[str, tuple[Any, ...]] = EVERYWHERE | {
    **dict.fromkeys(("norm_after_pool", "register_positions", "qk_norm", "distilled"), (False,)),
    **dict.fromkeys(("res_post_norm", "rms_norm", "sub_norm", "pool_prefix"), (False,)),
    **dict.fromkeys(("patch_bias", "final_norm", "head_bias"), (True,)),
    "num_registers": (0,),
    "activation": ("gelu", "gelu_tanh", "quick_gelu", "relu"),
}
CLASS_TOKEN: dict[str, tuple[Any, ...]] = PLAIN | {
    **dict.fromkeys(("class_token", "class_position"), (True,)),
    "pool": ("cls",),
    "positions": ("learned",),
}
_DISTILLATION_TOKEN = CLASS_TOKEN | {"num_registers": (1,), "register_positions": (True,)}
_NO_CLASS_TOKEN = PLAIN | {"class_token": (False,), "positions": ("learned",)}

EXACT: dict[str, Any] = {"activation": "gelu", "norm_eps": 1e-6}
DEFAULTS: dict[str, dict[str, Any]] = {
    **{name: {"activation": "gelu", "norm_eps": 1e-12} for name in ("vit", "deit", "vit_mae", "ijepa")},
    **dict.fromkeys(("vit_msn", "dinov2", "dinov2_with_registers"), EXACT),
    "siglip_vision_model": {"activation": "gelu_tanh", "norm_eps": 1e-6},
    "clip_vision_model": {"activation": "quick_gelu", "norm_eps": 1e-5},
}
"""The default activation and epsilon of each type of model ("model_type" in config.json)."""

WITH_TEXT = ("clip", "siglip")
"""Types of models of images and text. Their config.json has that of the image encoder as "vision_config"."""


def _format(
    name: str,
    table: Table,
    family: str,
    model_type: str,
    architecture: str,
    fixed: dict[str, tuple[Any, ...]],
    *ignored: str,
) -> Format:
    model = (model_type, architecture)
    assumed = DEFAULTS[f"{model_type}_vision_model" if model_type in WITH_TEXT else model_type]
    return Format(name, table, family, assumed=assumed, fixed=fixed, ignored=ignored, huggingface=model)


def _vit(name: str, table: Table, architecture: str) -> Format:
    return _format(name, table, "huggingface", "vit", architecture, CLASS_TOKEN)


def _deit(name: str, table: Table, architecture: str) -> Format:
    fixed = _DISTILLATION_TOKEN | {"distilled": (name == "deit_teacher",)}
    return _format(name, table, "deit", "deit", architecture, fixed)


def _dinov2_formats() -> Iterator[Format]:
    """Yield the formats of DINOv2. The mask token, which they ignore, is used only in DINOv2's own training."""
    any_registers = {field: values for field, values in CLASS_TOKEN.items() if field != "num_registers"}
    for registers, model_type, name, of_registers in (
        ("", "dinov2", "Dinov2", CLASS_TOKEN),
        ("_registers", "dinov2_with_registers", "Dinov2WithRegisters", any_registers),
    ):
        for mlp, body, activations in (
            ("", _DINOV2_PLAIN, PLAIN["activation"]),
            ("_swiglu", _DINOV2_SWIGLU, ("swiglu",)),
        ):
            fixed, label = of_registers | {"activation": activations}, f"dinov2{registers}{mlp}"
            classifier, architecture = _classifier(model_type, body, _CLASSIFIER), f"{name}ForImageClassification"
            both = fixed | {"pool": ("cls_gap",)}
            mask = "embeddings.mask_token"
            yield _format(label, classifier, "dinov2", model_type, architecture, both, f"{model_type}.{mask}")
            yield _format(f"{label}_model", body, "dinov2", model_type, f"{name}Model", fixed, mask)


_ENCODER_OF_CLIP = CLASS_TOKEN | {"patch_bias": (False,), "embed_norm": (True,), "qkv_bias": (True,)}
_ENCODER_OF_SIGLIP = _NO_CLASS_TOKEN | {"embed_norm": (False,), "qkv_bias": (True,)}
# In a CLIPModel beside the image encoder.
_CLIP_TEXT = ("text_model.", "text_projection.", "logit_scale")


def _clip(name: str, table: Table, architecture: str) -> Format:
    fixed = _ENCODER_OF_CLIP | {"head_bias": (False,)}
    ignored = ("embeddings.position_ids", "vision_model.embeddings.position_ids", *_CLIP_TEXT)
    return _format(name, table, "clip_vision", "clip_vision_model", architecture, fixed, *ignored)


def _siglip(name: str, table: Table) -> Format:
    fixed = _ENCODER_OF_SIGLIP | {"pool": ("map",)}
    return _format(name, table, "siglip_vision", "siglip_vision_model", "SiglipVisionModel", fixed)


def _clip_classifier() -> Format:
    """Return the format of CLIP's classifier. It reads the mean of the patches, which have not passed the last norm."""
    body = tuple(rule for rule in _CLIP if rule.ours != "norm")
    fixed = _ENCODER_OF_CLIP | {"pool": ("gap",), "final_norm": (False,)}
    ignored = "vision_model.embeddings.position_ids", "vision_model.post_layernorm."
    table = _classifier("vision_model", body, _CLASSIFIER)
    return _format(
        "clip_vision_classifier", table, "clip_vision", "clip", "CLIPForImageClassification", fixed, *ignored
    )


def _siglip_classifier() -> Format:
    """Return the format of SigLIP's classifier. It reads the mean of the patches and does not use the pool `head`."""
    fixed = _ENCODER_OF_SIGLIP | {"pool": ("gap",)}
    table = _classifier("vision_model", _VISION, _CLASSIFIER)
    names = "siglip_vision_classifier", table, "siglip_vision", "siglip", "SiglipForImageClassification"
    return _format(*names, fixed, "vision_model.head.")


_PROJECTION = Rule("visual_projection", "head")
_TEACHER = Rule("cls_classifier", "head"), Rule("distillation_classifier", "head_distilled")

# `save` writes a module in the first format of a family that supports its options.
HUGGINGFACE_FORMATS = (
    _vit("huggingface", _classifier("vit", _VIT, _CLASSIFIER), "ViTForImageClassification"),
    _vit("huggingface_model", (*_VIT, _POOLER), "ViTModel"),
    _vit("huggingface_memory", _classifier("vit", _VIT_MEMORY, _CLASSIFIER), "ViTForImageClassification"),
    _vit("huggingface_model_memory", (*_VIT_MEMORY, _POOLER), "ViTModel"),
    _deit("deit", _classifier("deit", _DEIT, _CLASSIFIER), "DeiTForImageClassification"),
    _deit("deit_model", (*_DEIT, _POOLER), "DeiTModel"),
    _deit("deit_teacher", _classifier("deit", _DEIT, *_TEACHER), "DeiTForImageClassificationWithTeacher"),
    _format("msn", _MSN_CLASSIFIER, "msn", "vit_msn", "ViTMSNForImageClassification", CLASS_TOKEN),
    _format("ijepa", _VIT, "ijepa", "ijepa", "IJepaModel", _NO_CLASS_TOKEN | {"pool": ("gap",)}),
    *_dinov2_formats(),
    _clip("clip_vision", _CLIP, "CLIPVisionModel"),
    _clip("clip_vision_projection", _classifier("vision_model", _CLIP, _PROJECTION), "CLIPVisionModelWithProjection"),
    _siglip("siglip_vision", _SIGLIP),
    _siglip("siglip_vision_prefixed", _classifier("vision_model", _SIGLIP)),
    _siglip_classifier(),
    _clip_classifier(),  # after SigLIP's, because it knows the names of SigLIP's encoder too
)
