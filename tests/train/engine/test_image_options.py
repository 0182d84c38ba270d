"""A run from pretrained weights prepares images as the weights' library does, and keeps to it when it resumes."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from models import run
from PIL import Image

from configs.base import Data
from configs.vit import PRESETS, Config
from train import export, prepare
from train.config.cli import parse
from train.data import open_source
from train.data.source import AbstractSource
from train.engine import init_from as pretrained
from train.engine.image_options import run_spec, with_spec
from train.engine.loop import fit
from train.predict import load
from train.process.errors import UserError
from train.report.reproduce import commands
from train.run.files import read_config_tree
from train.run.folder import ImageInfo
from train.vit import make_task
from w2jax.convert import load as load_weights
from w2jax.image_spec import ImageSpec

TIMM = Path(__file__).parents[2] / "fixtures/predict/timm"  # of 40×40 pixels, with ImageNet's normalization
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Returns a folder with ten photographs of different sizes and the dataset "photos" that is prepared from them."""
    folder = tmp_path_factory.mktemp("photos")
    photo = Image.open(TIMM / "photo.jpg")
    for split, count in (("train", 5), ("test", 3)):
        for number, label in enumerate("abcde"):
            (folder / split / label).mkdir(parents=True)
            photo.rotate(9 * number).crop((0, 0, 50 + count * number, 59)).save(folder / split / label / "0.png")
    prepare.main(["folder", "--from", str(folder), "--name", "photos", "--data-dir", str(folder / "prepared")])
    return folder


def parsed(photos, *options, path=TIMM):
    steps = ["--run.steps", "2", "--run.batch-size", "5", "--run.eval-every", "2", "--run.save-every", "1"]
    data = [
        "--data.name",
        "photos",
        "--data.dir",
        str(photos / "prepared"),
        "--model.num-classes",
        "5",
        "--mesh.data",
        "1",
    ]
    arguments = ["tiny", "--init-from", str(path), *data, *steps, "--run.compilation-cache", "off"]
    return parse("vit", PRESETS, [*arguments, *map(str, options)], pretrained.resolve)


def nothing(shape, classes=5):
    return AbstractSource("images", "train", shape, classes, list("abcde")[:classes], count=1)


def test_the_size_the_resizing_and_the_normalization_are_those_of_the_weights(photos):
    config = parsed(photos)
    assert (config.data.image_size, config.data.resize, config.data.interpolation) == ((40, 40), 44, "bicubic")
    assert config.normalize == "imagenet"
    note = make_task(config, nothing((40, 40, 3))).initial_params().note
    assert "; normalization imagenet; images resized to shorter side 44 (bicubic), cut to 40×40; position" in note


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data.image-size", "80", "80"], ((80, 80), 88, "bicubic", "imagenet")),
        (["--data.image-size", "40", "80"], ((40, 80), (44, 88), "bicubic", "imagenet")),
        (["--data.resize", "50"], ((40, 40), 50, "bicubic", "imagenet")),
        (["--data.resize", "40", "48"], ((40, 40), (40, 48), "bicubic", "imagenet")),
        (["--data.interpolation", "bilinear"], ((40, 40), 44, "bilinear", "imagenet")),
        (["--normalize", "half"], ((40, 40), 44, "bicubic", "half")),
        (["--normalize", "0.1", "0.2", "0.3", "1", "2", "3"], ((40, 40), 44, "bicubic", (0.1, 0.2, 0.3, 1, 2, 3))),
        (["--data.name", "cifar10"], (None, None, None, "imagenet")),  # its images have one size
        (["--data.name", "cifar10", "--data.image-size", "40", "40"], ((40, 40), 44, "bicubic", "imagenet")),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_options_of_the_user_win(options, expected, photos):
    config = parsed(photos, *options)
    data = config.data
    assert (data.image_size, data.resize, data.interpolation, config.normalize) == expected


def test_without_weights_nothing_changes(photos):
    config = parse("vit", PRESETS, ["tiny"], pretrained.resolve)
    assert config.data == Data() and config.normalize == "auto"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_gives_the_logits_of_its_library_for_gray_images_too(channels, photos):
    """A gray image is the image whose red, green and blue are the gray value."""
    task = make_task(parsed(photos), nothing((40, 40, channels)))
    initial = task.initial_params()
    state = jax.jit(task.init)(initial.params)
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, channels), np.uint8)
    module, variables = load_weights(TIMM)
    logits, _ = run(module, variables, (np.repeat(images, 3 // channels, axis=-1) / np.float32(255) - MEAN) / STD)
    expected = jax.nn.softmax(logits)
    assert np.ptp(expected, axis=0).max() > 0.02
    np.testing.assert_allclose(jax.jit(task.probabilities)(state, {"image": images}), expected, atol=1e-5)
    assert ("; each gray value is used as R, G and B" in initial.note) == (channels == 1)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    config = parsed(photos, "--run.dir", tmp_path_factory.mktemp("trained") / "run")
    return config, fit(config, make_task)


def test_the_test_images_and_predict_are_prepared_as_the_library_does(trained, photos):
    config, _ = trained
    spec = ImageSpec((40, 40), 44, "bicubic")
    source = open_source(config.data, "test")
    predictor = load(config.run.dir)
    files = sorted(photos.glob("test/*/0.png"))
    assert len(files) == 5 and source.image_shape == (40, 40, 3)
    expected = {image.tobytes() for image in spec.resize_images([str(file) for file in files])}
    assert {image.tobytes() for image in source.gather(np.arange(5))["image"]} == expected
    assert {image.tobytes() for image in predictor.read(files)} == expected
    last = json.loads(Path(config.run.dir, "metrics.jsonl").read_text().splitlines()[-1])
    examples = source.gather(np.arange(5))
    probabilities = predictor(examples["image"])[np.arange(5), examples["label"]]
    assert last["loss"] == pytest.approx(-np.log(probabilities).mean(), rel=1e-5)


def test_the_printed_command_has_the_values_that_were_taken_over(trained):
    config, _ = trained
    (command,) = commands(read_config_tree(Path(config.run.dir)))
    again = parse("vit", PRESETS, command.split()[3:], pretrained.resolve)
    assert (again.data, again.normalize) == (config.data, config.normalize)
    for option in (
        "--normalize imagenet",
        "--data.resize 44",
        "--data.interpolation bicubic",
        "--data.image-size 40 40",
    ):
        assert option in command


def test_the_images_of_a_run_that_resumes_are_prepared_as_before_also_if_the_weights_are_gone(
    trained, photos, tmp_path
):
    config, _ = trained
    tree = json.loads(Path(config.run.dir, "config.json").read_text())
    folder = shutil.copytree(config.run.dir, tmp_path / "run")
    (folder / "config.json").write_text(json.dumps(tree | {"init_from": str(tmp_path / "gone")}))
    found = parsed(photos, "--run.dir", folder, path=tmp_path / "gone")
    assert (found.data, found.normalize, found.model) == (config.data, config.normalize, config.model)
    arguments = ["--init-from", str(tmp_path / "gone"), "--data.name", "photos", "--data.dir", str(photos / "prepared")]
    finetune = parse("vit", PRESETS, [*arguments, "--run.dir", str(folder)], pretrained.resolve)
    assert finetune.model.clone(drop_path=0.0) == config.model and finetune.data.image_size == (40, 40)


def test_a_run_without_a_checkpoint_refuses_weights_whose_images_are_now_described_otherwise(trained, photos, tmp_path):
    config, _ = trained
    changed = shutil.copytree(TIMM, tmp_path / "timm")
    described = json.loads((changed / "config.json").read_text())
    described["pretrained_cfg"]["mean"] = [0.5, 0.4, 0.3]
    (changed / "config.json").write_text(json.dumps(described))
    tree = json.loads(Path(config.run.dir, "config.json").read_text())
    folder = shutil.copytree(config.run.dir, tmp_path / "run")
    (folder / "config.json").write_text(json.dumps(tree | {"init_from": str(changed)}))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match=r"other options: normalize was imagenet, now \[0\.5, 0\.4, 0\.3, 0\.229"):
        fit(parsed(photos, "--run.dir", folder, path=changed), make_task)


@pytest.mark.slow
def test_a_run_of_an_older_version_resumes_with_its_normalization_and_resizing(photos, tmp_path, monkeypatch):
    """Bit for bit: older versions had no options for them."""
    old = ["--data.image-size", "40", "40", "--run.dir"]
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "describe_spec", lambda path, **fields: None)
        state = fit(parsed(photos, *old, tmp_path / "a"), make_task)
    folder = shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(folder / "checkpoints" / "2")
    tree = json.loads((folder / "config.json").read_text())
    del tree["normalize"], tree["data"]["resize"], tree["data"]["interpolation"]
    (folder / "config.json").write_text(json.dumps(tree))
    again = fit(parsed(photos, *old, folder), make_task)
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


@pytest.mark.parametrize("form", [None, "timm", "huggingface", "torch"])
def test_exported_weights_give_the_probabilities_of_the_run(form, trained, photos, tmp_path):
    """Their files say how images are prepared, and what the classes are called."""
    run_dir, files = trained[0].run.dir, sorted(photos.glob("test/*/0.png"))
    export.main([run_dir, "--out", str(tmp_path / "out"), *(["--format", form] if form else [])])
    exported, of_run = load(tmp_path / "out"), load(run_dir)
    assert exported.label_names == of_run.label_names == list("abcde")
    np.testing.assert_array_equal(exported.read(files), of_run.read(files))
    images = of_run.read(files)
    np.testing.assert_allclose(exported(images), of_run(images), atol=1e-6)
    child = parsed(photos, path=tmp_path / "out")
    assert (child.data, child.normalize) == (trained[0].data, "imagenet")


def test_a_run_that_starts_from_a_run_prepares_images_like_it(trained, photos):
    config, _ = trained
    child = parsed(photos, path=config.run.dir)
    assert (child.data, child.normalize) == (config.data, config.normalize)


@pytest.mark.parametrize(
    ("data", "resize"), [(Data(), (28, 21)), (Data(crop=0.1), 24), (Data(crop=0.1, resize=(30, 40)), (30, 40))]
)
def test_a_runs_options_are_described_as_a_spec(data, resize):
    info = ImageInfo((28, 21, 1), ["a", "ü"])
    spec = run_spec(Config(data=data, normalize="none"), info)
    assert spec == ImageSpec((28, 21), resize, "bilinear", (0.0,), (1.0,), ("a", "ü"))
    assert run_spec(Config(normalize="clip"), info).channels == 3


def test_a_stretching_spec_is_scaled_in_both_directions():
    config = with_spec(Config(Data("cifar10", image_size=(20, 60))), ImageSpec((40, 30), (50, 45)))
    assert config.data.resize == (25, 90) and config.normalize == "half"


def test_a_description_that_is_not_understood_needs_a_normalization_of_the_user(photos, tmp_path):
    folder = shutil.copytree(TIMM, tmp_path / "timm")
    described = json.loads((folder / "config.json").read_text())
    described["pretrained_cfg"]["crop_mode"] = "border"
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"^--normalize and --data.image-size must be .* crop_mode must be .*Add "):
        parsed(photos, "--data.image-size", "40", "40", path=folder)
    config = parsed(photos, "--data.image-size", "40", "40", "--normalize", "clip", path=folder)
    assert config.normalize == "clip" and config.data.resize is None
    note = make_task(config, nothing((40, 40, 3))).initial_params().note
    assert "how to prepare images is unknown, because crop_mode must be" in note and "; normalization clip" in note


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"normalize": "odd"}, "--normalize must be auto, "),
        ({"normalize": [0.5, 0]}, "--normalize must be auto, "),
        ({"data": {"resize": 10**6}}, "--data.resize must be"),
    ],
    ids=str,
)
def test_wrong_values_in_the_config_of_a_run_are_refused(change, told, trained, photos, tmp_path):
    folder = shutil.copytree(trained[0].run.dir, tmp_path / "run")
    tree = json.loads((folder / "config.json").read_text())
    for name, value in change.items():
        tree[name] = tree[name] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(tree))
    for read in (load, lambda path: parsed(photos, path=path)):
        with pytest.raises(UserError, match=told) as error:
            read(folder)
        assert "\n" not in str(error.value)
