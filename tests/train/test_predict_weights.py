"""`train.predict` on weights that were never trained here: the probabilities of their library for a photo."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import random_variables
from PIL import Image
from safetensors.numpy import load_file

from train.predict import load
from train.predict.__main__ import main
from train.process.errors import UserError
from w2jax import LSTM, ViT
from w2jax.convert import save
from w2jax.image_spec import ImageSpec
from w2jax.pretrained import load_pretrained

TIMM = Path(__file__).parents[1] / "fixtures/predict/timm"
NAMES = ["ant", "bee", "cow", "dog", "elk"]
BARE = ViT(7, patch_size=4, embed_dim=12, depth=1, num_heads=3, mlp_dim=20)


def rows(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_probabilities_are_those_of_timms_own_pipeline(capsys):
    expected = json.loads((TIMM / "probabilities.json").read_text())
    photos = [TIMM / "gray.png", TIMM / "photo.jpg"]
    assert main([str(TIMM), *map(str, photos), "--json", "--top-k", "5"]) == 0
    for photo, row in zip(photos, rows(capsys), strict=True):
        found = {x["label"]: x["probability"] for x in row["top"]}
        assert found == pytest.approx(dict(zip(NAMES, expected[photo.name], strict=True)), abs=1e-4)


def test_the_note_says_what_was_read_and_bad_photos_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "a.png").write_text("text")
    shutil.copy(TIMM / "photo.jpg", tmp_path / "b.jpg")
    weights = TIMM / "model.safetensors"
    assert main([str(weights), str(tmp_path)]) == 1
    told = capsys.readouterr()
    printed = " ".join(told.out.split())  # The caption of the table is broken into lines.
    assert "bee  63." in told.out and f"the weights in {weights}; normalization imagenet; images" in printed
    assert "; images resized to shorter side 44 (bicubic), cut to 40×40" in printed
    assert told.err.startswith(f"not read: {tmp_path}/a.png")
    assert main([str(weights), str(tmp_path), "--skip-corrupt", "--attention", str(tmp_path / "looked.png")]) == 0
    shown = np.asarray(Image.open(tmp_path / "looked.png"))
    zoom = shown.shape[1] // 40
    assert np.ptp(shown[40 * zoom :].astype(int), axis=-1).max() > 50  # red


def test_the_note_says_which_of_two_sets_of_weights_was_read(tmp_path):
    shutil.copytree(TIMM, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "spare")
    average = {name: torch.from_numpy(x) for name, x in load_file(tmp_path / "spare").items()}
    raw = {name: torch.zeros_like(x) for name, x in average.items()}
    torch.save({"state_dict": raw, "state_dict_ema": average}, tmp_path / "vit.pth")
    predictor = load(tmp_path / "vit.pth")
    assert "; read the averaged weights under 'state_dict_ema', not the raw weights (for those, " in predictor.note
    images = predictor.read([TIMM / "photo.jpg"])
    np.testing.assert_array_equal(predictor(images), load(TIMM)(images))


def test_in_python_images_are_read_or_passed(tmp_path):
    predictor = load(TIMM)
    assert predictor.label_names == NAMES and predictor.image_shape == (40, 40, 3)
    images = predictor.read([TIMM / "photo.jpg", TIMM / "gray.png"])
    expected = json.loads((TIMM / "probabilities.json").read_text())
    np.testing.assert_allclose(predictor(images), [expected["photo.jpg"], expected["gray.png"]], atol=1e-4)


@pytest.fixture
def bare(tmp_path):
    """Returns a file of weights for 12×12 pixels that does not describe their images, and the variables."""
    variables = random_variables(BARE, jnp.zeros((1, 12, 12, 3)))
    save(tmp_path / "vit.safetensors", BARE, variables)
    return tmp_path / "vit.safetensors", variables


def test_the_user_can_describe_the_images_of_weights(bare, capsys):
    path, variables = bare
    options = ["--normalize", "none", "--image-size", "12", "16", "--json", "--top-k", "7"]
    assert main([str(path), str(TIMM / "photo.jpg"), *options]) == 0
    spec = ImageSpec((12, 16), (12, 16), "bicubic", (0.0,) * 3, (1.0,) * 3, stretch=False)
    pixels = jnp.asarray(spec.resize_images(TIMM / "photo.jpg") / np.float32(255))
    logits, _ = BARE.apply(BARE.resize(variables, (12, 12), (12, 16)), pixels)
    expected = jax.nn.softmax(logits[0])
    (row,) = rows(capsys)
    assert {x["label"]: x["probability"] for x in row["top"]} == pytest.approx(
        {f"class {k}": float(p) for k, p in enumerate(expected)}, abs=1e-5
    )


@pytest.mark.parametrize("change", [{}, {"crop_mode": "border"}])
def test_the_class_names_are_those_of_the_files_if_the_user_describes_the_images(change, tmp_path, capsys):
    """Also if the files describe the images in a way that is not understood."""
    folder = shutil.copytree(TIMM, tmp_path / "timm")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    options = ["--normalize", "imagenet", "--image-size", "40", "40", "--json", "--top-k", "5"]
    assert main([str(folder), str(TIMM / "photo.jpg"), *options]) == 0
    (row,) = rows(capsys)
    assert {x["label"] for x in row["top"]} == set(NAMES)


def test_the_user_can_state_what_the_files_do_not(capsys):
    """The tensors of this ViT of width 48 show neither its heads nor its activation nor its epsilon."""
    weights = TIMM.parents[1] / "vit/timm_cls"
    images = ["--normalize", "half", "--image-size", "32", "32"]
    command = [str(weights), str(TIMM / "photo.jpg"), *images, "--json", "--top-k", "7"]
    with pytest.raises(UserError, match=r"Pass num_heads \(--num-heads\)"):
        main(command)
    found = []
    for fields in ({"num_heads": 3}, {"num_heads": 4, "activation": "gelu_tanh", "norm_eps": 0.5, "pool": "gap"}):
        given = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        assert main([*command, *given]) == 0
        (row,) = rows(capsys)
        spec = ImageSpec((32, 32), 32)
        model, variables, _ = load_pretrained(weights, spec, **fields)
        logits, _ = model.apply(variables, spec.preprocess(TIMM / "photo.jpg"))
        expected = {f"class {k}": float(p) for k, p in enumerate(jax.nn.softmax(logits[0]))}
        assert {x["label"]: x["probability"] for x in row["top"]} == pytest.approx(expected, abs=1e-5)
        found.append(expected)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["{bare}", "{photo}"],
            r"does not say how its images must be prepared\. Add --normalize imagenet .* and --ima",
        ),
        (["{bare}", "{photo}", "--normalize", "clip"], "--normalize and --image-size must be given together"),
        (["{bare}", "{photo}", "--image-size", "4", "4"], "--normalize and --image-size must be given together"),
        (
            ["{bare}", "{photo}", "--normalize", "clip", "--image-size", "0", "4"],
            "--image-size must be height and width",
        ),
        (
            ["{bare}", "{photo}", "--normalize", "clip", "--image-size", "10", "12"],
            "patch_size must divide the image's height and width, got patch_size 4 and an image of 10×12 pixels",
        ),
        (["{timm}", "{photo}", "--checkpoint", "best"], "--checkpoint must be left out for weights, got best"),
        (["{timm}", "--sample", "3", "--out", "x.png"], "--sample needs a generative model, .* got a ViT"),
        (["{timm}", "{photo}", "--out", "x.png"], "--out needs an autoencoder, .* got a ViT"),
        (["{timm}", "{photo}", "--top-k", "6"], "--top-k must be from 1 to 5, the number of classes, got 6"),
        (["{headless}", "{photo}"], "must contain a ViT with a classifier, got a ViT without a classifier"),
        (["{lstm}", "{photo}"], "must contain a ViT with a classifier, got a LSTM"),
        (["{text}", "{photo}"], "must be a folder or end with"),
        (["{folder}", "{photo}"], "must be a run folder"),
        (["{odd}", "{photo}"], "crop_mode must be"),
        (
            ["{gray}", "{photo}"],
            r"must fit images of shape \[40, 40, 3\], but params/patch_embed/",
        ),
    ],
)
def test_an_error_is_one_line(arguments, told, bare, tmp_path):
    places = {"bare": bare[0], "timm": TIMM, "photo": TIMM / "photo.jpg", "text": tmp_path / "x.txt"}
    places["text"].write_text("text")
    places |= {name: tmp_path / name for name in ("folder", "odd", "headless", "lstm", "gray")}
    places["folder"].mkdir()
    odd = json.loads((shutil.copytree(TIMM, places["odd"]) / "config.json").read_text())
    odd["pretrained_cfg"]["crop_mode"] = "border"
    (places["odd"] / "config.json").write_text(json.dumps(odd))
    gray = BARE.clone(patch_size=8)
    spec = ImageSpec((40, 40), 44, mean=(0.5, 0.4, 0.3))
    save(places["gray"], gray, random_variables(gray, jnp.zeros((1, 40, 40, 1))), spec=spec)
    headless = BARE.clone(num_classes=0)
    save(places["headless"], headless, random_variables(headless, jnp.zeros((1, 12, 12, 3))))
    save(places["lstm"], LSTM(3), random_variables(LSTM(3), jnp.zeros((1, 1, 2))))
    with pytest.raises(UserError, match=told) as error:
        main([argument.format(**places) for argument in arguments])
    assert "\n" not in str(error.value)


def test_a_projection_is_no_classifier():
    with pytest.raises(UserError, match="must contain a ViT with a classifier, got a ViT without a classifier"):
        load(TIMM.parents[1] / "vit/hf_clip_projection")


def test_a_path_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"^nowhere does not exist\. Pass a run folder, .*, weights, or the name of a"):
        load("nowhere")
