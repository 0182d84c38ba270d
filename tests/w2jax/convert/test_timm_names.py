"""The name of a timm model and its config.json determine what its tensors do not. Unknown names are refused."""

import json
import shutil

import numpy as np
import pytest
from weights import FIXTURES, peer, refusal, tensors_of

from w2jax.convert import save
from w2jax.convert.__main__ import main
from w2jax.convert.files import read_weights, write_weights
from w2jax.convert.lazy_tensor import from_arrays
from w2jax.convert.load_save import load_described
from w2jax.convert.timm_names import fields_of_model

NAMES = json.loads((FIXTURES.parent / "timm_names.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_timms_fields_or_is_refused(name):
    """The fixture has the fields of timm's models, and None for models with parts that our ViT does not have."""
    if NAMES[name] is None:
        message = refusal(lambda: fields_of_model(name, {}, {}))
        assert message.startswith(f"{name} cannot be converted: w2jax.ViT does not have ")
    else:
        heads, activation, eps, final_norm, *special = NAMES[name]
        usual = {"num_heads": heads, "activation": activation, "norm_eps": eps, "final_norm": final_norm}
        assert fields_of_model(name, {}, {}) == usual | (special[0] if special else {})


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_rope_224", "vit_relpos_base_patch16_224", "vit_base_r50_s16_224", "pets", "vit_224"]
)
def test_an_unknown_name_needs_the_fields(name):
    message = refusal(lambda: fields_of_model(name, {}, {"activation": "relu"}))
    assert message == (
        f'config.json has the architecture "{name}", which w2jax does not know. Pass num_heads, norm_eps '
        "(--num-heads, --norm-eps) with the values of the model"
    )
    assert fields_of_model(name, {}, {"activation": "relu", "num_heads": 2, "norm_eps": 1e-5}) == {}


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ({"num_heads": 4, "depth": 7, "drop_path_rate": 0.1, "img_size": [32, 48]}, {"num_heads": 4}),
        ({"act_layer": "quick_gelu"}, {"activation": "quick_gelu"}),
        ({"final_norm": False}, {"final_norm": False}),
        ({"pool_include_prefix": True}, {"pool_prefix": True}),
        ({"norm_layer": "rmsnorm"}, {"rms_norm": True}),
        ({"pool_include_prefix": None, "block_fn": None, "act_layer": None, "norm_layer": None}, {}),
    ],
)
def test_arguments_override_the_name(arguments, fields):
    of_name = fields_of_model("vit_small_patch16_224", {}, {})
    assert fields_of_model("vit_small_patch16_224", arguments, {}) == of_name | fields


@pytest.mark.parametrize("argument", ["pool_include_prefix", "block_fn", "norm_layer", "act_layer", "mlp_layer", "new"])
def test_an_argument_with_an_unknown_effect_needs_the_fields(argument):
    message = refusal(lambda: fields_of_model("vit_small_patch16_224", {argument: "other"}, {}))
    assert message.startswith(f"config.json has the argument {argument}, which w2jax does not know. Pass num_heads, ")


def with_config(tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "timm_clip_quickgelu", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change(config)))
    return folder


def test_a_config_of_the_hub_has_only_the_name(tmp_path):
    folder = with_config(tmp_path, lambda config: {k: v for k, v in config.items() if k != "model_args"})
    loaded = load_described(folder)
    assert (loaded.module.num_heads, loaded.module.activation, loaded.module.norm_eps) == (16, "quick_gelu", 1e-5)
    assert loaded.assumed == {}


def test_rmsnorm_has_its_own_epsilon():
    fields = fields_of_model("vit_base_patch16_clip_224", {"norm_layer": "rmsnorm"}, {})
    assert (fields["rms_norm"], fields["norm_eps"]) == (True, 1e-6)


@pytest.mark.parametrize("field", ["res_post_norm", "pool_prefix"])
def test_without_a_config_the_options_of_models_with_the_same_tensors_must_be_given(tmp_path, field):
    path = shutil.copy(FIXTURES / f"timm_{field}" / "model.safetensors", tmp_path)
    sizes = {"num_heads": 2, "image_size": (16, 24)}
    assert not getattr(load_described(path, **sizes).module, field)
    assert load_described(path, **sizes, **{field: True}).module == peer(f"timm_{field}").module
    flags = ["--num-heads", "2", "--image-size", "16", "24", f"--{field.replace('_', '-')}"]
    assert main([str(path), str(tmp_path / "out.safetensors"), *flags]) == 0
    assert getattr(load_described(tmp_path / "out.safetensors").module, field)


def test_without_a_config_norms_without_biases_are_rmsnorms(tmp_path):
    path = shutil.copy(FIXTURES / "timm_rms_norm" / "model.safetensors", tmp_path)
    loaded = load_described(path, image_size=(16, 24))
    assert loaded.module == peer("timm_rms_norm").module
    assert loaded.assumed["rms_norm"] is True
    tensors = {name: x for name, x in tensors_of("google_npz").items() if "LayerNorm" not in name or "bias" not in name}
    write_weights(tmp_path / "google.npz", from_arrays(tensors))
    assert "missing     Transformer/encoderblock_0/LayerNorm_0/bias" in refusal(
        lambda: load_described(tmp_path / "google.npz")
    )


@pytest.mark.parametrize("kind", ["res_post_norm", "pool_prefix", "rms_norm", "sub_norm", "patch_6x4"])
def test_timms_config_json_is_written_for_every_kind_of_model(tmp_path, kind):
    """The folder without our metadata is read back as the same model."""
    loaded = peer(f"timm_{kind}")
    save(tmp_path / "timm", loaded.module, loaded.variables, "timm", image_size=loaded.image_size, spec=loaded.spec)
    tensors = {key: tensor.read() for key, tensor in read_weights(tmp_path / "timm").tensors.items()}
    write_weights(tmp_path / "timm" / "model.safetensors", from_arrays(tensors))
    again = load_described(tmp_path / "timm")
    assert (again.module, again.assumed) == (loaded.module, {})


def test_a_model_with_other_tensors_is_refused_by_its_name_too(tmp_path):
    folder = with_config(tmp_path, lambda config: config | {"architecture": "vit_base_patch16_xp_224"})
    write_weights(folder / "model.safetensors", from_arrays({"blocks.0.in_proj.weight": np.ones((2, 3), np.float32)}))
    assert "does not have parallel blocks" in refusal(lambda: load_described(folder))


def test_without_a_config_the_assumed_fields_are_listed(tmp_path):
    path = shutil.copy(FIXTURES / "timm_clip_quickgelu" / "model.safetensors", tmp_path)
    loaded = load_described(path, num_heads=2)
    assert loaded.assumed == {"activation": "gelu", "norm_eps": 1e-6, "pool": "cls"}


def test_a_model_without_its_last_norm_is_incomplete_unless_its_name_says_so(tmp_path):
    assert not load_described(FIXTURES / "timm_radio").module.final_norm
    path = shutil.copy(FIXTURES / "timm_radio" / "model.safetensors", tmp_path)
    message = refusal(lambda: load_described(path, num_heads=2, image_size=(32, 48)))
    assert "missing     norm.weight (16,)" in message
    assert not load_described(path, num_heads=2, image_size=(32, 48), final_norm=False).module.final_norm
