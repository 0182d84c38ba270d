"""Inputs that a conversion rejects, and its error messages."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from weights import FIXTURES, assert_same, example, peer, refusal, tensors_of

from w2jax.convert import from_torch, load, save, to_torch
from w2jax.convert.files import read_weights, write_weights
from w2jax.convert.lazy_tensor import from_arrays


def write(path: Path, tensors: dict[str, Any]) -> Path:
    write_weights(path, from_arrays(tensors))
    return path


def test_one_error_lists_all_that_is_missing_left_over_or_of_another_shape(tmp_path: Path) -> None:
    tensors = tensors_of("timm_cls")
    tensors["blocks.0.norm1.wieght"] = tensors.pop("blocks.0.norm1.weight")
    tensors["extra"] = np.zeros((3, 4), np.float32)
    tensors["head.weight"] = tensors["head.weight"][:, :-1]
    tensors["blocks.1.attn.qkv.weight"] = tensors["blocks.1.attn.qkv.weight"].T.copy()
    lines = [
        "missing     blocks.0.norm1.weight (48,), for encoder/block_0/norm1/scale (similar: blocks.0.norm1.wieg",
        "unexpected  blocks.0.norm1.wieght (48,) (similar: blocks.0.norm1.weight)",
        "unexpected  extra (3, 4)",
        "wrong shape head.weight must be (7, 48), got (7, 47), for head/kernel",
        "wrong shape blocks.1.attn.qkv.weight must be (144, 48), got (48, 144), for encoder/block_1/",
    ]
    path = write(tmp_path / "a.safetensors", tensors)
    module = peer("timm_cls").module
    for message in (refusal(lambda: from_torch(module, tensors)),):
        assert all(line in message for line in lines) and message.count("\n") == 5
    message = refusal(lambda: load(write(path, tensors_of("timm_cls") | {"extra": tensors["extra"]}), num_heads=3))
    assert str(path) in message and "unexpected  extra (3, 4)" in message


def test_variables_that_are_not_the_modules_are_refused() -> None:
    module, variables = example(depth=1)
    params = dict(variables["params"])
    params["heads"], params["cls"] = params.pop("head"), params["cls"][0]
    message = refusal(lambda: to_torch(module, {"params": params}))
    for line in ("missing     params/head/kernel (8, 5)", "unexpected  params/heads/bias (5,)"):
        assert line in message
    assert "wrong shape params/cls must be (1, 1, 8), got (1, 8)" in message


def test_an_unsupported_module_is_rejected(tmp_path: Path) -> None:
    resnet = {f"layer{i}.0.conv1.weight": np.zeros((4, 4, 3, 3), np.float32) for i in range(4)}
    path = write(tmp_path / "a.safetensors", resnet | {"fc.weight": np.zeros((5, 4), np.float32)})
    message = refusal(lambda: load(path))
    assert (
        "the tensors must be those of a ViT in one of the formats timm, huggingface" in message
        and "layer0.0.conv1.weight" in message
    )
    assert str(path) in message
    from flax import linen as nn

    assert "Dense must have a method example_inputs(size)" in refusal(lambda: from_torch(nn.Dense(3), resnet))


def test_heads_that_cannot_be_known_must_be_given(tmp_path: Path) -> None:
    message = refusal(lambda: load(FIXTURES / "timm_cls"))
    assert "number of heads" in message and "Pass num_heads (--num-heads)" in message
    assert load(FIXTURES / "timm_cls", num_heads=4)[0].num_heads == 4
    # For a width that is a multiple of 64, heads of width 64 are usual.
    module, variables = example(depth=1, embed_dim=128)
    assert load(write(tmp_path / "a.safetensors", to_torch(module, variables, "timm")))[0].num_heads == 2


def test_a_head_of_other_classes_is_refused_dropped_or_initialized() -> None:
    folder, given = FIXTURES / "timm_cls", {"num_heads": 3}
    whole = peer("timm_cls")
    message = refusal(lambda: load(folder, **given, num_classes=4))
    assert "wrong shape head.weight must be (4, 48), got (7, 48)" in message
    body = {name: value for name, value in whole.variables["params"].items() if name != "head"}
    module, variables = load(folder, "drop", **given)
    assert module == whole.module.clone(num_classes=0)
    assert_same(variables, {"params": body})
    for classes in (4, 7):  # a head with the original number of classes is initialized too
        module, variables = load(folder, "reinit", **given, num_classes=classes)
        assert module == whole.module.clone(num_classes=classes)
        head = {"kernel": jnp.zeros((48, classes)), "bias": jnp.zeros(classes)}
        assert_same(variables, {"params": body | {"head": head}})


@pytest.mark.parametrize("format", ["timm", "huggingface", "torchvision", "google"])
def test_every_familys_head_can_be_dropped(format: str) -> None:
    module, variables = example(depth=1)
    tensors = to_torch(module, variables, format)
    body = {name: value for name, value in variables["params"].items() if name != "head"}
    assert_same(from_torch(module.clone(num_classes=0), tensors, head="drop"), {"params": body})
    assert "unexpected" in refusal(lambda: from_torch(module.clone(num_classes=0), tensors))


def test_both_classifiers_of_a_distilled_vit_are_dropped_or_new() -> None:
    """Their values in the file are 1 at most, and new ones are 0."""
    folder = FIXTURES / "timm_distilled"
    assert {"head", "head_distilled"} <= load(folder)[1]["params"].keys()
    module, variables = load(folder, "drop")
    assert module.num_classes == 0 and not {"head", "head_distilled"} & variables["params"].keys()
    module, variables = load(folder, "reinit", num_classes=9)
    for head in ("head", "head_distilled"):
        assert variables["params"][head]["kernel"].shape == (16, 9) and not variables["params"][head]["kernel"].any()


def test_a_wrong_use_of_head_is_refused() -> None:
    module, variables = example(depth=1)
    tensors = to_torch(module, variables)
    assert "num_classes=0" in refusal(lambda: from_torch(module, tensors, head="drop"))
    from w2jax.rnn import GRU

    assert "head must be None for GRU" in refusal(lambda: from_torch(GRU(3), {}, head="drop"))


def test_for_an_unknown_vit_field_the_error_names_the_nearest() -> None:
    assert 'did you mean "num_heads"?' in refusal(lambda: load(FIXTURES / "timm_cls", n_heads=3))
    assert 'no field "parent"' in refusal(lambda: load(FIXTURES / "timm_cls", parent=None))


@pytest.mark.parametrize(
    ("description", "wanted"),
    [
        ("{", "must be valid JSON: "),
        ("[]", "must be a JSON object, got a list"),
        ('{"class": "Bert"}', "got 'Bert'"),
        ('{"class": "ViT", "width": 3}', "ViT has no field 'width'"),
        ('{"class": "ViT", "num_classes": 3}', "a field of ViT is missing"),
        ('{"class": "ViT", "name": "a"}', "ViT has no field 'name'"),
    ],
)
def test_a_broken_description_of_the_module_is_refused(tmp_path: Path, description: str, wanted: str) -> None:
    module, variables = example(depth=1)
    path = tmp_path / "a.safetensors"
    metadata = {"w2jax": description}
    safetensors.numpy.save_file(to_torch(module, variables), path, metadata)
    message = refusal(lambda: load(path))
    assert wanted in message and str(path) in message


def test_a_file_of_ours_describes_its_module_and_given_options_override_it(tmp_path: Path) -> None:
    module, variables = example(depth=1, dropout=0.5)
    path = tmp_path / "a.safetensors"
    save(path, module, variables)
    assert json.loads(read_weights(path).metadata["w2jax"])["dropout"] == 0.5
    assert load(path, dropout=0.25, dtype="bfloat16")[0] == module.clone(dropout=0.25, dtype="bfloat16")
