"""Weights as their authors released them: CLIP and open_clip, Facebook's models, and SigLIP of big_vision."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from weights import FIXTURES, assert_same, example, peer, refusal, tensors_of

from w2jax.convert import load, to_torch
from w2jax.convert.__main__ import main
from w2jax.convert.files import read_weights, write_weights
from w2jax.convert.lazy_tensor import from_arrays
from w2jax.convert.load_save import load_described

EXTRA = np.ones((3, 2), np.float32)


def write(path, tensors):
    write_weights(path, from_arrays(tensors))
    return path


def torch_state(name, prefix=""):
    return {prefix + key: torch.from_numpy(value) for key, value in tensors_of(name).items()}


def test_the_text_tower_is_left_out_and_named():
    notes = str(peer("openai_clip").notes)
    assert re.search(r'left out 2\d tensors \(not under "visual."\): ', notes) and "context_length" in notes
    assert '(not under "visual."): ' in str(peer("open_clip").notes)
    assert "open_clip_config.json was read too" in peer("open_clip").notes
    assert (peer("open_clip").assumed, peer("open_clip_average").assumed) == ({}, {})


def test_the_activation_of_clip_is_quick_gelu_if_the_file_is_openais_and_is_told_if_unknown(tmp_path):
    assert peer("openai_clip").assumed == {"activation": "quick_gelu", "norm_eps": 1e-5}
    file = shutil.copy(FIXTURES / "open_clip_average" / "open_clip_model.safetensors", tmp_path / "a.safetensors")
    loaded = load_described(file, num_heads=2)
    assert loaded.assumed == {"activation": "gelu", "norm_eps": 1e-5, "pool": "cls"}
    assert "pass activation (--activation quick_gelu)" in loaded.notes[-1]
    fields = {"num_heads": 2, "activation": "quick_gelu", "pool": "gap", "norm_after_pool": True}
    loaded = load_described(file, **fields)
    assert loaded.module == peer("open_clip_average").module and "--activation" not in str(loaded.notes)
    assert_same(loaded.variables, peer("open_clip_average").variables)


VISION = [
    ({"layers": [3, 4, 6, 3]}, "A list of layers is a ResNet, which w2jax does not have"),
    ({"head_width": 7}, "head_width must divide width, got (2, 24, 7)"),
    ({"attentional_pool": True}, "w2jax.ViT does not have attentional_pool, which open_clip_config.json turns on"),
    ({"act_kwargs": {"negative_slope": 0.1}}, "open_clip_config.json must have quick_gelu true, or act_kwargs"),
    ({"norm_kwargs": {"eps": "x"}}, 'norm_kwargs in open_clip_config.json must have only "eps", from 0 to 1'),
    ({"norm_kwargs": {"eps": float("inf")}}, 'norm_kwargs in open_clip_config.json must have only "eps", from 0 to 1'),
    ({"norm_kwargs": [1]}, 'norm_kwargs in open_clip_config.json must have only "eps", from 0 to 1'),
    ({"pool_type": "none"}, "pool_type in open_clip_config.json must be tok or avg, got 'none'"),
    ({"image_size": "224"}, "image_size must be one or two positive integers (pixels), got '224'"),
    ({"timm_model_name": 3}, "timm_model_name in open_clip_config.json must be a name, got 3"),
    ({"timm_model_name": "vit_base_patch16_clip_224", "timm_pool": []}, "timm_pool in open_clip_config.json must be"),
]


@pytest.mark.parametrize(("change", "message"), VISION, ids=str)
def test_an_open_clip_config_that_is_not_understood_is_refused_in_one_line(tmp_path, change, message):
    folder = shutil.copytree(FIXTURES / "open_clip", tmp_path / "a")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= change
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    error = refusal(lambda: load(folder))
    assert message in error and "\n" not in error


@pytest.mark.parametrize("config", [{"model_cfg": 1}, {"model_cfg": {"vision_cfg": None}}])
def test_an_open_clip_config_without_an_image_tower_is_refused(tmp_path, config):
    folder = shutil.copytree(FIXTURES / "open_clip", tmp_path / "a")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert "must have the object vision_cfg in model_cfg" in refusal(lambda: load(folder))


def test_towers_of_timm_have_the_options_of_the_named_model(tmp_path):
    module = peer("open_clip_trunk").module
    assert (module.num_heads, module.pool, module.norm_after_pool, module.head_bias) == (12, "gap", False, False)
    folder = shutil.copytree(FIXTURES / "open_clip_trunk", tmp_path / "a")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base_patch16_rpn_224"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert load(folder)[0] == module.clone(res_post_norm=True, norm_eps=1e-6)
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base_patch16_xp_224"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert "w2jax.ViT does not have parallel blocks" in refusal(lambda: load(folder))


def test_a_tower_of_timm_without_projection_is_timms_model(tmp_path):
    tensors = {f"visual.trunk.{key}": x for key, x in tensors_of("timm_siglip2").items()}
    name = json.loads((FIXTURES / "timm_siglip2" / "config.json").read_text())["architecture"]
    vision = {"timm_model_name": name, "timm_pool": "map", "timm_proj": "none", "image_size": [32, 48]}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    path = write(tmp_path / "open_clip_model.safetensors", tensors | {"text.ln_final.weight": EXTRA})
    heads = peer("timm_siglip2").module.num_heads
    loaded = load_described(path, num_heads=heads)
    assert (loaded.module, loaded.source) == (peer("timm_siglip2").module, "timm")
    assert_same(loaded.variables, peer("timm_siglip2").variables)


def test_a_clip_tower_is_written_only_if_openais_code_can_build_it():
    clip = peer("open_clip_average")
    assert "activation quick_gelu" not in refusal(lambda: to_torch(clip.module, clip.variables, "openai_clip"))
    gelu, openai = peer("openai_clip").module.clone(activation="gelu"), peer("openai_clip").variables
    assert "activation gelu of this ViT" in refusal(lambda: to_torch(gelu, openai, "openai_clip"))
    assert_same(to_torch(gelu, openai, "open_clip"), to_torch(peer("openai_clip").module, openai, "openai_clip"))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused_with_the_way_to_its_weights(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(nn.Linear(3, 2)).save(path)
    message = refusal(lambda: load(path))
    assert "is a TorchScript archive, which contains code" in message and "\n" not in message
    assert f'torch.save(torch.jit.load("{path}", map_location="cpu").state_dict(), "weights.pt")' in message


def test_a_pretrained_masked_autoencoder_is_read_without_its_decoder(tmp_path):
    decoder = {f"decoder_blocks.{i}.norm1.weight": EXTRA[:, 0] for i in range(40)}
    others = {"mask_token": EXTRA, "decoder_embed.weight": EXTRA, "decoder_pos_embed": EXTRA} | decoder
    loaded = load_described(write(tmp_path / "a.safetensors", tensors_of("timm_cls") | others), num_heads=3)
    assert (loaded.module, loaded.source) == (peer("timm_cls").module, "facebook")
    assert_same(loaded.variables, peer("timm_cls").variables)
    assert "left out 43 tensors (not needed by the ViT): mask_token, decoder_embed.weight" in str(loaded.notes)


def test_blocks_in_chunks_are_read_in_their_order(tmp_path):
    tensors = {re.sub(r"blocks\.(\d+)", r"blocks.\1.\1", key): x for key, x in tensors_of("facebook_swiglu").items()}
    assert "blocks.1.1.mlp.w12.weight" in tensors
    path = write(tmp_path / "a.safetensors", {f"backbone.{key}": x for key, x in tensors.items()})
    loaded = load_described(path, num_heads=2)
    assert loaded.module == peer("facebook_swiglu").module
    assert_same(loaded.variables, peer("facebook_swiglu").variables)
    twice = write(tmp_path / "b.safetensors", tensors | {"blocks.1.0.norm1.weight": EXTRA})
    assert "must be those of a ViT" in refusal(lambda: load(twice, num_heads=2))


def test_of_dinos_student_and_teacher_one_is_chosen(tmp_path, capsys):
    student, teacher = torch_state("timm_cls", "module.backbone."), torch_state("timm_cls", "backbone.")
    teacher = {key: 2 * value for key, value in teacher.items()} | {"head.mlp.0.weight": torch.ones(2, 3)}
    torch.save({"teacher": teacher, "epoch": 3}, tmp_path / "teacher.pth")
    loaded = load_described(tmp_path / "teacher.pth", num_heads=3)
    kernel = peer("timm_cls").variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(loaded.variables["params"]["head"]["kernel"], 2 * kernel)
    assert 'left out 1 tensor (not under "teacher.backbone."): teacher.head.mlp.0.weight' in loaded.notes
    torch.save({"student": student, "teacher": teacher, "optimizer": {}}, tmp_path / "both.pth")
    assert main([str(tmp_path / "both.pth"), str(tmp_path / "a.npz"), "--num-heads", "3"]) == 2
    assert 'with the prefixes "student.module.backbone." and "teacher.backbone."' in capsys.readouterr().err
    _, variables = load(tmp_path / "both.pth", num_heads=3, prefix="student.module.backbone.")
    assert_same(variables, peer("timm_cls").variables)


def test_mocos_encoder_is_read_without_its_projector(tmp_path):
    body = {key: x for key, x in tensors_of("timm_cls").items() if not key.startswith("head.")}
    projector = {"head.0.weight": EXTRA, "head.1.running_mean": EXTRA[0], "head.3.weight": EXTRA}
    both = {
        f"module.{name}.{key}": x
        for name in ("base_encoder", "momentum_encoder")
        for key, x in (body | projector).items()
    }
    path = write(tmp_path / "a.safetensors", both | {"module.predictor.0.weight": EXTRA})
    assert "2 models" in refusal(lambda: load(path, num_heads=3))
    options = {"num_heads": 3, "prefix": "module.base_encoder."}
    assert "the classifier must be one linear layer" in refusal(lambda: load(path, **options))
    _, variables = load(path, "drop", **options)
    assert_same(to_torch(peer("timm_cls").module.clone(num_classes=0), variables), body)


def test_facebooks_names_are_written_where_its_code_can_build_the_model():
    module, variables = example(norm_after_pool=True, pool="gap")
    assert to_torch(module, variables, "facebook").keys() == to_torch(module, variables, "timm").keys()
    module, variables = example(num_registers=3, layer_scale=0.1)
    assert {"register_tokens", "blocks.1.ls2.gamma"} <= to_torch(module, variables, "facebook").keys()
    module, variables = example(class_position=False, layer_scale=0.1)
    assert {"blocks.0.gamma_1", "blocks.1.gamma_2"} <= to_torch(module, variables, "facebook").keys()
    module, variables = example(num_registers=3, register_positions=True)
    assert "register_positions True" in refusal(lambda: to_torch(module, variables, "facebook"))


def test_the_image_tower_of_siglip_is_read_and_the_text_tower_is_named(tmp_path):
    for name in ("bv_mlpdefault_scan_map", "bv_tok_params_full"):
        file = {key.removeprefix("params/"): x.read() for key, x in read_weights(FIXTURES / name).tensors.items()}
        tower = {f"params/img/{key}": x for key, x in file.items() if not key.startswith(("opt/", "chrono/"))}
        text = {"params/t": EXTRA[0, :1], "params/b": EXTRA[0, :1]}
        text |= {f"params/txt/Encoder_0/encoderblock_{i}/LayerNorm_0/scale": EXTRA[0] for i in range(2)}
        loaded = load_described(write(tmp_path / f"{name}.npz", tower | text))
        assert (loaded.module, loaded.source) == (peer(name).module, "big_vision")
        assert_same(loaded.variables, peer(name).variables)
        assert 'left out 4 tensors (not under "img/"): t, b, txt/Encoder_0' in str(loaded.notes)


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [("timm_cls", "patch_embed.proj.weight", (1, 1, 1, 2)), ("google_npz", "embedding/kernel", (1, 2, 1, 1))],
)
def test_patches_need_not_be_square(tmp_path, name, key, change):
    tensors, patch = tensors_of(name), peer(name).module.patch_size
    path = write(tmp_path / "a.safetensors", tensors | {key: np.tile(tensors[key], change)})
    module, variables = load(path, num_heads=3)
    assert module.patch_size == (patch, 2 * patch)
    np.testing.assert_array_equal(to_torch(module, variables, peer(name).source)[key], np.tile(tensors[key], change))
    flat = write(tmp_path / "b.safetensors", tensors | {key: np.ones((48, 12), np.float32)})
    assert f"{key} must have the axes of a convolution" in refusal(lambda: load(flat, num_heads=3))
