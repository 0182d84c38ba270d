"""An exported model gives, in a program that has jax alone, what the run's predictor gives."""

import dataclasses
import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs.base import Mesh
from train.errors import UserError
from train.export import export_run
from train.loop import fit
from train.predict import load
from w2jax import ViT, convert

# Isolated: neither the repository nor what lies beside it can be imported.
PROGRAM = """
import sys
import numpy as np
import jax
from jax import export
images = np.load(sys.argv[2])
model = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
parts = [model.call(images[:1]), model.call(images[1:4]), model.call(images[4:])]
assert not {"flax", "w2jax", "train"} & set(sys.modules)
assert set(model.platforms) == {"cpu", "cuda", "tpu"}
np.save(sys.argv[3], np.concatenate(parts))
"""
MODELS = {
    "vit": {"model": ViT(10, 7, 16, 2, 2, 16)},
    "vit_scanned": {"model": ViT(10, 7, 16, 2, 2, 16, pool="map", scan_layers=True)},
    "lstm": {},
    "mha": {},
    "aae": {},
}


@pytest.fixture(scope="module", params=MODELS)
def run(request, tmp_path_factory):
    """A run of one step, exported."""
    task = request.param.split("_")[0]
    tiny = importlib.import_module(f"configs.{task}").PRESETS["tiny"]
    folder = tmp_path_factory.mktemp(request.param)
    config = dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, train_split="train[:40]", test_split="test[:24]"),
        run=dataclasses.replace(tiny.run, steps=1, batch_size=10, dir=str(folder / "run")),
        mesh=Mesh(1, 1, 1),
        **MODELS[request.param],
        **({"validation_split": "train[40:60]", "metric_examples": 20} if task == "aae" else {}),
    )
    fit(config, importlib.import_module(f"train.{task}").make_task)
    export_run(folder / "run", folder / "out" / "deep")
    return folder


def test_a_program_with_jax_alone_computes_what_the_predictor_does_for_any_batch(run, tmp_path):
    predictor = load(run / "run")
    images = np.random.default_rng(0).integers(0, 256, (11, *predictor.image_shape), np.uint8)
    np.save(tmp_path / "images.npy", images)
    words = [run / "out" / "deep" / "model.stablehlo", tmp_path / "images.npy", tmp_path / "out.npy"]
    subprocess.run([sys.executable, "-I", "-c", PROGRAM, *map(str, words)], cwd=tmp_path, check=True)
    found, expected = np.load(tmp_path / "out.npy"), predictor(images)
    assert found.shape == expected.shape and expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_weights_lie_beside_it_by_their_names_with_the_shape_of_the_images(run):
    predictor, out = load(run / "run"), run / "out" / "deep"
    module, variables = convert.load(out / "model.safetensors")
    assert module == predictor.config.model
    jax.tree.map(np.testing.assert_array_equal, variables["params"], predictor.state.params)
    seen = json.loads((out / "images.json").read_text())
    assert tuple(seen["image_shape"]) == predictor.image_shape and seen["label_names"] == predictor.label_names


def test_what_cannot_be_written_is_told_in_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written: .*; choose another --out"):
        export_run(run / "run", tmp_path / "file")
