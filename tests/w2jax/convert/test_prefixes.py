"""A model is found among a file's tensors, whatever wrappers and training code added to their names."""

import re
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from weights import FIXTURES, assert_same, peer, refusal, tensors_of

from w2jax import LSTM
from w2jax.convert import from_torch, load
from w2jax.convert.__main__ import main
from w2jax.convert.files import write_weights
from w2jax.convert.lazy_tensor import from_arrays
from w2jax.convert.load_save import load_described

EXTRA = np.ones((3, 2), np.float32)
PREFIXES = [
    *("module.", "_orig_mod.module.", "module._orig_mod.", "model._orig_mod.", "model.module.", "net.", "backbone."),
    *("encoder.", "vit.", "model.vit.backbone."),
]


def write(path, tensors):
    write_weights(path, from_arrays(tensors))
    return path


@pytest.mark.parametrize("name", ["timm_cls", "hf_vit", "hf_deit_teacher", "torchvision_vit", "hf_siglip"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_vit_is_found_under_any_prefix(tmp_path, prefix, name):
    tensors = {prefix + key: value for key, value in tensors_of(name).items()}
    fields = {field: getattr(peer(name).module, field) for field in ("num_heads", "activation", "norm_eps")}
    for more in ({}, {"criterion.weight": EXTRA, "head_of_another.weight": EXTRA}):
        loaded = load_described(write(tmp_path / "a.safetensors", tensors | more), **fields)
        assert loaded.module == peer(name).module
        assert_same(loaded.variables, peer(name).variables)
        assert ("left out 2 tensors (not under" in str(loaded.notes)) == bool(more)


def test_wrappers_inside_a_name_are_removed(tmp_path):
    def wrapped(key):
        key = re.sub(r"^blocks\.(\d+)\.", r"blocks.\1._orig_mod._checkpoint_wrapped_module.", key)
        return key.replace("attn.", "attn._fsdp_wrapped_module.")

    tensors = {wrapped(key): value for key, value in tensors_of("timm_cls").items()}
    assert "blocks.0._orig_mod._checkpoint_wrapped_module.attn._fsdp_wrapped_module.qkv.weight" in tensors
    assert_same(load(write(tmp_path / "a.safetensors", tensors), num_heads=3)[1], peer("timm_cls").variables)
    tensors["blocks._orig_mod.0.attn.qkv.weight"] = EXTRA
    message = refusal(lambda: load(write(tmp_path / "a.safetensors", tensors), num_heads=3))
    assert "two tensors must not have the same name without" in message


def test_tensors_of_a_training_are_left_out_and_others_are_errors(tmp_path):
    tensors = tensors_of("timm_cls")
    loaded = load_described(write(tmp_path / "a.safetensors", tensors | {"criterion.weight": EXTRA}), num_heads=3)
    assert "left out 1 tensor (not part of a model): criterion.weight" in loaded.notes
    message = refusal(lambda: load(write(tmp_path / "a.safetensors", tensors | {"rope.weight": EXTRA}), num_heads=3))
    assert "unexpected  rope.weight (3, 2)" in message
    inner = {f"net.{key}": value for key, value in (tensors | {"rope.weight": EXTRA}).items()}
    assert "unexpected  rope.weight" in refusal(lambda: load(write(tmp_path / "a.safetensors", inner), num_heads=3))


def test_of_two_models_the_user_chooses_one(tmp_path, capsys):
    both = {f"student.backbone.{key}": value for key, value in tensors_of("timm_cls").items()}
    both |= {f"teacher.backbone.{key}": 2 * value for key, value in tensors_of("timm_cls").items()}
    path = write(tmp_path / "a.safetensors", both)
    message = refusal(lambda: load(path, num_heads=3))
    assert (
        'the file has 2 models, with the prefixes "student.backbone." and "teacher.backbone.". Choose one: ' in message
    )
    _, chosen = load(path, num_heads=3, prefix="teacher.backbone.")
    assert_same(chosen, {"params": {**from_torch(peer("timm_cls").module, double(tensors_of("timm_cls")))["params"]}})
    command = [str(path), str(tmp_path / "b.safetensors"), "--num-heads", "3", "--format", "timm"]
    assert main(command) == 2 and main([*command, "--prefix", "student."]) == 0
    assert_same(load(tmp_path / "b.safetensors")[1], peer("timm_cls").variables)
    assert main([*command, "--prefix", "x."]) == 2
    assert 'prefix must be the start of a tensor\'s name, got "x."' in capsys.readouterr().err


def double(tensors):
    return {key: 2 * value for key, value in tensors.items()}


def test_the_decoder_of_a_masked_autoencoder_is_left_out(tmp_path):
    decoder = {"decoder.decoder_embed.weight": EXTRA, "decoder.mask_token": EXTRA}
    encoder = {f"vit.{key}": value for key, value in tensors_of("hf_mae").items()}
    loaded = load_described(write(tmp_path / "a.safetensors", encoder | decoder), num_heads=2, norm_eps=1e-12)
    assert '2 tensors (not under "vit."): decoder.decoder_embed.weight, decoder.mask_token' in str(loaded.notes)
    assert_same(loaded.variables, peer("hf_mae").variables)


def test_other_modules_are_found_too(tmp_path):
    theirs = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    expected = from_torch(LSTM(4, num_layers=2), state)
    wrapped = {f"model._orig_mod.lstm.{key}": value for key, value in state.items()}
    assert_same(from_torch(LSTM(4, num_layers=2), wrapped), expected)
    path = write(tmp_path / "a.safetensors", wrapped | {"model.head.weight": EXTRA})
    loaded = load_described(path, module=LSTM(4, num_layers=2))
    assert_same(loaded.variables, expected)
    assert 'left out 1 tensor (not under "model.lstm."): model.head.weight' in loaded.notes
    # In memory there is no place for a note, so other tensors are errors.
    message = refusal(lambda: from_torch(LSTM(4, num_layers=2), wrapped | {"model.head.weight": EXTRA}))
    assert "unexpected  model.head.weight" in message
    two = {f"encoder.{key}": x for key, x in state.items()} | {f"decoder.{key}": x for key, x in state.items()}
    message = refusal(lambda: load(write(tmp_path / "a.safetensors", two), module=LSTM(4, num_layers=2)))
    assert 'the file has 2 models, with the prefixes "encoder." and "decoder."' in message


REPLACED = [
    ("timm_cls", "head", "head.1"),
    ("torchvision_vit", "heads.head", "heads"),
    ("torchvision_vit", "heads.head", "heads.0"),
    ("torchvision_vit", "heads.head", "heads.head.1"),
    ("hf_vit", "classifier", "classifier.1"),
]


@pytest.mark.parametrize(("name", "usual", "other"), REPLACED)
def test_a_replaced_classifier_is_read_or_left_out(tmp_path, name, usual, other):
    tensors = {re.sub(f"^{re.escape(usual)}\\.", f"{other}.", key): x for key, x in tensors_of(name).items()}
    path = write(tmp_path / "a.safetensors", tensors)
    fields = {field: getattr(peer(name).module, field) for field in ("num_heads", "activation", "norm_eps")}
    loaded = load_described(path, **fields)
    assert loaded.module == peer(name).module
    assert_same(loaded.variables, peer(name).variables)
    assert f"the classifier was read from {other}" in loaded.notes
    assert load_described(path, "if_linear", **fields).module == loaded.module
    dropped = load_described(path, "drop", **fields)
    assert dropped.module.num_classes == 0 and "head" not in dropped.variables["params"]
    assert f"left out a replaced classifier: {other}.bias, {other}.weight" in str(dropped.notes)
    assert load_described(path, "reinit", **fields, num_classes=4).variables["params"]["head"]["kernel"].shape[1] == 4


def test_a_classifier_of_several_layers_is_refused_unless_it_is_left_out(tmp_path):
    head = nn.Sequential(nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 5)).state_dict()
    tensors = {key: x for key, x in tensors_of("timm_cls").items() if not key.startswith("head.")}
    tensors |= {f"head.{key}": torch.Tensor.numpy(value) for key, value in head.items()}
    path = write(tmp_path / "a.safetensors", tensors)
    message = refusal(lambda: load(path, num_heads=3))
    assert "the classifier must be one linear layer, got the tensors head.0.weight, head.0.bias" in message
    assert 'Leave it out: pass head="drop" to w2jax.convert.load, or --head drop' in message
    assert load(path, "drop", num_heads=3)[0].num_classes == 0
    loaded = load_described(path, "if_linear", num_heads=3)
    assert loaded.module.num_classes == 0 and "left out a replaced classifier: head.0.weight" in str(loaded.notes)


def test_no_fixture_needs_a_prefix():
    assert FIXTURES.is_dir() and not any("left out" in str(peer(name).notes) for name in ("timm_cls", "hf_vit"))


def test_the_text_encoder_of_a_clip_model_is_left_out_and_named(tmp_path):
    """A CLIPModel has the tensors of CLIPVisionModelWithProjection and those of its text encoder."""
    folder = shutil.copytree(FIXTURES / "hf_clip_projection", tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    _, expected = load(folder)
    text = {f"text_model.{name}": np.zeros((2, 3), np.float32) for name in ("embeddings.weight", "final_norm.weight")}
    text |= {"text_projection.weight": np.ones((3, 4), np.float32), "logit_scale": np.ones((), np.float32)}
    save_file(tensors | text, folder / "model.safetensors")
    loaded = load_described(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected)
    assert any(note.startswith("left out 4 tensors (not needed by the ViT): ") for note in loaded.notes)
