"""An exported ONNX file gives the predictor's outputs in ONNX Runtime. A file that does not is never written."""

import json
from pathlib import Path

import numpy as np
import pytest
from predictors import CASES, one_step_run, untrained

from train import export, onnx_program
from train.predict import load
from train.process.errors import UserError

NEEDED = 'needs the packages of pip install -e ".[onnx]"'
jax2onnx, onnx, onnxruntime = (pytest.importorskip(name, reason=NEEDED) for name in ("jax2onnx", "onnx", "onnxruntime"))
TIMM = Path(__file__).parents[1] / "fixtures/predict/timm"
QUICK = ("lstm", "aae_semi")  # The others are slow.


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_file_gives_the_predictors_outputs(case, capfd):
    """With a batch size that the check did not use, and without a warning of ONNX Runtime."""
    predictor = untrained(case)
    program = onnx_program.onnx_program(predictor)
    model = onnxruntime.InferenceSession(program.content)
    images = np.random.default_rng(0).integers(0, 256, (5, *predictor.image_shape), np.uint8)
    (found,) = model.run(None, {"images": images})
    expected = predictor(images)
    assert found.shape == expected.shape and found.dtype == np.float32 and expected.std(axis=0).max() > 1e-3
    near = {"rtol": 0.02, "atol": 0.005} if "bfloat16" in case else {"rtol": 1e-4, "atol": 2e-5}
    np.testing.assert_allclose(found, expected, **near)
    assert "onnxruntime" not in capfd.readouterr().err
    name = "reconstructions" if "aae" in case else "probabilities"
    (input,), (output,) = model.get_inputs(), model.get_outputs()
    assert (input.name, input.type, input.shape) == ("images", "tensor(uint8)", ["batch", *predictor.image_shape])
    assert (output.name, output.type, output.shape) == (name, "tensor(float)", ["batch", *expected.shape[1:]])
    told = model.get_modelmeta().custom_metadata_map
    assert told == program.metadata and told["task"] == case.split("_")[0] and f"output_{name}" in told
    assert json.loads(told.get("class_names", "null")) == (None if "aae" in case else list("0123456789"))


def test_pretrained_weights_keep_their_preparation_and_class_names():
    predictor = load(TIMM)
    program = onnx_program.onnx_program(predictor)
    model, told = onnxruntime.InferenceSession(program.content), program.metadata
    images = predictor.read([TIMM / "photo.jpg", TIMM / "gray.png"])
    np.testing.assert_allclose(model.run(["probabilities"], {"images": images})[0], predictor(images), atol=1e-5)
    assert json.loads(told["class_names"]) == ["ant", "bee", "cow", "dog", "elk"]
    assert told["preprocessing"] == (
        "images are resized to shorter side 44 (bicubic), and the center of 40×40 is cut out. "
        "The graph itself normalizes the pixels: do not scale them"
    )
    assert told["input_images"].startswith("uint8 [batch, 40, 40, 3], pixels from 0 to 255; ")
    assert told["input_images"].endswith("channel (red, green, blue)")
    assert told["opset"] == str(onnx.load_model_from_string(program.content).opset_import[0].version)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return one_step_run(tmp_path_factory.mktemp("vit") / "run")


@pytest.mark.slow
def test_the_command_writes_the_file_and_prints_code_that_runs_it(run, capfd):
    export.main([str(run), "--format", "onnx"])
    printed, errors = capfd.readouterr()
    assert not errors and [path.name for path in (run / "exported").iterdir()] == ["model.onnx"]
    exec(printed.split("\n\n")[-1], {})
    black = np.zeros((1, 28, 28, 1), np.uint8)
    found = np.array(capfd.readouterr().out.strip(" []\n").split(), float)
    np.testing.assert_allclose(found, load(run)(black)[0], rtol=1e-4)


@pytest.mark.slow
def test_the_command_writes_pretrained_weights_too(tmp_path, capfd):
    path = tmp_path / "vit.onnx"
    export.main([str(TIMM), "--format", "onnx", "--out", str(path)])
    exec(capfd.readouterr().out.split("\n\n")[-1], {})
    found = np.array(capfd.readouterr().out.strip(" []\n").split(), float)
    np.testing.assert_allclose(found, load(TIMM)(np.zeros((1, 40, 40, 3), np.uint8))[0], rtol=1e-4)
    with pytest.raises(UserError, match=r"^--out is required for weights, got only .*\. Add --out FILE\.onnx$"):
        export.main([str(TIMM), "--format", "onnx"])


@pytest.mark.slow
def test_only_a_file_of_w2jax_is_replaced(run, tmp_path, capfd):
    """The file of another program remains without --overwrite."""
    path = tmp_path / "vit.onnx"
    command = [str(run), "--format", "onnx", "--out", str(path)]
    other = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []), producer_name="w2tf")
    path.write_bytes(before := other.SerializeToString())
    with pytest.raises(UserError, match=r"vit\.onnx exists, and nothing in it shows that w2jax wrote it"):
        export.main(command)
    assert path.read_bytes() == before
    export.main([*command, "--overwrite"])
    export.main(command)
    assert onnx.load(path).producer_name == "w2jax"


def test_a_path_that_cannot_be_written_is_one_line(run, tmp_path, monkeypatch):
    program = onnx_program.OnnxProgram(b"content", "probabilities", {}, 0.0)
    monkeypatch.setattr(export, "onnx_program", lambda _: program)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written: .*\. Choose another --out") as error:
        export.main([str(run), "--format", "onnx", "--out", str(tmp_path / "file/deeper")])
    assert "\n" not in str(error.value)


def test_a_file_with_a_wrong_weight_is_not_written(run, tmp_path, monkeypatch):
    """The largest weights are those of a matrix. They become one percent larger."""

    def serialize(model, metadata, before=onnx_program._serialize):
        broken = onnx.load_model_from_string(before(model, metadata))
        weights = max(broken.graph.initializer, key=lambda x: len(x.raw_data))
        weights.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(weights), weights.name))
        return broken.SerializeToString()

    monkeypatch.setattr(onnx_program, "_serialize", serialize)
    monkeypatch.setattr(export, "load_model", lambda _: untrained("aae_semi"))
    with pytest.raises(
        UserError,
        match=r"the outputs of the ONNX file must equal the model's within 0\.0001, got a difference of 0\.\d",
    ) as error:
        export.main([str(run), "--format", "onnx", "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (lambda count: np.full((count, 10), np.nan), "a difference of nan"),
        (lambda count: np.zeros((count, 3)), r"must have the shape \(1, 10\), got \(1, 3\)"),
    ],
)
def test_wrong_outputs_are_an_error(outputs, told, monkeypatch):
    monkeypatch.setattr(onnx_program, "_run", lambda _, images: outputs(len(images)))
    with pytest.raises(UserError, match=told):
        onnx_program.check(b"", untrained("mha"))


def test_what_a_library_cannot_do_is_one_line(monkeypatch):
    predictor = untrained("aae_semi")
    with pytest.raises(
        UserError, match=r"ONNX Runtime cannot run the file of jax2onnx: .*\. No file was written"
    ) as error:
        onnx_program.check(b"no ONNX file", predictor)
    assert "\n" not in str(error.value)

    def fail(*_, **options):
        raise NotImplementedError("no plugin for 'x'\nmore")

    monkeypatch.setattr(jax2onnx, "to_onnx", fail)
    with pytest.raises(
        UserError, match=r"jax2onnx cannot convert this model: NotImplementedError: no plugin for 'x' \(jax2onnx \d"
    ) as error:
        onnx_program.onnx_program(predictor)
    assert "\n" not in str(error.value)
