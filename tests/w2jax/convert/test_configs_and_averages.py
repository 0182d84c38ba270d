"""A config.json next to a file of any name, the class names in it, averaged weights, and stacks of torch's layers."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from w2jax import TransformerDecoder, TransformerEncoder, ViT
from w2jax.blocks import DecoderBlock, EncoderBlock
from w2jax.convert import from_torch, load, save, to_torch
from w2jax.convert.__main__ import main
from w2jax.convert.files import read_weights, write_weights
from w2jax.convert.lazy_tensor import from_arrays
from w2jax.convert.load_save import load_described

FIXTURES = Path(__file__).parents[2] / "fixtures" / "vit"
NAMES = [f"breed {i}" for i in range(7)]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def renamed(tmp_path: Path, fixture: str, change: dict[str, Any], name: str = "vit_pets.safetensors") -> Path:
    """Copies the weights of a fixture to a file of another name, with a changed config.json next to it."""
    source = FIXTURES / fixture
    shutil.copy(source / "model.safetensors", tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(config_of(source) | change))
    return tmp_path / name


@pytest.mark.parametrize(
    ("fixture", "change", "heads"),
    [
        ("hf_vit", {"num_attention_heads": 6, "layer_norm_eps": 0.5}, 6),
        ("timm_hub_reg4_gap", {"model_args": {"num_heads": 8}}, 8),
    ],
)
def test_a_config_next_to_a_file_of_another_name_is_read_if_it_is_the_models(tmp_path, fixture, change, heads):
    loaded = load_described(renamed(tmp_path, fixture, change))
    assert loaded.module.num_heads == heads
    assert "config.json was read too" in loaded.notes
    if "layer_norm_eps" in change:
        assert loaded.module.norm_eps == 0.5


@pytest.mark.parametrize(
    ("fixture", "change"),
    [
        ("hf_vit", {"num_attention_heads": 6, "model_type": "bert"}),
        ("hf_vit", {"num_attention_heads": 6, "hidden_size": 96}),
        ("hf_vit", {"num_attention_heads": 6, "num_hidden_layers": 12}),
        ("hf_vit", {"num_attention_heads": "six", "intermediate_size": 81}),
        ("timm_hub_reg4_gap", {"model_args": {"num_heads": 6}, "architecture": "resnet50"}),
        ("timm_hub_reg4_gap", {"model_args": {"num_heads": 6}, "num_features": 2048}),
    ],
)
def test_a_config_of_another_model_is_ignored(tmp_path, fixture, change):
    loaded = load_described(renamed(tmp_path, fixture, change), num_heads=8)
    assert (loaded.module.num_heads, loaded.config) == (8, None)
    assert loaded.assumed["activation"] == "gelu"
    assert not any("config.json" in note for note in loaded.notes)


@pytest.mark.parametrize("text", ["[]", "{", '{"task": "vit", "model": {"class": "ViT", "num_heads": 6}}'])
def test_a_run_folders_or_broken_config_is_ignored(tmp_path, text):
    path = renamed(tmp_path, "hf_vit", {})
    (tmp_path / "config.json").write_text(text)
    assert load_described(path, num_heads=3).config is None


def test_resharding_in_place_keeps_class_names_and_unknown_fields(tmp_path):
    folder = tmp_path / "pets"
    shutil.copytree(FIXTURES / "hf_vit", folder)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    mine = {"finetuned_on": {"set": "pets"}, "hidden_dropout_prob": 0.1, "hidden_act": "gelu_fast"}
    config = json.loads(json.dumps(config_of(folder) | labels | mine))
    for _ in range(2):  # the second time the weights have our metadata
        (folder / "config.json").write_text(json.dumps(config))
        command = [str(folder), str(folder), "--format", "huggingface", "--shard-bytes", "50000", "--overwrite"]
        assert main(command) == 0
        assert config_of(folder) == config
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert main([str(folder), str(tmp_path / "headless"), "--format", "huggingface", "--head", "drop"]) == 0
    headless = config_of(tmp_path / "headless")
    assert (headless["id2label"], headless["finetuned_on"]) == ({}, {"set": "pets"})


@pytest.mark.parametrize("fixture", ["hf_clip_classifier", "hf_siglip_classifier", "hf_patch_6x4"])
def test_a_classifiers_config_is_kept_or_made_anew(tmp_path, fixture):
    loaded, theirs = load_described(FIXTURES / fixture), config_of(FIXTURES / fixture)
    family = loaded.source.removesuffix("_classifier")
    assert main([str(FIXTURES / fixture), str(tmp_path / "kept"), "--format", family]) == 0
    if "siglip" in fixture:
        theirs["vision_config"]["vision_use_head"] = False  # the attention pool is not written
    assert config_of(tmp_path / "kept") == theirs
    save(tmp_path / "new", loaded.module, loaded.variables, family, image_size=loaded.image_size)
    assert config_of(tmp_path / "new")["architectures"] == theirs["architectures"]
    tensors = {name: tensor.read() for name, tensor in read_weights(tmp_path / "new").tensors.items()}
    write_weights(tmp_path / "new" / "model.safetensors", from_arrays(tensors))
    again = load_described(tmp_path / "new")
    assert (again.module, again.source, again.assumed) == (loaded.module, loaded.source, {})


def test_patches_that_hugging_faces_model_cannot_have_are_refused(tmp_path):
    module = ViT(5, (2, 3), 8, 1, 2, 12, pool="gap", class_token=False)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 6, 6, 3)))
    with pytest.raises(ValueError, match=r"must be square in Hugging Face's SiglipForImageClassification, got patch"):
        save(tmp_path / "siglip", module, variables, "siglip_vision")


def test_timms_class_names_reach_hugging_face(tmp_path):
    shutil.copy(FIXTURES / "timm_cls" / "model.safetensors", tmp_path / "vit_pets.safetensors")
    config = {"architecture": "vit_pets", "num_features": 48, "label_names": NAMES}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [str(tmp_path / "vit_pets.safetensors"), str(tmp_path / "out"), "--format", "huggingface"]
    assert main([*command, "--num-heads", "3", "--activation", "gelu", "--norm-eps", "1e-6"]) == 0
    written = config_of(tmp_path / "out")
    assert list(written["id2label"].values()) == NAMES
    assert "architecture" not in written


def test_class_names_are_saved_and_must_fit(tmp_path):
    module, variables = load(FIXTURES / "hf_vit")
    save(tmp_path / "named", module, variables, "huggingface", label_names=NAMES)
    config = config_of(tmp_path / "named")
    assert config["id2label"] == {str(i): name for i, name in enumerate(NAMES)}
    assert config["label2id"] == {name: i for i, name in enumerate(NAMES)}
    with pytest.raises(ValueError, match=r"label_names must have 7 names \(num_classes\), got 2"):
        save(tmp_path / "wrong", module, variables, "huggingface", label_names=NAMES[:2])
    assert not (tmp_path / "wrong").exists()


MODULE = ViT(num_classes=2, patch_size=2, embed_dim=64, depth=1, num_heads=1, mlp_dim=8)


def scaled_state(value: float) -> dict[str, torch.Tensor]:
    shapes = jax.eval_shape(MODULE.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    return {name: torch.full(x.shape, value) for name, x in to_torch(MODULE, params).items()}


def value_in(path: Path, **options: Any) -> tuple[float, list[str]]:
    loaded = load_described(path, **options)
    return float(loaded.variables["params"]["cls"].max()), loaded.notes


@pytest.mark.parametrize(
    ("raw", "average"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "state_dict_ema")]
)
def test_the_average_is_read_and_the_raw_weights_on_request(tmp_path, capsys, raw, average):
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, raw: scaled_state(1.0), average: scaled_state(2.0)}, path)
    value, (note,) = value_in(path)
    assert value == 2.0
    assert f"read the averaged weights under '{average}', not the raw weights" in note
    value, (note,) = value_in(path, average=False)
    assert value == 1.0
    assert note == f"the raw weights under '{raw}' were read; '{average}' was ignored"
    assert main([str(path), str(tmp_path / "a.safetensors"), "--format", "timm", "--raw", "--check"]) == 0
    assert "raw weights" in capsys.readouterr().out
    assert float(load(tmp_path / "a.safetensors")[1]["params"]["cls"].max()) == 1.0


def test_an_average_of_torchs_averaged_model_is_read(tmp_path):
    wrapped = {f"module.{name}": x for name, x in scaled_state(2.0).items()}
    average = {"n_averaged": torch.tensor(5)} | wrapped
    torch.save({"model": scaled_state(1.0), "model_ema": average}, tmp_path / "a.pth")
    assert value_in(tmp_path / "a.pth")[0] == 2.0


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_average_is_no_average(tmp_path, empty):
    torch.save({"state_dict": scaled_state(1.0), "state_dict_ema": empty}, tmp_path / "a.pth")
    assert value_in(tmp_path / "a.pth") == (1.0, [])


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_stacks_of_torchs_layers_are_converted_both_ways(pre_norm, scan):
    torch.manual_seed(0)
    options: Any = {"dim_feedforward": 7, "batch_first": True, "norm_first": pre_norm}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 3, **options), 2, enable_nested_tensor=False).eval()
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(6, 3, **options), 2).eval()
    with torch.no_grad():
        for x in [*encoder.parameters(), *decoder.parameters()]:
            x.uniform_(-1, 1)
    fields: Any = {"activation": "relu", "norm_eps": 1e-5, "pre_norm": pre_norm}
    ours = TransformerEncoder(EncoderBlock(3, 7, **fields), 2, scan=scan)
    also = TransformerDecoder(DecoderBlock(3, 7, **fields), 2, scan=scan)
    source, target = torch.randn(2, 5, 6), torch.randn(2, 4, 6)
    x, y = jnp.asarray(source.numpy()), jnp.asarray(target.numpy())
    variables = from_torch(ours, encoder.state_dict()), from_torch(also, decoder.state_dict())
    np.testing.assert_allclose(ours.apply(variables[0], x)[0], encoder(source).detach(), rtol=1e-5, atol=1e-5)
    expected = decoder(target, source).detach()
    np.testing.assert_allclose(also.apply(variables[1], y, x, causal=False)[0], expected, rtol=1e-5, atol=1e-5)
    for module, own, peer in zip((ours, also), variables, (encoder, decoder), strict=True):
        back = to_torch(module, own)
        assert back.keys() == peer.state_dict().keys()
        for name, value in peer.state_dict().items():
            np.testing.assert_array_equal(back[name], value)


def test_a_final_norm_of_a_stack_is_not_skipped():
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 3, 7), 1, nn.LayerNorm(6), enable_nested_tensor=False)
    with pytest.raises(ValueError, match=r"unexpected +norm.weight"):
        from_torch(TransformerEncoder(EncoderBlock(3, 7), 1), theirs.state_dict())
