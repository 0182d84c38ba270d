"""The presets finetune and probe: their options follow from the weights, the dataset and the batch size."""

import subprocess
import sys
from pathlib import Path

import pytest
from image_files import save
from runs import lines, small, with_run

from configs.vit import PRESETS
from train.config.cli import parse
from train.dryrun.__main__ import read_task
from train.engine.init_from import resolve
from train.engine.loop import fit
from train.engine.setup import with_steps
from train.export import main as export
from train.prepare import main as prepare
from train.process.errors import UserError
from train.vit import make_task

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the run "weights" on digits of 28×28 pixels, and the dataset "shop": color images, 3 classes."""
    place = tmp_path_factory.mktemp("finetuning")
    fit(with_run(small("", workers=0), place / "weights", steps=2), make_task)
    for i, name in enumerate(["cup", "fork", "plate"]):
        for j in range(5):
            save(place / "photos" / name / f"{j}.png", size=(20 + i, 31 + j))
    prepare(["folder", "--from", str(place / "photos"), "--name", "shop", "--data-dir", str(place / "data")])
    return place


def options(place, *more):
    words = ["--init-from", str(place / "weights"), "--data.name", "shop", "--data.dir", str(place / "data")]
    return [*words, "--data.workers", "0", "--mesh.data", "1", *more]


def test_the_open_options_follow_from_the_weights_the_dataset_and_the_batch_size(place, capsys):
    config = parse("vit", PRESETS, options(place, "--run.batch-size", "48"), resolve)
    assert capsys.readouterr().err == "preset finetune, because --init-from is given without a preset\n"
    preset = PRESETS["finetune"].config
    assert (config.model.num_classes, config.data.image_size, config.data.crop) == (3, (28, 28), preset.data.crop)
    assert config.optim.learning_rate == pytest.approx(preset.optim.learning_rate * 48 / preset.run.batch_size)
    assert (config.model.embed_dim, config.model.drop_path) == (8, preset.model.drop_path)


def test_few_images_get_the_least_number_of_steps(place):
    """100 steps, unless the 20 epochs of the preset are more. There are 12 training images."""
    config = parse("vit", PRESETS, options(place, "--run.batch-size", "50"), resolve)
    assert with_steps(config, 12).run.steps == 100
    assert parse("vit", PRESETS, options(place, "--run.batch-size", "2"), resolve).run.epochs == 20
    half = parse("vit", PRESETS, options(place, "--data.train-split", "train[:6]"), resolve)
    assert with_steps(half, 6).run.steps == 100
    for length, epochs in (["--run.epochs", "20"], 20), (["--run.epochs", "3"], 3), (["--run.steps", "7"], None):
        assert parse("vit", PRESETS, options(place, *length), resolve).run.epochs == epochs


def test_jax_starts_after_the_options_have_been_read(place):
    """JAX refuses another number of devices after it has started. The weights are a file."""
    export(["--format", "timm", "--out", str(place / "weights.safetensors"), str(place / "weights")])
    words = [
        "--init-from",
        str(place / "weights.safetensors"),
        "--data.name",
        "shop",
        "--data.dir",
        str(place / "data"),
    ]
    program = f"""
import jax
from configs.vit import PRESETS
from train.config.cli import parse
from train.engine.init_from import resolve
parse("vit", PRESETS, {words}, resolve)
jax.config.update("jax_num_cpu_devices", 3)
print(jax.device_count())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "3\n", done.stderr


def test_options_of_the_user_win(place, capsys):
    given = ["--model.num-classes", "7", "--data.image-size", "14", "21", "--optim.learning-rate", "0.5"]
    config = parse("vit", PRESETS, ["finetune", *options(place, *given, "--run.batch-size", "48")], resolve)
    assert (config.model.num_classes, config.data.image_size, config.optim.learning_rate) == (7, (14, 21), 0.5)
    config = parse("vit", PRESETS, ["tiny", *options(place)], resolve)
    assert (config.model.num_classes, config.data.image_size) == (10, (28, 28))
    assert capsys.readouterr().err == ""


def test_the_preset_needs_weights_and_a_dataset(place):
    for preset in ("finetune", "probe"):
        with pytest.raises(UserError, match=r"^the presets finetune and probe need weights to start from\. Add"):
            parse("vit", PRESETS, [preset], resolve)
    with pytest.raises(UserError, match="shops"):
        parse("vit", PRESETS, options(place, "--data.name", "shops"), resolve)


def test_a_dry_run_needs_no_prepared_dataset(place, capsys):
    config, _ = read_task("vit", options(place, "--data.name", "cifar100"))
    assert config.model.num_classes == 100


@pytest.mark.parametrize(("preset", "told"), [("finetune", ""), ("probe", "only the head trains: the features of 12 ")])
def test_a_newcomers_command_trains_and_resumes(preset, told, place, capsys):
    folder = ["--run.dir", str(place / f"{preset}-run")]
    words = [preset, *options(place, *folder, "--run.epochs", "3", "--run.batch-size", "6")]
    config = parse("vit", PRESETS, words, resolve)
    fit(config, make_task)
    assert [line["step"] for line in lines(config) if line["split"] == "test"] == [6]
    out = capsys.readouterr().out
    assert "new head with 3 classes (the file has 10)" in out and told in out
    fit(parse("vit", PRESETS, words, resolve), make_task)
    assert "Training already finished at step 6" in capsys.readouterr().out
