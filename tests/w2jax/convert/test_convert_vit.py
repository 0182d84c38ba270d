"""Vision Transformers of other libraries: equal logits, and bit for bit the same weights after converting back."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import FIXTURES, PEERS, assert_same, example, peer, refusal, tensors_of

from w2jax.convert import from_torch, load, save, to_torch
from w2jax.convert.files import read_weights
from w2jax.convert.load_save import load_described
from w2jax.convert.vit_tables import FORMATS

FAMILIES = ("timm", "huggingface", "torchvision", "google")
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "safetensors": ("model.safetensors", {}),
    "npz": ("model.npz", {}),
    "pt": ("model.pt", {}),
    "folder": ("folder", {}),
    "shards": ("folder", {"shard_bytes": 3000}),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_librarys_file_gives_the_librarys_outputs(name: str) -> None:
    loaded, io = peer(name), np.load(FIXTURES / name / "io.npz")
    assert loaded.source == PEERS[name][0]
    outputs, _ = jax.jit(loaded.module.apply)(loaded.variables, jnp.asarray(io["images"]))
    np.testing.assert_allclose(outputs, io["logits"], rtol=0, atol=1e-5 * max(1, np.abs(io["logits"]).max()))


@pytest.mark.parametrize("name", PEERS)
def test_a_librarys_tensors_come_back_bit_for_bit_under_their_names(name: str) -> None:
    loaded = peer(name)
    ignored = next(form.ignored for form in FORMATS if form.name == loaded.source)
    used = {key: value for key, value in tensors_of(name).items() if not key.startswith(ignored)}
    assert_same(to_torch(loaded.module, loaded.variables, loaded.source), used)


def test_every_kind_of_fixture_is_read() -> None:
    assert {path.name for path in FIXTURES.iterdir()} == PEERS.keys()


def test_options_missing_from_a_librarys_file_are_reported() -> None:
    assert peer("timm_cls").assumed == {"activation": "gelu", "norm_eps": 1e-6, "pool": "cls"}
    assert peer("hf_vit").assumed == {}
    assert peer("google_npz").assumed.keys() == {"activation", "norm_eps", "pool"}
    note, images = peer("google_opttarget_full_oldidx").notes
    assert images == "images are assumed to be prepared as for google's published models"
    assert "the optimizer state was ignored (43 tensors" in note and "opt/state" in note


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("file", FILES)
def test_our_weights_come_back_from_every_file_of_every_family(tmp_path: Path, file: str, family: str) -> None:
    module, variables = example(norm_eps=1e-3, activation="relu", dropout=0.25)
    name, options = FILES[file]
    save(tmp_path / name, module, variables, family, image_size=(4, 6), **options)
    if file == "shards":
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
    assert (tmp_path / name / "config.json").is_file() == (name == "folder" and family == "huggingface")
    if file == "pt":  # a .pt file contains no description of the module
        found = load(tmp_path / name, num_heads=2, norm_eps=1e-3, activation="relu", dropout=0.25)
    else:
        found = load(tmp_path / name)
    assert found[0] == module
    assert_same(found[1], variables)


def test_a_huggingface_folder_is_read_by_its_config_only(tmp_path: Path) -> None:
    options = {"pre_logits_dim": 7, "num_classes": 0, "qkv_bias": False, "activation": "gelu_tanh", "norm_eps": 1e-12}
    for number, chosen in enumerate([options, {"norm_eps": 1e-5}]):
        module, variables = example(**chosen)
        folder = tmp_path / str(number)
        assert "image_size" in refusal(lambda: save(folder, module, variables, "huggingface"))  # noqa: B023
        save(folder, module, variables, "huggingface", image_size=(4, 6))
        tensors = {name: tensor.read() for name, tensor in read_weights(folder).tensors.items()}
        (folder / "model.safetensors").unlink()
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        found = load_described(folder)
        assert (found.module, found.assumed) == (module, {})
        assert found.source == "huggingface_model" if number == 0 else "huggingface"
        assert_same(found.variables, variables)


def test_huggingfaces_config_determines_the_options(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (FIXTURES / "hf_model_sharded").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for change, wanted in [
        (
            {"hidden_act": "silu"},
            "gelu_pytorch_tanh or quick_gelu or relu, got 'silu'",
        ),
        ({"pooler_act": "relu"}, "pooler_act in config.json must be tanh, got 'relu'"),
        ({"model_type": "bert"}, "model_type in config.json must be vit or deit or vit_mae or "),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        assert wanted in refusal(lambda: load(folder))
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.5, "hidden_act": "quick_gelu"}))
    module, _ = load(folder)
    assert (module.norm_eps, module.activation, module.num_heads) == (0.5, "quick_gelu", 5)


REFUSED = [
    ({"residual_from_norm": True}, FAMILIES, "residual_from_norm True"),
    ({"attention_scale": 0.5}, FAMILIES, "attention_scale 0.5"),
    ({"positions": "sincos2d"}, FAMILIES[:3], "positions sincos2d"),
    ({"num_registers": 3, "register_positions": True}, FAMILIES[1:], "num_registers 3"),
    ({"num_registers": 3}, FAMILIES[:1], "register_positions False"),
    ({"norm_after_pool": True}, FAMILIES[1:], "pool_norm/scale"),
    ({"qk_norm": True}, FAMILIES[1:], "qk_norm True"),
    ({"layer_scale": 0.1}, FAMILIES[1:], "scale1/gamma"),
    ({"embed_norm": True}, FAMILIES[1:], "embed_norm/scale"),
    ({"embed_norm": True}, FAMILIES[:1], "patch_bias True with embed_norm True"),
    ({"patch_bias": False}, FAMILIES[:1], "patch_bias False with embed_norm False"),
    ({"patch_bias": False}, FAMILIES[1:], "patch_bias False"),
    ({"pool": "gap", "class_token": False}, FAMILIES[1:3], "pool gap"),
    ({"pool": "map"}, FAMILIES[1:3], "pool map"),
    ({"pool": "gap"}, FAMILIES[3:], "class_token True with pool gap"),
    ({"qkv_bias": False}, FAMILIES[2:], "qkv_bias False"),
    ({"pre_logits_dim": 6}, FAMILIES[:1], "pre_logits/kernel"),
    ({"pre_logits_dim": 6}, FAMILIES[1:2], "pre_logits/kernel"),  # the format has either a pooler or a classifier
    ({"class_position": False}, FAMILIES[1:3], "class_position False"),
]


@pytest.mark.parametrize(("options", "families", "named"), REFUSED, ids=str)
def test_a_family_that_cannot_express_a_module_names_the_parameters(
    options: dict[str, Any], families: tuple[str, ...], named: str
) -> None:
    module, variables = example(depth=1, **options)
    for family in families:
        message = refusal(lambda: to_torch(module, variables, family))  # noqa: B023
        assert named in message and f'"{family}"' in message


def test_a_refused_module_leaves_no_file(tmp_path: Path) -> None:
    module, variables = example(depth=1, residual_from_norm=True)
    assert refusal(lambda: save(tmp_path / "a.npz", module, variables))
    assert not [*tmp_path.iterdir()]


def test_big_visions_pooling_is_written_under_its_names() -> None:
    module, variables = example(depth=1, pool="map", class_token=False)
    tensors = to_torch(module, variables, "google")
    assert {"pos_embedding", "MAPHead_0/probe"} <= tensors.keys()
    module, variables = example(depth=1, positions="sincos2d")
    assert to_torch(module, variables, "google").keys() == to_torch(module, variables, "big_vision").keys()


def test_for_an_unknown_format_the_error_lists_the_formats() -> None:
    assert "must be one of timm, huggingface, deit, msn, " in refusal(lambda: to_torch(*example(), "keras"))


def test_stacked_layers_have_the_same_values_and_are_written_alike() -> None:
    plain, scanned = (
        peer("timm_combo_rect"),
        load(FIXTURES / "timm_combo_rect", **PEERS["timm_combo_rect"][1], scan_layers=True),
    )
    assert scanned[0] == plain.module.clone(scan_layers=True)
    blocks = plain.variables["params"]["encoder"]
    stacked = jax.tree.map(lambda *x: np.stack(x), *(blocks[f"block_{i}"] for i in range(len(blocks))))
    wanted = {**plain.variables["params"], "encoder": {"blocks": stacked}}
    assert_same(scanned[1], {"params": wanted})
    for form in ("timm", "torch"):
        assert_same(to_torch(*scanned, form), to_torch(plain.module, plain.variables, form))
    assert_same(from_torch(scanned[0], tensors_of("timm_combo_rect")), scanned[1])


def test_half_precision_keeps_dtype_and_bits_and_float64_is_refused() -> None:
    assert {x.dtype for x in jax.tree.leaves(peer("hf_bf16").variables)} == {jnp.bfloat16.dtype}
    module, variables = example()
    for dtype in (np.float16, jnp.bfloat16.dtype):
        cast = jax.tree.map(lambda x: x.astype(dtype), variables)  # noqa: B023
        tensors = to_torch(module, cast, "timm")
        assert {x.dtype for x in tensors.values()} == {np.dtype(dtype)}
        assert_same(from_torch(module, tensors), cast)
    tensors = to_torch(module, variables, "timm")
    message = refusal(lambda: from_torch(module, tensors | {"norm.bias": tensors["norm.bias"].astype(np.float64)}))
    assert message.startswith("norm.bias must not be float64")
    message = refusal(lambda: from_torch(module, tensors | {"norm.bias": tensors["norm.bias"].astype(np.int32)}))
    assert message == "norm.bias must be floats, got int32"


OPTIONS = st.fixed_dictionaries(
    {
        "num_classes": st.sampled_from([0, 5]),
        "embed_dim": st.sampled_from([8, 16]),
        "depth": st.integers(1, 2),
        "num_heads": st.sampled_from([1, 2, 4]),
        "pool": st.sampled_from(["cls", "gap", "map"]),
        "norm_after_pool": st.booleans(),
        "class_token": st.booleans(),
        "positions": st.sampled_from(["learned", "learned", "sincos2d"]),
        "class_position": st.booleans(),
        "num_registers": st.sampled_from([0, 0, 3]),
        "register_positions": st.booleans(),
        "patch_bias": st.booleans(),
        "embed_norm": st.booleans(),
        "layer_scale": st.sampled_from([None, None, 1e-5]),
        "qkv_bias": st.booleans(),
        "qk_norm": st.booleans(),
        "pre_logits_dim": st.sampled_from([None, None, 3]),
        "scan_layers": st.booleans(),
    }
)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(options=OPTIONS)
def test_any_options_come_back_from_every_format_that_accepts_them(options: dict[str, Any]) -> None:
    if options["pool"] == "cls":
        options["class_token"] = True
    if not options["num_registers"]:
        options["register_positions"] = False
    if not options["class_token"] or options["positions"] == "sincos2d":
        options["class_position"] = False
    module, variables = example(**options)
    assert_same(from_torch(module, to_torch(module, variables, "torch")), variables)
    for family in FAMILIES:
        try:
            tensors = to_torch(module, variables, family)
        except ValueError as error:
            assert "cannot store" in str(error)
            continue
        assert_same(from_torch(module, tensors), variables)
