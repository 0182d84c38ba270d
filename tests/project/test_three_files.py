"""A new model needs three files: all programs then know it, and no other file changes. Two models are tested.

Their files are copied into a temporary copy of the project, as a contributor would add them (CONTRIBUTING.md).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "three_files"
pytestmark = pytest.mark.slow

LOAD = """
import numpy as np
from w2jax import convert
module, variables = convert.load("out/model.safetensors")
import train.predict
predictor = train.predict.load("runs/mine")
image = np.full((1, 28, 28, 1), 77, np.uint8)
inputs = 2 * (image / 255.0) - 1 if predictor.classifies else image / 255.0
result = module.apply(variables, inputs.astype(np.float32))
if predictor.classifies:
    result = np.exp(result[0]) / np.exp(result[0]).sum()
np.testing.assert_allclose(result, predictor(image), rtol=1e-4, atol=1e-6)
"""


class Tree:
    """A copy of the project with three more files."""

    def __init__(self, folder, kind, task):
        self.folder, self.task = folder, task
        for package in ("w2jax", "configs", "train"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        added = list((FIXTURES / kind).rglob("*.py"))
        assert len(added) == 3
        for path in added:
            target = folder / path.relative_to(FIXTURES / kind)
            assert not target.exists()
            shutil.copy(path, target)

    def run(self, *command, devices=1, status=0):
        """Runs `python COMMAND` in the tree and returns its output."""
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "COLUMNS": "200"}
        result = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == status, result.stderr
        return result.stdout + result.stderr

    def metrics(self, run):
        return [json.loads(line) for line in (self.folder / "runs" / run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=[("classifier", "mixer"), ("autoencoder", "bottleneck")], ids=lambda p: p[0])
def tree(request, tmp_path_factory):
    kind, task = request.param
    tree = Tree(tmp_path_factory.mktemp(task), kind, task)
    tree.run("-m", f"train.{task}", "tiny", "--run.dir", "runs/mine")
    return tree


def test_help_and_completion_know_the_new_task(tree):
    told = tree.run("-m", f"train.{tree.task}", "--help")
    assert "to see that it works" in told and told.splitlines()[1] == f"    python -m train.{tree.task} tiny"
    script = tree.run("-m", "train.completion", "bash")
    assert f"train.{tree.task}) echo tiny sample ;;" in script
    assert f'Did you mean "{tree.task}"?' in tree.run(
        "-m", "train.dryrun", f"{tree.task}x", "--topology", "cpu:1", status=2
    )


def test_a_run_with_a_damaged_last_checkpoint_resumes_bit_for_bit(tree):
    before = tree.metrics("mine")
    shutil.copytree(tree.folder / "runs" / "mine", tree.folder / "runs" / "again")
    shutil.rmtree(tree.folder / "runs" / "again" / "checkpoints" / "60")
    printed = tree.run("-m", f"train.{tree.task}", "tiny", "--run.dir", "runs/again")
    assert "Resumed from step 30 " in printed
    assert tree.metrics("again") == before


def test_a_mesh_gives_the_losses_of_one_device(tree):
    options = ["tiny", "--run.dir", "runs/mesh", "--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    assert "8 CPU devices (mesh: data 2, fsdp 2, tensor 2)" in tree.run("-m", f"train.{tree.task}", *options, devices=8)
    for one, other in zip(tree.metrics("mine"), tree.metrics("mesh"), strict=True):
        assert one.keys() == other.keys()
        if one["split"] == "train" and one["step"] == 20:
            np.testing.assert_allclose(other["loss"], one["loss"], rtol=0.02)


def test_the_list_of_runs_and_the_report_know_the_new_task(tree):
    (run,) = (json.loads(line) for line in tree.run("-m", "train.runs", "runs/mine", "--json").splitlines())
    metric = "accuracy" if tree.task == "mixer" else "pixel_error"
    values = [line[metric] for line in tree.metrics("mine") if line["split"] == "test"]
    assert (run["task"], run["state"], run["metric"]) == (tree.task, "finished", metric)
    assert run["best"] == (max if tree.task == "mixer" else min)(values)
    tree.run("-m", "train.report", "runs/mine")
    page = (tree.folder / "runs" / "mine" / "report.html").read_text()
    assert f"python -m train.{tree.task} tiny" in page
    assert tree.task == "mixer" or "mean squared error of a pixel in [0, 1]" in page


def test_the_new_task_predicts_and_samples(tree):
    Image.fromarray(np.full((28, 28), 77, np.uint8)).save(tree.folder / "digit.png")
    if tree.task == "mixer":
        row, *_ = tree.run("-m", "train.predict", "runs/mine", "digit.png", "--json").splitlines()
        assert 0.1 < json.loads(row)["probability"] <= 1
        assert "--sample needs a generative model" in tree.run(
            *("-m", "train.predict", "runs/mine", "--sample", "3"), status=2
        )
        return
    tree.run("-m", "train.predict", "runs/mine", "digit.png", "--out", "again.png")
    tree.run("-m", "train.predict", "runs/mine", "--sample", "5", "--out", "drawn.png")
    again, drawn = (np.asarray(Image.open(tree.folder / name)) for name in ("again.png", "drawn.png"))
    assert again.shape[0] == 2 * again.shape[1] and drawn.shape[1] == 5 * drawn.shape[0]
    assert np.ptp(drawn) > 20


def test_the_exported_files_give_the_same_numbers(tree):
    tree.run("-m", "train.export", "runs/mine", "--out", "out")
    tree.run("-c", LOAD)


def test_the_dry_run_compiles_the_new_task(tree):
    command = ("-m", "train.dryrun", tree.task, "tiny", "--topology", "cpu:4", "--mesh.fsdp", "2")
    tree.run(*command, "--json", "dryrun.json")
    report = json.loads((tree.folder / "dryrun.json").read_text())
    assert (report["task"], report["chips"]) == (tree.task, 4)
