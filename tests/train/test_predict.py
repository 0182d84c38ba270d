"""A trained run as a function of images: it gives the evaluation's numbers, and reads any image as in training."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from PIL import Image

from configs.base import Mesh
from train.data import open_source
from train.engine.loop import fit
from train.predict import load, main
from train.process.errors import UserError
from train.run.folder import read_config
from train.vit import make_task


def trained(task, folder, **model):
    """Returns the config of a run of six steps. Classifiers take large steps, because their heads start at zero."""
    tiny = importlib.import_module(f"configs.{task}").PRESETS["tiny"].config
    large = (
        {}
        if task == "aae"
        else {"optim": dataclasses.replace(tiny.optim, learning_rate=0.02, warmup_fraction=0.0, ema=None)}
    )
    config = dataclasses.replace(
        tiny,
        **large,
        model=tiny.model.clone(**model),
        data=dataclasses.replace(tiny.data, train_split="train[:40]", test_split="test[:24]"),
        run=dataclasses.replace(tiny.run, steps=6, batch_size=10, eval_every=6, save_every=6, dir=str(folder)),
        mesh=Mesh(1, 1, 1),
    )
    fit(config, importlib.import_module(f"train.{task}").make_task)
    return config


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return trained("vit", tmp_path_factory.mktemp("vit") / "run", embed_dim=8, mlp_dim=8, depth=1)


@pytest.fixture(scope="module")
def digits(vit):
    """Returns (test images [24, 28, 28, 1], their labels)."""
    found = open_source(vit.data, vit.data.test_split).gather(np.arange(24))
    return found["image"], found["label"]


@pytest.fixture
def files(digits, tmp_path):
    """Writes the first digit in five formats that show the same digit, and a second digit."""
    image = digits[0][0, ..., 0]
    gray = Image.fromarray(image)
    gray.save(tmp_path / "a_gray.png")
    gray.convert("RGBA").save(tmp_path / "b_rgba.png")
    gray.convert("P").save(tmp_path / "c_palette.gif")
    Image.fromarray(image.astype(np.uint16) * 257).save(tmp_path / "d_sixteen_bits.png")
    gray.resize((84, 84), Image.Resampling.NEAREST).save(tmp_path / "e_larger.bmp")
    Image.fromarray(digits[0][1, ..., 0]).save(tmp_path / "f_other.png")
    return tmp_path


def last_line(config):
    return json.loads(Path(config.run.dir, "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    ("task", "model"), [("lstm", {"hidden_size": 8}), ("mha", {"embed_dim": 8, "mlp_dim": 8, "depth": 1}), ("vit", {})]
)
def test_predictions_have_the_accuracy_and_loss_of_the_runs_last_row(task, model, vit, digits, tmp_path):
    config = vit if task == "vit" else trained(task, tmp_path / "run", **model)
    images, labels = digits
    predictor = load(config.run.dir)
    probabilities = predictor(images)
    assert predictor.label_names == list("0123456789")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(probabilities) > 0.05
    assert last_line(config)["accuracy"] == pytest.approx((probabilities.argmax(axis=1) == labels).mean())
    loss = -np.log(probabilities[np.arange(24), labels]).mean()
    assert last_line(config)["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_reconstructions_have_the_squared_error_of_the_runs_last_row(tmp_path):
    config = trained("aae", tmp_path / "run")
    predictor = load(config.run.dir)
    images = open_source(config.data, config.data.test_split).gather(np.arange(24))["image"]  # [24, 32, 32, 1]
    again = predictor(images)
    assert again.shape == images.shape and 0 <= again.min() < again.max() <= 1
    error = np.square(2 * (again - images / 255)).mean()  # the decoder's range is [-1, 1]
    assert last_line(config)["reconstruction"] == pytest.approx(error, rel=1e-4)
    samples = predictor.sample(7)
    assert samples.shape == (7, 32, 32, 1) and np.ptp(samples, axis=0).max() > 0.01
    np.testing.assert_array_equal(samples, predictor.sample(7))
    digit = tmp_path / "digit.png"
    Image.fromarray(images[0, ..., 0]).save(digit)
    with pytest.raises(UserError, match="--json needs a classifier, got an AAE"):
        main([config.run.dir, str(digit), "--json", "--out", str(tmp_path / "again.png")])
    with pytest.raises(
        UserError, match=r"--sample does not use input images, got .*digit\.png\. Leave out the images or --sample"
    ):
        main([config.run.dir, str(digit), "--sample", "3", "--out", str(tmp_path / "again.png")])
    main([config.run.dir, str(digit), "--out", str(tmp_path / "again.png")])
    shown = np.asarray(Image.open(tmp_path / "again.png"))
    zoom = shown.shape[1] // 32
    np.testing.assert_array_equal(shown[: 32 * zoom : zoom, ::zoom], images[0, ..., 0])
    np.testing.assert_allclose(shown[32 * zoom :: zoom, ::zoom] / 255, again[0, ..., 0], atol=0.51 / 255)


def test_a_digit_is_the_same_digit_in_any_mode_depth_and_format(vit, files, capsys):
    main([vit.run.dir, str(files), "--json", "--top-k", "10"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["image"]).name[0] for row in rows] == list("abcdef")
    values = [{x["label"]: x["probability"] for x in row["top"]} for row in rows]
    for row, value in zip(rows, values, strict=True):
        assert row["probability"] == max(value.values()) == value[row["label"]]
        assert len(value) == 10
    for same in values[1:4]:
        assert same == pytest.approx(values[0], rel=1e-5)
    assert values[4] == pytest.approx(values[0], abs=0.05)  # enlarged, and reduced when it is read
    assert values[5] != pytest.approx(values[0], rel=1e-5)


def test_the_table_has_top_k_classes_and_each_files_name(vit, files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    (files / "a_gray.png").rename(files / "zwölf 数.png")
    (files / "f_other.png").rename(files / "other\x1b[2J.png")
    main([vit.run.dir, str(files), "--top-k", "2"])
    printed = capsys.readouterr().out
    assert " 2. " in printed and " 3. " not in printed
    assert "/zwölf 数.png " in printed
    assert "\x1b" not in printed and r"other\x1b[2J" in printed


def test_the_attention_image_is_red_where_the_vit_attends(vit, files, digits):
    """It shows each image above the same image with the report's attention."""
    many = files / "many"
    many.mkdir()
    for number, image in enumerate(digits[0][:12]):
        Image.fromarray(image[..., 0]).save(many / f"{number:02}.png")
    main([vit.run.dir, str(many), "--attention", str(files / "looked.png")])
    shown = np.asarray(Image.open(files / "looked.png"))
    zoom = shown.shape[1] // 280  # ten in a row
    cells = rearrange(shown[::zoom, ::zoom] / 255, "(r k h) (n w) c -> k (r n) h w c", h=28, k=2, n=10)
    np.testing.assert_allclose(cells[0, :12], np.repeat(digits[0][:12], 3, axis=-1) / 255, atol=1e-6)
    assert not cells[:, 12:].any()
    # Where the digit is black, the colour shows how much each head attends there: the mean of the report's picture.
    config = dataclasses.replace(vit, data=dataclasses.replace(vit.data, test_split="test[:12]"))
    source = open_source(config.data, "test[:12]")
    report = make_task(config, source).figures(load(vit.run.dir).state, {"image": jnp.asarray(digits[0][:12])})
    expected = np.asarray(report["attention"].cells)[:, 1:].mean(axis=1)
    assert np.ptp(expected[..., 0][digits[0][:12, ..., 0] == 0]) > 0.05
    np.testing.assert_allclose(cells[1, :12], expected, atol=0.003)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{none}", "{image}"], "must be a run folder"),
        (["{vit}"], "images are missing. Add image files or folders after RUN_DIR"),
        (["{vit}", "{none}"], r"none does not exist\. Pass images"),
        (["{vit}", "{empty}"], r"empty contains no image\. Pass images"),
        (["{vit}", "{text}"], "text.png must be a complete image file"),
        (["{vit}", "{image}", "--top-k", "11"], "--top-k must be from 1 to 10, the number of classes, got 11"),
        (["{vit}", "--sample", "3", "--out", "x.png"], "--sample needs a generative model"),
        (["{vit}", "{image}", "--out", "x.png"], "--out needs an autoencoder, such as a run of train.aae, got a ViT"),
        (["{vit}", "--sample", "3"], "--sample needs a generative model, such as a run of train.aae, got a ViT"),
        (["{vit}", "{image}", "--sample", "3"], "--sample needs a generative model"),
        (["{fresh}", "{image}"], "has no checkpoint yet"),
        (["{older}", "{image}"], "images.json must describe the images"),
        (["{no_model}", "{image}"], r"config.json is not a config of configs\.vit"),
        (["{no_run}", "{image}"], r"config.json is not a config of configs\.vit"),
        (["{list}", "{image}"], "config.json must be a JSON object"),
    ],
)
def test_an_error_is_one_line(arguments, told, vit, files, tmp_path):
    places = {"none": tmp_path / "none", "vit": vit.run.dir, "image": files / "a_gray.png", "empty": tmp_path / "empty"}
    places["empty"].mkdir()
    places["text"] = tmp_path / "text.png"
    places["text"].write_text("no image")
    for name, kept in (("fresh", ("config.json", "images.json")), ("older", ("config.json",))):
        places[name] = tmp_path / name
        places[name].mkdir()
        for file in kept:
            (places[name] / file).write_bytes(Path(vit.run.dir, file).read_bytes())
    whole = json.loads(Path(vit.run.dir, "config.json").read_text())
    for name, tree in (("no_model", {**whole, "model": 3}), ("no_run", {**whole, "run": [3]}), ("list", [3])):
        places[name] = tmp_path / name
        places[name].mkdir()
        (places[name] / "config.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=told) as error:
        main([argument.format(**places) for argument in arguments])
    assert "\n" not in str(error.value)


def test_images_of_another_shape_or_type_are_refused(vit, digits):
    predictor = load(vit.run.dir)
    for wrong in (digits[0][:, :27], digits[0].astype(np.float32), digits[0][:0]):
        with pytest.raises(ValueError, match="images must be uint8"):
            predictor(wrong)


@pytest.mark.parametrize("task", ["aae", "lstm", "mha", "vit"])
def test_every_presets_config_is_restored_from_its_json(task, tmp_path):
    from train.config.tree import config_to_tree

    presets = importlib.import_module(f"configs.{task}").PRESETS
    for config in (preset.config for preset in presets.values()):
        (tmp_path / "config.json").write_text(json.dumps(config_to_tree(config)))
        assert read_config(tmp_path, type(config)) == config
