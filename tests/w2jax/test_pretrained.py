"""A pretrained model with how to prepare images for it, and its position embeddings at another image size."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import random_variables
from weights import FIXTURES, peer

import w2jax
from w2jax import ImageSpec, ViT, load_pretrained
from w2jax.convert import save
from w2jax.convert.load_save import describe_spec

SPEC = ImageSpec((16, 24), (18, 24), "lanczos", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("a", "b", "c"), False, True, "floor")
BIT = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 20}}


def copied(tmp_path: Path, fixture: str, **files: Any) -> Path:
    """Copies a fixture and adds JSON files."""
    folder = shutil.copytree(FIXTURES / fixture, tmp_path / fixture)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def small() -> tuple[ViT, dict[str, Any]]:
    module = ViT(num_classes=3, patch_size=8, embed_dim=12, depth=1, num_heads=3, mlp_dim=20)
    return module, random_variables(module, jnp.zeros((1, 16, 24, 3)))


def test_a_pretrained_model_predicts_as_its_library() -> None:
    model, variables, spec = load_pretrained(FIXTURES / "timm_hub_reg4_gap")
    io = np.load(FIXTURES / "timm_hub_reg4_gap" / "io.npz")
    np.testing.assert_allclose(model.apply(variables, jnp.asarray(io["images"]))[0], io["logits"], rtol=0, atol=1e-4)  # type: ignore[index]
    assert spec == peer("timm_hub_reg4_gap").spec is not None


def test_arguments_and_fields_are_passed_on() -> None:
    model, variables, spec = load_pretrained(FIXTURES / "timm_cls", spec=SPEC, head="drop", num_heads=3, norm_eps=0.5)
    assert isinstance(model, ViT) and (model.num_heads, model.norm_eps, model.num_classes) == (3, 0.5, 0)
    assert "head" not in variables["params"] and spec == SPEC
    assert load_pretrained(FIXTURES / "timm_cls", num_heads=3).spec is None


def test_a_description_that_is_not_understood_must_be_given(tmp_path: Path) -> None:
    folder = copied(tmp_path, "hf_vit", preprocessor_config=BIT | {"resample": 7})
    with pytest.raises(ValueError, match=r"hf_vit: resample must be .*, got 7\. Pass spec, a w2jax\.ImageSpec"):
        load_pretrained(folder)
    given = ImageSpec((24, 24), (24, 24))
    assert load_pretrained(folder, spec=given).spec == given


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.npz", "folder"])
def test_files_of_save_keep_the_description(tmp_path: Path, name: str) -> None:
    module, variables = small()
    save(tmp_path / name, module, variables, "google" if name == "vit.npz" else "torch", spec=SPEC)
    assert load_pretrained(tmp_path / name).spec == describe_spec(tmp_path / name) == SPEC
    save(tmp_path / name, module, variables)
    assert load_pretrained(tmp_path / name).spec is None


def test_a_damaged_description_in_the_metadata_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, variables = small()
    for wrong in ({"image_size": [16, 24]}, {"image_size": [16, 24], "resize": "18"}, {"resize": 18, "images": 1}):
        monkeypatch.setattr("w2jax.convert.saving.asdict", lambda _, wrong=wrong: wrong)
        save(tmp_path / "a.safetensors", module, variables, spec=SPEC)
        with pytest.raises(ValueError, match="ImageSpec"):
            load_pretrained(tmp_path / "a.safetensors")


def test_the_images_of_an_exported_run_are_stretched(tmp_path: Path) -> None:
    module, variables = small()
    save(tmp_path / "model.safetensors", module, variables, "torch")
    (tmp_path / "images.json").write_text(json.dumps({"image_shape": [16, 24, 3], "label_names": ["x", "y", "z"]}))
    expected = ImageSpec((16, 24), (16, 24), "bilinear", (0.0,) * 3, (1.0,) * 3, ("x", "y", "z"))
    assert load_pretrained(tmp_path).spec == expected
    (tmp_path / "images.json").write_text(json.dumps({"image_shape": [16, 24, 3], "label_names": "xyz"}))
    with pytest.raises(ValueError, match="label_names must be a list of names, got 'xyz'"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(("size", "grid"), [((16, 24), (2, 3)), ((40, 32), (5, 4))])
def test_position_embeddings_of_dinov2_are_resized_as_by_torch(tmp_path: Path, size: Any, grid: Any) -> None:
    crop = BIT | {"crop_size": {"height": size[0], "width": size[1]}}
    folder = copied(tmp_path, "hf_dinov2", preprocessor_config=crop)
    old = peer("hf_dinov2").variables["params"]["positions"]
    _, variables, _ = load_pretrained(folder)
    patches = torch.from_numpy(np.array(old[:, 1:])).unflatten(1, (3, 3)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(patches, size=grid, mode="bicubic").flatten(2).transpose(1, 2)
    new = variables["params"]["positions"]
    np.testing.assert_allclose(new[:, 1:], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(new[:, :1], old[:, :1])


def test_position_embeddings_of_others_are_resized_with_antialiasing() -> None:
    spec = ImageSpec((16, 32), 32)
    model, variables, _ = load_pretrained(FIXTURES / "timm_hub_reg4_gap", spec=spec)
    given = peer("timm_hub_reg4_gap")
    assert isinstance(model, ViT)
    expected = model.resize(given.variables, (32, 32), (16, 32))["params"]["positions"]
    np.testing.assert_array_equal(variables["params"]["positions"], expected)
    assert model.apply(variables, spec.preprocess(np.zeros((16, 32, 3), np.uint8)))[0].shape == (1, 7)  # type: ignore[index]


def test_the_names_are_public() -> None:
    assert w2jax.load_pretrained is load_pretrained and w2jax.ImageSpec is ImageSpec
