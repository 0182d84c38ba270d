"""How images must be prepared, read from the files of timm, Hugging Face, torchvision and Google."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from weights import FIXTURES, peer

from w2jax import ViT
from w2jax.convert import save, to_torch
from w2jax.convert.__main__ import main
from w2jax.convert.image_configs import assumed_spec, huggingface_images, image_spec, timm_images
from w2jax.convert.load_save import describe_spec, load_described
from w2jax.image_spec import ImageSpec

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
TIMM = {"input_size": [3, 224, 224], "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
VIT = {"image_processor_type": "ViTImageProcessor", "size": 224}


def timm_spec(**changes: Any) -> ImageSpec | None:
    return image_spec({"architecture": "vit_base_patch16_224", "pretrained_cfg": TIMM | changes}, None, 5)


def huggingface_spec(model_type: str = "vit", **preprocessor: Any) -> ImageSpec | None:
    return image_spec({"model_type": model_type}, preprocessor, 5)


def timm_expected(size: int | tuple[int, int], resize: int | tuple[int, int], **changes: Any) -> ImageSpec:
    size = (size, size) if isinstance(size, int) else size
    fields = {"interpolation": "bilinear", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "upright": False}
    return ImageSpec(size, resize, **(fields | changes))


# floor(224 / 0.9) and so on: the sizes of timm.data.create_transform.
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"crop_pct": 0.9}, timm_expected(224, 248)),
        ({}, timm_expected(224, 256)),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, timm_expected(224, (224, 224))),
        ({"crop_pct": 0.95, "input_size": [3, 518, 518], "interpolation": "bicubic"},
         timm_expected(518, 545, interpolation="bicubic")),
        ({"crop_pct": 0.9, "input_size": [3, 32, 48]}, timm_expected((32, 48), (35, 53), stretch=False)),
        ({"test_input_size": [3, 288, 288], "test_crop_pct": 1.0, "crop_pct": 0.9}, timm_expected(224, 248)),
        ({"mean": [0.5], "std": [0.25], "input_size": [1, 28, 28]},
         timm_expected(28, 32, mean=(0.5,), std=(0.25,))),
        ({"mean": None, "std": None, "interpolation": None},
         timm_expected(224, 256, interpolation="bicubic", **IMAGENET)),
    ],
)  # fmt: skip
def test_timms_configs_give_timms_preparation(changes: dict[str, Any], expected: ImageSpec) -> None:
    assert timm_spec(**changes) == expected


def test_an_older_config_of_timm_has_the_same_values_at_its_top() -> None:
    assert image_spec({"architecture": "vit_base_patch16_224", **TIMM}, None, 5) == timm_spec()


def test_model_args_of_timm_set_the_size_only_if_the_input_size_is_fixed() -> None:
    config = {"model_args": {"img_size": [40, 40]}, "pretrained_cfg": TIMM | {"fixed_input_size": True}}
    assert image_spec(config, None, 5) == timm_expected(40, 45)
    config["pretrained_cfg"]["fixed_input_size"] = False
    assert image_spec(config, None, 5) == timm_expected(224, 256)


HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_offset": "floor"}


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        (VIT, ImageSpec((224, 224), (224, 224), "bilinear", **HALF)),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": {"height": 32, "width": 48}, "resample": 0},
         ImageSpec((32, 48), (32, 48), "nearest", **HALF)),
        ({"image_processor_type": "ViTImageProcessorFast", "image_mean": [0.0, 0.1, 0.2]},
         ImageSpec((224, 224), (224, 224), "bilinear", **(HALF | {"mean": (0.0, 0.1, 0.2)}))),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "do_center_crop": True},
         ImageSpec((224, 224), (256, 256), "bicubic", **HALF)),
        ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "do_center_crop": True,
          "crop_size": {"height": 224, "width": 208}, "image_mean": [0.485, 0.456, 0.406],
          "image_std": [0.229, 0.224, 0.225]},
         ImageSpec((224, 208), 256, "bicubic", **IMAGENET, crop_offset="floor")),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336},
         ImageSpec((336, 336), 336, "bicubic", **CLIP, crop_offset="floor")),
        ({"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}},
         ImageSpec((384, 384), (384, 384), "bicubic", **HALF)),
        (VIT | {"do_normalize": False},
         ImageSpec((224, 224), (224, 224), "bilinear", (0.0,) * 3, (1.0,) * 3, crop_offset="floor")),
    ],
)  # fmt: skip
def test_hugging_faces_configs_give_its_preparation(preprocessor: dict[str, Any], expected: ImageSpec) -> None:
    assert huggingface_spec(**preprocessor) == expected


def test_a_processor_without_a_name_is_that_of_the_model() -> None:
    assert huggingface_spec("dinov2") == ImageSpec((224, 224), 224, "bicubic", **CLIP, crop_offset="floor")


@pytest.mark.parametrize("scaling", [{"rescale_factor": 1 / 127.5}, {"do_rescale": False}])
def test_another_factor_of_pixel_values_gives_the_same_numbers(scaling: dict[str, Any]) -> None:
    spec = huggingface_spec(**VIT, **scaling)
    assert spec is not None
    factor = scaling.get("rescale_factor", 1)
    np.testing.assert_allclose((77 / 255 - spec.mean[0]) / spec.std[0], (77 * factor - 0.5) / 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TIMM | {"crop_mode": "border"}, "crop_mode must be center or squash, got 'border'"),
        (TIMM | {"interpolation": "random"}, "interpolation must be nearest, bilinear, bicubic, lanczos, got 'random'"),
        (TIMM | {"input_size": [3, 224]}, "input_size must be 3 integers"),
        (TIMM | {"input_size": [3, 2**40, 224]}, "input_size must be 3 integers"),
        (TIMM | {"mean": [0.5, 0.5]}, "mean must have 3 numbers"),
        (TIMM | {"std": [0.5, "0.5", 0.5]}, "std must be a list of numbers"),
        (TIMM | {"mean": [0.5, 10**400, 0.5]}, "mean must be a list of numbers"),
        (TIMM | {"std": [0.5, 0, 0.5]}, "std must be a tuple of 1, 3 or 4 positive numbers"),
        (TIMM | {"crop_pct": 1e-9}, "crop_pct must be a number from 0.1 to 10"),
        ({"pretrained_cfg": [1]}, "pretrained_cfg in config.json must be an object"),
    ],
)
def test_values_of_timm_that_are_not_understood_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_spec(config, None, 5)


@pytest.mark.parametrize(
    ("preprocessor", "message"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "image_processor_type must begin with ViT or DeiT"),
        ({"image_processor_type": ["ViTImageProcessor"]}, "image_processor_type must be"),
        (VIT | {"size": {"longest_edge": 224}}, "size must have height and width, or shortest_edge"),
        (VIT | {"size": {"shortest_edge": 224}}, "size must have height and width if do_center_crop is false"),
        (VIT | {"size": [224, 224.5]}, "size must be 2 integers"),
        (VIT | {"do_resize": False}, "do_resize must be true"),
        (VIT | {"do_pad": True}, "do_pad must be false"),
        (VIT | {"resample": 5}, "resample must be 0, 1, 2, 3, got 5"),
        (VIT | {"rescale_factor": "1/255"}, "rescale_factor must be a positive number"),
        (VIT | {"image_mean": 0.5}, "image_mean must be a list of numbers"),
    ],
)
def test_values_of_hugging_face_that_are_not_understood_are_named(preprocessor: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        huggingface_spec(**preprocessor)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"label_names": list("abcde")}, tuple("abcde")),
        ({"label_names": {str(i): name for i, name in enumerate("abcde")}}, tuple("abcde")),
        ({"label_names": list("abcde"), "label_descriptions": {x: x * 3 for x in "abcde"}},
         ("aaa", "bbb", "ccc", "ddd", "eee")),
        ({"label_names": list("abcde"), "label_descriptions": {"a": "aaa"}}, tuple("abcde")),
        ({"labels": list("abcde")}, tuple("abcde")),
        ({"label_names": list("abcd")}, None),
        ({"model_type": "vit", "id2label": {str(i): name for i, name in enumerate("abcde")}}, tuple("abcde")),
        ({"model_type": "vit", "id2label": {str(i): f"LABEL_{i}" for i in range(5)}}, None),
    ],
)  # fmt: skip
def test_the_names_of_the_classes_are_read(config: dict[str, Any], names: tuple[str, ...] | None) -> None:
    spec = image_spec(config | {"pretrained_cfg": TIMM}, VIT, 5)
    assert spec is not None
    assert spec.label_names == names


@pytest.mark.parametrize(
    ("count", "tag", "last"),
    [
        (1000, "augreg2_in21k_ft_in1k", "toilet tissue, toilet paper, bathroom tissue"),
        (1000, "in1k", "toilet tissue, toilet paper, bathroom tissue"),
        (21843, "augreg_in21k", "knothole"),
        (1000, "laion2b", None),
        (1000, "augreg_in21k", None),
        (999, "in1k", None),
        (1000, None, None),
    ],
)
def test_imagenets_names_are_used_if_the_source_says_so(count: int, tag: str | None, last: str | None) -> None:
    spec = image_spec({"pretrained_cfg": TIMM | {"tag": tag}}, None, count)
    other = image_spec({"architecture": f"vit_base_patch16_224.{tag}", **TIMM}, None, count)
    assert spec == other is not None
    assert (spec.label_names is None) == (last is None)
    if spec.label_names is not None:
        assert len(spec.label_names) == count and spec.label_names[-1] == last
        own = image_spec({"label_names": list("ab"), "pretrained_cfg": TIMM | {"tag": tag}}, None, 2)
        assert own is not None and own.label_names == ("a", "b")


def test_published_models_with_a_thousand_classes_have_imagenets_names() -> None:
    for family in ("torchvision", "google"):
        spec = assumed_spec(family, (224, 224), 1000)
        assert spec is not None and spec.label_names is not None
        assert (spec.label_names[0], spec.label_names[281]) == ("tench, Tinca tinca", "tabby, tabby cat")
    huggingface = image_spec({"model_type": "vit"}, VIT, 1000)
    assert huggingface is not None and huggingface.label_names is None


def copied(tmp_path: Path, fixture: str, preprocessor: str | None = None, **changes: Any) -> Path:
    """Copies a fixture with changes of its config.json, and a preprocessor_config.json."""
    folder = tmp_path / fixture
    folder.mkdir()
    shutil.copyfile(FIXTURES / fixture / "model.safetensors", folder / "model.safetensors")
    config = json.loads((FIXTURES / fixture / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(preprocessor)
    return folder


def test_a_folder_gives_the_same_description_with_and_without_its_tensors(tmp_path: Path) -> None:
    folder = copied(tmp_path, "hf_vit", json.dumps(VIT | {"size": 24}))
    expected = ImageSpec((24, 24), (24, 24), "bilinear", **HALF)
    assert describe_spec(folder) == load_described(folder).spec == expected
    assert describe_spec(FIXTURES / "hf_vit") is None
    expected = ImageSpec((32, 32), 33, "bicubic", (0.5,) * 3, (0.5,) * 3, upright=False)
    assert describe_spec(FIXTURES / "timm_hub_reg4_gap") == peer("timm_hub_reg4_gap").spec == expected


def test_weights_load_although_their_images_are_not_understood(tmp_path: Path) -> None:
    for content, reason in (("{", "must be valid JSON"), ('{"do_pad": true}', "do_pad must be false")):
        folder = copied(tmp_path, "hf_vit", content)
        loaded = load_described(folder)
        (note,) = [note for note in loaded.notes if "images" in note]
        assert loaded.spec is None and reason in note
        with pytest.raises(ValueError, match=reason):
            describe_spec(folder)
        shutil.rmtree(folder)


def test_published_models_of_torchvision_and_google_are_assumed() -> None:
    assert assumed_spec("torchvision", (224, 224), 5) == ImageSpec(
        (224, 224), 256, "bilinear", **IMAGENET, upright=False
    )  # fmt: skip
    assert peer("torchvision_vit").spec == ImageSpec((32, 32), 32, "bicubic", **IMAGENET, upright=False)
    assert peer("google_npz").spec == ImageSpec((32, 32), (32, 32), "bilinear", upright=False)
    assert describe_spec(FIXTURES / "timm_cls", num_heads=3) is None


def test_the_input_size_of_timm_tells_which_tokens_have_positions(tmp_path: Path) -> None:
    # 16 positions could be those of 4 · 4 patches, or of the class token and 3 · 5 patches.
    module = ViT(num_classes=5, patch_size=8, embed_dim=12, depth=1, num_heads=3, mlp_dim=24)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 24, 40, 3)))
    save_file(dict(to_torch(module, variables, "timm")), tmp_path / "model.safetensors")
    config = {"architecture": "vit_base_patch16_224", "model_args": {"num_heads": 3}}

    def read(**pretrained: Any) -> bool:
        (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": pretrained}))
        return load_described(tmp_path).module.class_position  # type: ignore[attr-defined]

    assert not read()
    assert read(input_size=[3, 24, 40])
    assert not read(input_size=[3, 32, 32])
    assert not read(input_size=[3, 24, 40], fixed_input_size=False)
    with pytest.raises(ValueError, match=r"image_size must give 16 or 15 patches, because the file has 16 .* got 12"):
        read(input_size=[3, 24, 32])


# --- written again ---


@pytest.mark.parametrize("name", ["timm_clip", "timm_dinov2_giant", "timm_distilled", "timm_hub_reg4_gap",
                                  "timm_radio", "timm_siglip2", "timm_map_cls_reg"])  # fmt: skip
def test_a_folder_of_timm_describes_its_model_and_images_without_our_metadata(tmp_path: Path, name: str) -> None:
    source = peer(name)
    spec = source.spec or ImageSpec((24, 40), (26, 43), "nearest")
    spec = replace(spec, label_names=tuple(f"kind {i}" for i in range(source.module.num_classes)) or None)  # type: ignore[attr-defined]
    save(tmp_path, source.module, source.variables, "timm", spec=spec)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    loaded = load_described(tmp_path)
    assert loaded.source.startswith("timm")
    assert loaded.module == source.module.clone(layer_scale=loaded.module.layer_scale)  # type: ignore[attr-defined]
    assert loaded.spec == (None if timm_images(spec) is None else replace(spec, crop_offset="round", upright=False))


@pytest.mark.parametrize(("size", "resize"), [(224, 248), (224, 256), (518, 518), (384, 385), (37, 41), (20, 13)])
@pytest.mark.parametrize("stretch", [True, False])
def test_the_crop_of_timm_gives_the_size_again(size: int, resize: int, stretch: bool) -> None:
    spec = ImageSpec((size, size), (resize, resize) if stretch else resize, upright=False)
    assert image_spec({"pretrained_cfg": timm_images(spec)}, None, 0) == spec


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec((24, 40), (24, 40), "nearest", (0.1,), (0.2,)),
        ImageSpec((24, 40), (30, 41), "lanczos"),
        ImageSpec((24, 24), 31, "bilinear"),
    ],
)
def test_a_folder_of_hugging_face_describes_its_images(tmp_path: Path, spec: ImageSpec) -> None:
    source = peer("hf_vit")
    names = tuple(f"kind {i}" for i in range(7))
    save(tmp_path, source.module, source.variables, "huggingface", spec=replace(spec, label_names=names))
    preprocessor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config = json.loads((tmp_path / "config.json").read_text())
    assert image_spec(config, preprocessor, 7) == replace(spec, label_names=names, crop_offset="floor")


def test_the_command_passes_on_how_images_are_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, other, back = copied(tmp_path, "hf_vit", json.dumps(VIT | {"size": 32})), tmp_path / "timm", tmp_path / "hf"
    assert main([str(source), str(other), "--format", "timm"]) == 0
    assert "norm_eps 1e-12 here, 1e-06 in config.json" in capsys.readouterr().out
    assert main([str(other), str(back), "--format", "huggingface"]) == 0
    assert describe_spec(back) == describe_spec(other) == describe_spec(source) is not None
    config = json.loads((other / "config.json").read_text())
    assert config["pretrained_cfg"]["crop_mode"] == "squash" and config["model_args"]["img_size"] == [32, 32]


def test_images_that_a_library_cannot_prepare_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert huggingface_images(ImageSpec((24, 40), (26, 44), stretch=False)) is None
    assert timm_images(ImageSpec((24, 40), 44)) is None
    assert main([str(FIXTURES / "timm_distilled"), str(tmp_path / "deit"), "--format", "deit"]) == 0
    assert (
        "images      deit cannot say how to prepare the images of this model, so no file says it: ImageSpec("
        in capsys.readouterr().out
    )
    assert not (tmp_path / "deit" / "preprocessor_config.json").exists()


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
KEYS = ("input_size", "crop_pct", "crop_mode", "mean", "std", "interpolation", "fixed_input_size", "label_names",
        "pretrained_cfg", "model_args", "id2label", "label_descriptions", "model_type")  # fmt: skip
PROCESSOR_KEYS = ("size", "crop_size", "do_center_crop", "image_mean", "image_std", "resample", "rescale_factor",
                  "do_rescale", "do_resize", "do_pad", "do_normalize", "image_processor_type")  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=400)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES), st.dictionaries(st.sampled_from(PROCESSOR_KEYS), VALUES))
def test_a_description_of_any_types_is_read_or_refused(changes: dict[str, Any], preprocessor: dict[str, Any]) -> None:
    for config in (TIMM | changes, {"pretrained_cfg": TIMM | changes}, {"model_type": "vit"} | changes):
        try:
            image_spec(config, VIT | preprocessor, 5)
        except ValueError as error:
            assert len(str(error)) < 5000
