from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import random_variables
from torch import nn

from w2jax.aae import AAEDecoder, AAEEncoder
from w2jax.convert import from_torch, to_torch
from w2jax.convert.files import read_weights
from w2jax.convert.load_save import Loaded, load_described
from w2jax.vit import ViT

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vit"


# Each fixture's format, and the options that neither its tensors nor its config.json contain.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bv_mlpdefault_scan_map": ("big_vision", {}),
    "bv_scan_tok_sincos_rep": ("big_vision", {}),
    "bv_sincos_gap_rect": ("big_vision", {}),
    "bv_tok_params_full": ("big_vision", {}),
    "facebook_deit3": ("facebook_deit3", {"num_heads": 2}),
    "facebook_swiglu": ("facebook_swiglu", {"num_heads": 2}),
    "google_npz": ("google", {}),
    "google_oldidx_gap_rep20": ("google_old", {}),
    "google_opttarget_full_oldidx": ("google_old", {}),
    "hf_bf16": ("huggingface", {}),
    "hf_clip": ("clip_vision", {}),
    "hf_clip_classifier": ("clip_vision_classifier", {}),
    "hf_clip_projection": ("clip_vision_projection", {}),
    "hf_combo": ("huggingface", {}),
    "hf_deit": ("deit", {}),
    "hf_deit_model": ("deit_model", {}),
    "hf_deit_teacher": ("deit_teacher", {}),
    "hf_dinov2": ("dinov2", {}),
    "hf_dinov2_model": ("dinov2_model", {}),
    "hf_dinov2_registers": ("dinov2_registers", {}),
    "hf_dinov2_registers_model": ("dinov2_registers_model", {}),
    "hf_dinov2_swiglu_model": ("dinov2_swiglu_model", {}),
    "hf_ijepa": ("ijepa", {}),
    "hf_inmemory_noqkvbias_rect": ("huggingface_memory", {}),
    "hf_mae": ("huggingface_model", {}),
    "hf_model_inmemory_nopool": ("huggingface_model_memory", {}),
    "hf_model_sharded": ("huggingface_model", {}),
    "hf_msn": ("msn", {}),
    "hf_msn_model": ("huggingface_model", {}),
    "hf_patch_6x4": ("huggingface", {}),
    "hf_siglip": ("siglip_vision", {}),
    "hf_siglip_classifier": ("siglip_vision_classifier", {}),
    "hf_vit": ("huggingface", {}),
    "open_clip": ("open_clip", {}),
    "open_clip_average": ("open_clip", {}),
    "open_clip_trunk": ("open_clip_trunk", {}),
    "openai_clip": ("openai_clip", {"num_heads": 2}),
    "timm_avg_fcnorm": ("timm", {"num_heads": 3}),
    "timm_clip": ("timm", {}),
    "timm_clip_quickgelu": ("timm", {}),
    "timm_cls": ("timm", {"num_heads": 3}),
    "timm_combo_rect": ("timm", {"pool": "gap", "activation": "gelu_tanh", "image_size": (24, 40)}),
    "timm_dinov2_giant": ("timm", {}),
    "timm_distilled": ("timm_distilled", {}),
    "timm_hub_reg4_gap": ("timm", {}),
    "timm_map_cls_reg": ("timm", {"num_heads": 4, "image_size": (24, 40)}),
    "timm_patch_6x4": ("timm", {}),
    "timm_pool_prefix": ("timm", {}),
    "timm_quickgelu_prenorm": ("timm", {"num_heads": 5, "activation": "quick_gelu"}),
    "timm_radio": ("timm", {}),
    "timm_res_post_norm": ("timm", {}),
    "timm_rms_norm": ("timm", {}),
    "timm_siglip2": ("timm", {}),
    "timm_sub_norm": ("timm", {}),
    "torchvision_vit": ("torchvision", {"num_heads": 3}),
    "tv_oldnames_rep20": ("torchvision_old", {"num_heads": 4}),
}


@cache
def peer(name: str) -> Loaded:
    return load_described(FIXTURES / name, **PEERS[name][1])


def tensors_of(name: str) -> dict[str, np.ndarray]:
    """Returns the parameters of the ViT in a fixture's file. Stacked layers are split and named like single layers."""
    found = {key: tensor.read() for key, tensor in read_weights(FIXTURES / name).tensors.items()}
    for prefix in ("opt/target/", "params/", "visual."):
        if any(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    for key in [key for key in found if "encoderblock/" in key]:
        for i, value in enumerate(found.pop(key)):
            found[key.replace("encoderblock/", f"encoderblock_{i}/")] = value
    return found


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Asserts the same names, and for each name the same dtype, shape and bits."""
    found, wanted = (
        {jax.tree_util.keystr(k): x for k, x in jax.tree.leaves_with_path(dict(t))} for t in (found, wanted)
    )
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        got, value = np.asarray(found[key]), np.asarray(value)
        assert (got.dtype, got.shape) == (value.dtype, value.shape), key
        assert got.tobytes() == value.tobytes(), key


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as caught:
        work()
    return str(caught.value)


def example(**options: Any) -> tuple[ViT, dict[str, Any]]:
    """Returns a tiny ViT for images of 4×6 pixels and two channels, with 2×3 patches of 2×2 pixels."""
    module = ViT(
        **({"num_classes": 5, "patch_size": 2, "embed_dim": 8, "depth": 2, "num_heads": 2} | {"mlp_dim": 12} | options)
    )
    return module, random_variables(module, jnp.zeros((1, 4, 6, 2)))


RNG = np.random.default_rng(0)


def randomize(module: nn.Module) -> nn.Module:
    """Makes every parameter random, including biases that start at 0 and scales that start at 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter) + (parameter == 1))
    return module.eval()


def converted(ours: Any, theirs: nn.Module) -> dict[str, Any]:
    """Converts the variables of `theirs` to ours. Asserts that converting them back restores every bit."""
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    variables = from_torch(ours, state)
    back = {name: torch.from_numpy(value) for name, value in to_torch(ours, variables, "torch").items()}
    theirs.load_state_dict(back, strict=True)
    for name, value in theirs.state_dict().items():
        assert back[name].dtype == value.dtype
        assert torch.equal(value, state[name]), name
    return variables


IMAGES = jnp.asarray(RNG.random((2, 3, 4, 1)), jnp.float32)


ENCODER, DECODER = AAEEncoder(3, (7, 5)), AAEDecoder((3, 4, 1), (6, 4))
