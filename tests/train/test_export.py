"""An exported model gives the predictor's outputs in a program that only has jax."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import random_variables
from predictors import CASES, GRAY, VIT, one_step_run, preset, untrained

from train import export
from train.engine.checkpoint import Checkpoints
from train.predict import load, make_predictor
from train.process.errors import UserError
from train.run.folder import ImageInfo, read_image_info
from train.task import State
from w2jax import convert
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.serialize import module_to_json

FIXTURES = Path(__file__).parents[1] / "fixtures"

# For every exported model in a folder: its outputs for one image, for the next three, and for the rest.
PROGRAM = """
import pathlib, sys
import numpy as np
import jax.export
for folder in pathlib.Path(sys.argv[1]).iterdir():
    images = np.load(folder / "images.npy")
    model = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert set(model.platforms) == {"cpu", "cuda", "tpu"}
    np.save(folder / "found.npy", np.concatenate([model.call(x) for x in (images[:1], images[1:4], images[4:])]))
assert not {"flax", "w2jax", "train"} & set(sys.modules)
"""


def write_run(folder, module, variables):
    """Writes the parts of a run folder that contain its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": module_to_json(module)}))
    state = State(jnp.asarray(3), variables["params"], optax.sgd(1.0).init(variables["params"]), None, None)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(3, state, {"seconds": 1.0})
    return folder


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Returns, for each case, (its predictor, images, the outputs of a program that only has jax)."""
    folder, made = tmp_path_factory.mktemp("exported"), {}
    for case in CASES:
        (folder / case).mkdir()
        predictor = untrained(case)
        images = np.random.default_rng(0).integers(0, 256, (9, *predictor.image_shape), np.uint8)
        np.save(folder / case / "images.npy", images)
        (folder / case / "model.stablehlo").write_bytes(export.stablehlo(predictor))
        made[case] = predictor, images
    # Isolated mode: neither the repository nor files next to the program can be imported.
    subprocess.run([sys.executable, "-I", "-c", PROGRAM, str(folder)], cwd=folder, check=True)
    return {case: (*pair, np.load(folder / case / "found.npy")) for case, pair in made.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_exported_program_gives_the_predictors_outputs(case, computed):
    """It only needs jax, and accepts any batch size."""
    predictor, images, found = computed[case]
    expected = predictor(images)
    assert found.shape == expected.shape and found.dtype == expected.dtype and expected.std(axis=0).max() > 1e-3
    near = {"rtol": 0.02, "atol": 0.005} if "bfloat16" in case else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found, expected, **near)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return one_step_run(tmp_path_factory.mktemp("vit") / "run")


@pytest.mark.slow
def test_the_code_that_the_command_prints_gives_the_predictors_output(run, tmp_path, capfd):
    export.main([str(run), "--out", str(tmp_path / "new" / "it's here")])
    lines = capfd.readouterr().out.split("\n\n")[-1]
    printed = subprocess.run([sys.executable, "-I", "-c", lines], cwd="/", check=True, capture_output=True, text=True)
    predictor = load(run)
    found = np.array(printed.stdout.strip(" []\n").split(), float)
    expected = predictor(np.zeros((1, *predictor.image_shape), np.uint8))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_export_writes_weights_and_the_image_shape_next_to_it(run):
    """By default, into the run folder."""
    export.main([str(run)])
    predictor = load(run)
    module, variables = convert.load(run / "exported" / "model.safetensors")
    assert module == predictor.config.model
    jax.tree.map(np.testing.assert_array_equal, variables["params"], predictor.state.params)
    assert read_image_info(run / "exported") == read_image_info(run)


def test_the_weights_include_statistics_of_batch_norm(monkeypatch, run, tmp_path):
    predictor = untrained("aae_semi")
    monkeypatch.setattr(export, "run_predictor", lambda *_: predictor)
    export.export_run(run, tmp_path)
    _, variables = convert.load(tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], predictor.state.batch_stats)


def test_a_run_folder_may_be_exported_into_itself(run):
    """Its images.json keeps what only a run has, the fingerprints of the data."""
    before = (run / "images.json").read_bytes()
    export.export_run(run, run)
    assert (run / "images.json").read_bytes() == before and (run / "model.stablehlo").stat().st_size > 0


@pytest.mark.parametrize(
    ("form", "name"),
    [("torch", "torch.safetensors"), ("google", "google.npz"), ("huggingface", "huggingface/model.safetensors")],
)
def test_with_a_format_only_the_weights_are_written(form, name, tmp_path, capfd):
    module = VIT.clone(depth=1, pool="gap", class_token=False) if form == "google" else VIT.clone(depth=1)
    variables = random_variables(module, np.zeros((1, *GRAY), np.float32))
    run = write_run(tmp_path / "run", module, variables)
    names = [f"name {i}" for i in range(module.num_classes)]
    (run / "images.json").write_text(json.dumps({"image_shape": GRAY, "label_names": names}))
    export.main([str(run), "--format", form])
    written = sorted(path.relative_to(run / "exported") for path in (run / "exported").rglob("*") if path.is_file())
    described = ["huggingface/config.json", "huggingface/preprocessor_config.json"] if form == "huggingface" else []
    assert written == sorted(map(Path, [name, *described]))
    if form == "huggingface":
        config = json.loads((run / "exported" / "huggingface" / "config.json").read_text())
        assert list(config["id2label"].values()) == names
    out = capfd.readouterr().out
    assert "the parameters of step 3" in out and str(run / "exported") in out
    found, weights = convert.load(run / "exported" / name)
    assert found == module
    jax.tree.map(np.testing.assert_array_equal, weights, variables)


def test_weights_are_exported_to_the_given_path(tmp_path, capfd):
    """The program prints the call that builds the model in timm."""
    run = write_run(tmp_path / "run", VIT, random_variables(VIT, np.zeros((1, *GRAY), np.float32)))
    export.main([str(run), "--format", "timm", "--out", str(tmp_path / "new" / "vit.pt")])
    assert (tmp_path / "new" / "vit.pt").is_file() and not (run / "exported").exists()
    assert "VisionTransformer(img_size=(28, 28), patch_size=7, in_chans=1" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "name", "content"),
    [
        (["--format", "timm"], "model.safetensors", None),
        (["--format", "timm"], "config.json", b'{"architecture": "vit"}'),
        ([], "model.safetensors", None),
        ([], "model.safetensors", b"broken"),
        ([], "model.stablehlo", b"program"),
        ([], "images.json", b"{}"),
    ],
)
def test_a_file_of_someone_else_is_not_overwritten(options, name, content, run, tmp_path, capfd):
    if options:  # The run of the autoencoder has no timm format.
        run = write_run(tmp_path / "run", VIT, random_variables(VIT, np.zeros((1, *GRAY), np.float32)))
    out = tmp_path / "out"
    command = [str(run), *options, "--out", str(out)]
    out.mkdir()
    content = content or (FIXTURES / "vit/timm_cls/model.safetensors").read_bytes()
    (out / name).write_bytes(content)
    with pytest.raises(UserError, match=f"out/{name} exists, and nothing in it shows .*, or replace it with --overwr"):
        export.main(command)
    assert {path: path.read_bytes() for path in out.iterdir()} == {out / name: content}
    export.main([*command, "--overwrite"])
    assert (out / name).read_bytes() != content
    export.main(command)  # Its own export may be replaced.


@pytest.mark.parametrize("options", [[], ["--format", "torch"], ["--format", "huggingface"], ["--format", "onnx"]])
def test_another_run_folder_is_not_overwritten(options, run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    before = (other / "images.json").read_bytes(), (other / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"--out must not be a run folder, got .*other\. Choose another --out"):
        export.main([str(run), *options, "--out", str(other), "--overwrite"])
    assert before == ((other / "images.json").read_bytes(), (other / "config.json").read_bytes())


@pytest.mark.parametrize("options", [[], ["--format", "torch"], ["--format", "huggingface"], ["--format", "onnx"]])
def test_nothing_is_written_through_a_link_in_the_run_folder(options, run, tmp_path, capfd):
    copy = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("exported")))
    (tmp_path / "outside").mkdir()
    (copy / "exported").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"run/exported.* must be a folder inside .*/run, got a symbolic link"):
        export.main([str(copy), *options])
    assert not any((tmp_path / "outside").iterdir())


def test_a_linked_file_is_not_copied(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "images.json").rename(tmp_path / "secret")
    (copy / "images.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"images\.json must be a regular file, got a symbolic link"):
        export.main([str(copy), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{weights}", "--format", "timm"], "must be a run folder .*, got .*Add --format onnx, or convert the weights"),
        (["{weights}", "--out", "out"], "must be a run folder .*, got .*Add --format onnx, or convert the weights"),
        (["{run}", "--num-heads", "3"], "^--num-heads must be left out for a run, got .*They are for weights"),
        (["{run}", "--format", "timm"], 'the format "timm" cannot store .* of this ViT'),
        (["{run}", "--format", "keras"], 'must be one of timm, .*, got "keras"'),
        (["{run}", "--format", "torch", "--out", "{file}/deeper.npz"], "cannot be written: .* Choose another --out"),
        (["{run}", "--format", "torch", "--out", "a.txt"], "got the suffix .txt"),
        (["{run}", "--format", "onnx", "--out", "a.txt"], r"--out must be a folder or a \.onnx file, got a\.txt"),
        (["{fresh}", "--format", "torch"], "has no checkpoint yet"),
        (["{file}", "--format", "torch"], "must be a run folder without --format onnx, got "),
        (["{run}", "--out", "{file}"], r"cannot be written: .*\. Choose another --out"),
        (["{run}", "--out", "{file}/deeper"], r"cannot be written: .*\. Choose another --out"),
        (["{fresh}"], "has no checkpoint yet"),
        (["{file}"], "must be a run folder without --format onnx, got "),
    ],
)
def test_an_error_is_one_line(arguments, told, run, tmp_path):
    (tmp_path / "file").touch()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for kept in ("config.json", "images.json"):
        (fresh / kept).write_bytes((run / kept).read_bytes())
    weights = Path(__file__).parents[1] / "fixtures/predict/timm"
    places = {"run": run, "file": tmp_path / "file", "fresh": fresh, "weights": weights}
    with pytest.raises(UserError, match=told) as error:
        export.main([argument.format(**places) for argument in arguments])
    assert "\n" not in str(error.value)


def test_a_model_too_large_for_the_format_is_refused_before_exporting(monkeypatch):
    predictor = untrained("mha")
    held = sum(x.nbytes for x in jax.tree.leaves(predictor.state.params))
    monkeypatch.setattr(export, "MOST_BYTES", held)
    assert export.stablehlo(predictor)
    monkeypatch.setattr(export, "MOST_BYTES", held - 1)
    monkeypatch.setattr("jax.export.export", None)
    with pytest.raises(
        UserError,
        match=r"must have less than 2 GiB of parameters .*GiB\. Run python -m train.export RUN_DIR --format torch",
    ):
        export.stablehlo(predictor)


def test_without_flatbuffers_one_line_says_what_to_install(run, tmp_path):
    program = "import sys; sys.modules['flatbuffers'] = None; from train.export import main, run_main; run_main(main)"
    command = [sys.executable, "-c", program, str(run), "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 2
    assert (
        ended.stderr
        == "error: exporting needs flatbuffers, which is not installed. Install it: pip install flatbuffers\n"
    )


@pytest.mark.parametrize("package", ["jax2onnx", "onnxruntime"])
def test_without_the_onnx_packages_one_line_says_what_to_install(package, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", types.ModuleType("jax2onnx"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        export.main([str(run), "--format", "onnx", "--out", str(tmp_path / "out")])
    assert re.fullmatch(
        rf"--format onnx needs the packages jax2onnx and onnxruntime \(.*{package}.*\)\. Run: .*", str(error.value)
    )
    assert str(error.value).endswith('Run: pip install -e ".[onnx]"')
    assert not (tmp_path / "out").exists()


def test_a_decoder_conditioned_on_labels_is_refused(tmp_path):
    model = AAE(
        AAEEncoder(3, hidden_sizes=(8,)), AAEDecoder(GRAY, hidden_sizes=(8,)), AAEDiscriminator(hidden_sizes=(8,))
    )
    config = dataclasses.replace(preset("aae", "supervised"), model=model)
    predictor = make_predictor(config, ImageInfo(GRAY, list("0123456789")), {"params": {}}, "none")
    with pytest.raises(UserError, match="cannot run on images alone"):
        export.stablehlo(predictor)
