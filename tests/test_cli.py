"""Every mistake of a user is one clear line on stderr and exit status 2."""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.base import Mesh
from configs.vit import PRESETS
from train.cli import parse
from train.errors import RunStopped, UserError
from train.loop import fit
from train.run_files import flattened
from train.run_folder import config_tree
from train.vit import make_task

ROOT = Path(__file__).parent.parent


def run(task, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"train.{task}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_options_change_the_preset_and_nothing_else(tmp_path):
    config = parse(
        "vit", PRESETS, ["tiny", "--run.steps", "7", "--model.embed-dim", "24", "--data.image-size", "14", "21"]
    )
    tiny = PRESETS["tiny"]
    assert (config.run.steps, config.model.embed_dim, config.data.image_size) == (7, 24, (14, 21))
    assert config.run.dir == "runs/vit-tiny"
    assert config.optim == tiny.optim and config.model.clone(embed_dim=tiny.model.embed_dim) == tiny.model
    assert parse("vit", PRESETS, []).run.dir == "runs/vit-sample"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny"], 'there is no preset "tinny"; did you mean "tiny"?'),
        (["xxxxx"], 'there is no preset "xxxxx"; choose from tiny, sample'),
        (["--run.stepz", "3"], 'there is no option "--run.stepz"; did you mean "--run.steps"?'),
        (["tiny", "--xyz", "3"], 'there is no option "--xyz"; see python -m train.vit --help'),
        (["tiny", "--optim.lerning-rate=3"], 'did you mean "--optim.learning-rate"?'),
        (["--run.steps", "3", "tiny"], "the preset comes first and alone: python -m train.vit tiny"),
        (["--run.steps", "abc"], "--run.steps: invalid literal for int() with base 10: 'abc'"),
        (["--model.pool", "sum"], "Expected one of ('cls', 'gap', 'map')"),
        (["--run.steps"], "--run.steps"),
    ],
)
def test_a_wrong_word_on_the_command_line_is_answered_in_one_line_with_the_nearest(arguments, message):
    with pytest.raises(UserError) as error:
        parse("vit", PRESETS, arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "│" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run.steps", "0"], "--run.steps must be at least 1, got 0"),
        (["--run.steps", "-5"], "--run.steps must be at least 1, got -5"),
        (["--run.eval-every", "0"], "--run.eval-every must be at least 1, got 0"),
        (["--optim.accumulate", "0"], "--optim.accumulate must be at least 1, got 0"),
        (["--run.batch-size", "30"], "--run.batch-size must be divisible by 8 device(s)"),
        (["--optim.accumulate", "3"], "× --optim.accumulate 3, got 64; the next that is: 72"),
        (["--augment.magnitude", "1.5"], "--augment.magnitude must be from 0 to 1, got 1.5"),
        (["--data.workers", "-1"], "--data.workers must be at least 0, got -1"),
        (["--run.steps-per-call", "0"], "--run.steps-per-call must be at least 1, got 0"),
        (["--mesh.data", "16"], "does not fit the 8 device(s)"),
        (["--model.patch-size", "5"], "patch_size 5 and an image of 28×28"),
        (["--model.num-heads", "3"], "embed_dim must be divisible by num_heads, got 32 and 3"),
        (["--model.dropout", "1.5"], "dropout is a rate of at least 0 and below 1, got 1.5"),
        (["--optim.warmup", "2"], "--optim.warmup must be at least 0 and below 1, got 2.0"),
        (["--optim.learning-rate", "-1"], "--optim.learning-rate must be at least 0, got -1.0"),
        (["--model.num-classes", "7"], "add --model.num-classes 10"),
        (["--data.name", "mnist", "--data.dir", "."], "python -m train.prepare mnist"),
        (["--data.name", "mnst_sample"], "mnist_sample"),
        (["--data.dir", "no/such/folder"], "no/such/folder"),
        (["--data.dir", "pyproject.toml"], "pyproject.toml"),
        (["--data.test-split", "tset"], "tset"),
        (["--run.dir", "pyproject.toml"], "must be a folder"),
        (["--run.dir", "pyproject.toml/run"], "must be a folder"),
        (["--run.dir", "/proc/run"], "the run folder /proc/run cannot be written"),
        (["--run.dir", "tests"], "holds other things and no config.json"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    if "--run.dir" not in arguments:
        arguments = [*arguments, "--run.dir", str(tmp_path / "run")]
    with pytest.raises(UserError) as error:
        fit(parse("vit", PRESETS, ["tiny", *arguments]), make_task)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("mha", ["--model.num-heads", "3"], "embed_dim must be divisible by num_heads, got 32 and 3"),
        ("mha", ["--model.drop-path", "1"], "drop_path is a rate of at least 0 and below 1, got 1.0"),
        ("mha", ["--model.num-classes", "7"], "add --model.num-classes 10"),
        ("lstm", ["--model.hidden-size", "0"], "hidden_size and num_layers must be at least 1, got 0 and 1"),
        ("lstm", ["--model.proj-size", "64"], "proj_size must be from 0 to below hidden_size 64, got 64"),
        ("lstm", ["--model.num-classes", "7"], "add --model.num-classes 10"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_what_any_model_refuses_is_refused_before_anything_is_written(task, arguments, message, tmp_path):
    presets = importlib.import_module(f"configs.{task}").PRESETS
    config = parse(task, presets, ["tiny", *arguments, "--run.dir", str(tmp_path / "run")])
    with pytest.raises(UserError) as error:
        fit(config, importlib.import_module(f"train.{task}").make_task)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def small(folder, **run_options):
    tiny = PRESETS["tiny"]
    run_options = {"steps": 3, "batch_size": 8, "dir": str(folder)} | run_options
    return dataclasses.replace(
        tiny,
        model=tiny.model.clone(embed_dim=8, mlp_dim=8),
        data=dataclasses.replace(tiny.data, train_split="train[:40]", test_split="test[:24]"),
        run=dataclasses.replace(tiny.run, **run_options),
        mesh=Mesh(1, 1, 1),
    )


def test_a_run_folder_of_another_config_is_refused_naming_each_field_with_both_values(tmp_path):
    fit(small(tmp_path / "run"), make_task)
    other = small(tmp_path / "run", seed=4)
    other = dataclasses.replace(other, model=other.model.clone(qk_norm=True))
    with pytest.raises(UserError, match=r"model.qk_norm was False, now True; run.seed was 0, now 4\. .*--run.dir"):
        fit(other, make_task)
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is not valid JSON"):
        fit(small(tmp_path / "run"), make_task)


def test_a_finished_run_does_no_step_again_and_tells_its_result(tmp_path, capsys):
    fit(small(tmp_path / "run"), make_task)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    first = [line for line in capsys.readouterr().out.splitlines() if "│ test" in line]
    fit(small(tmp_path / "run"), make_task)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    again = capsys.readouterr().out
    assert "is finished at step 3" in again
    assert len(first) == 2 and [line for line in again.splitlines() if "│ test" in line] == first


def test_a_run_whose_loss_is_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = small(tmp_path / "run", steps=40, save_every=1, eval_every=1)
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, learning_rate=1e38, clip=None, warmup=0.5)
    )
    with pytest.raises(RunStopped, match=r"step \d+.*; .*begin anew.* is saved up to step \d+$") as error:
        fit(config, make_task)
    broken, saved = map(int, re.findall(r" step (\d+)", f" {error.value}"))
    kept = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == saved < broken


def test_the_program_exits_2_with_one_line_and_no_traceback():
    result = run("vit", "tiny", "--run.steps", "0")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: --run.steps must be at least 1")


@pytest.mark.parametrize("task", ["vit", "mha", "lstm"])
def test_help_lists_presets_and_every_option(task):
    result = run(task, "--help")
    assert result.returncode == 0
    presets = importlib.import_module(f"configs.{task}").PRESETS
    assert f"train.{task} [PRESET]" in result.stdout
    assert f"PRESET: {', '.join(presets)} (default: sample)" in " ".join(result.stdout.split())
    for name in flattened(config_tree(presets["sample"])):
        assert f"--{name.replace('_', '-')}" in result.stdout
