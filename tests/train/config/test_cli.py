"""Every user error is one clear line on stderr and exit status 2."""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tasks import TASKS

from configs.base import Mesh
from configs.options import Rule
from configs.vit import PRESETS
from train.config import options
from train.config.cli import parse
from train.config.options import names_with, options_of
from train.config.tree import flat_config
from train.engine.loop import fit
from train.process.errors import RunStopped, UserError
from train.vit import make_task

ROOT = Path(__file__).parents[3]


def run(task, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"train.{task}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_options_change_the_preset_and_nothing_else(tmp_path):
    config = parse(
        "vit", PRESETS, ["tiny", "--run.steps", "7", "--model.embed-dim", "24", "--data.image-size", "14", "21"]
    )
    tiny = PRESETS["tiny"].config
    assert (config.run.steps, config.model.embed_dim, config.data.image_size) == (7, 24, (14, 21))
    assert config.optim == tiny.optim and config.model.clone(embed_dim=tiny.model.embed_dim) == tiny.model
    assert parse("vit", PRESETS, []).run.dir == "runs/vit-sample"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny"], 'there is no preset "tinny". Did you mean "tiny"?'),
        (["xxxxx"], 'there is no preset "xxxxx". Choose one of tiny, sample'),
        (["--run.stepz", "3"], 'there is no option "--run.stepz". Did you mean "--run.steps"?'),
        (["tiny", "--xyz", "3"], 'there is no option "--xyz". See python -m train.vit --help'),
        (["tiny", "--optim.lerning-rate=3"], 'Did you mean "--optim.learning-rate"?'),
        (
            ["--run.steps", "3", "tiny"],
            'the preset must come first and only once, got "tiny" after other arguments. Run python -m train.vit tiny',
        ),
        (["--run.steps", "abc"], "--run.steps must be a whole number, got 'abc'"),
        (["--model.pool", "sum"], "--model.pool must be one of 'cls', 'gap', 'cls_gap', 'map', got 'sum'"),
        (["--data.image-size", "28"], "--data.image-size must be None or two whole numbers, got '28'"),
        (["--augment.shift", "x"], "--augment.shift must be a number, got 'x'"),
        (["--run.steps"], "--run.steps must have a value, got none"),
        (["--tyro-print-completion", "bash"], "run python -m train.completion"),
    ],
)
def test_a_wrong_word_on_the_command_line_is_a_one_line_error(arguments, message):
    """The error suggests the nearest word that exists."""
    with pytest.raises(UserError) as error:
        parse("vit", PRESETS, arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "│" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run.steps", "0"], "--run.steps must be from 1 to 2147483647, got 0"),
        (["--augment.rotate", "-3"], "--augment.rotate must be at least 0, got -3.0"),
        (["--optim.clip", "nan"], "--optim.clip must be a finite number, above 0, got nan"),
        (["--optim.clip", "0"], "--optim.clip must be above 0, got 0.0"),
        (["--optim.learning-rate", "inf"], "--optim.learning-rate must be a finite number, at least 0, got inf"),
        (["--augment.scale", "1"], "--augment.scale must be at least 0 and below 1, got 1.0"),
        (["--run.seed", "-1"], "--run.seed must be from 0 to 4294967295, got -1"),
        (["--run.seed", str(2**32)], "--run.seed must be from 0 to 4294967295, got 4294967296"),
        (["--run.steps", "-5"], "--run.steps must be from 1 to 2147483647, got -5"),
        (["--run.eval-every", "0"], "--run.eval-every must be from 1 to 2147483647, got 0"),
        (["--optim.layer-decay", "0"], "--optim.layer-decay must be above 0 and at most 1, got 0.0"),
        (["--optim.head-lr-factor", "0"], "--optim.head-lr-factor must be above 0, got 0.0"),
        (["--optim.freeze", "cls", "body"], "--optim.freeze must match parameters of the model, but body matches none"),
        (["--run.epochs", "0"], "--run.epochs must be above 0, got 0.0"),
        (["--optim.accumulate", "0"], "--optim.accumulate must be from 1 to 2147483647, got 0"),
        (["--run.batch-size", "30"], "--run.batch-size must be divisible by 8 (devices)"),
        (["--optim.accumulate", "3"], "× --optim.accumulate 3, got 64. Set it to 72"),
        (["--augment.magnitude", "1.5"], "--augment.magnitude must be from 0 to 1, got 1.5"),
        (["--data.workers", "-1"], "--data.workers must be from 0 to 256, got -1"),
        (["--run.steps-per-call", "0"], "--run.steps-per-call must be from 1 to 2147483647, got 0"),
        (["--mesh.data", "16"], "must be at most the number of devices, 8, got --mesh.data 16"),
        (["--model.mlp-dim", "1000000000"], "the model with its optimizer must fit in the "),
        (["--model.mlp-dim", "10000000000"], "--model.mlp-dim must be from -2147483648 to 2147483647, got 10000000000"),
        (
            [
                *("--model.embed-dim", "1000000000", "--model.mlp-dim", "1000000000"),
                *("--model.depth", "4", "--model.scan-layers"),
            ],
            "must have less than 2**63 bytes, got ",
        ),
        (["--run.batch-size", "1000000000", "--mesh.data", "8"], "a batch must fit in the "),
        (["--model.patch-size", "5"], "--model.patch-size 5 and an image of 28×28"),
        (
            ["--model.num-heads", "3"],
            "--model.embed-dim must be divisible by --model.num-heads, got --model.embed-dim 32",
        ),
        (["--model.dropout", "1.5"], "--model.dropout must be at least 0 and below 1, got 1.5"),
        (["--optim.warmup-fraction", "2"], "--optim.warmup-fraction must be at least 0 and below 1, got 2.0"),
        (["--optim.learning-rate", "-1"], "--optim.learning-rate must be at least 0, got -1.0"),
        (["--model.num-classes", "7"], "got 7. Set --model.num-classes 10"),
        (["--data.name", "mnist", "--data.dir", "."], "python -m train.prepare mnist"),
        (["--data.name", "mnst_sample"], "mnist_sample"),
        (["--data.dir", "no/such/folder"], "no/such/folder"),
        (["--data.dir", "pyproject.toml"], "pyproject.toml"),
        (["--data.test-split", "tset"], "tset"),
        (["--run.dir", "pyproject.toml"], "must be a folder"),
        (["--run.dir", "pyproject.toml/run"], "must be a folder"),
        (["--run.dir", "/proc/run"], "cannot write to the run folder /proc/run"),
        (["--run.dir", "tests"], "is not empty and has no config.json"),
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
        (
            "mha",
            ["--model.num-heads", "3"],
            "--model.embed-dim must be divisible by --model.num-heads, got --model.embed-dim 32",
        ),
        ("mha", ["--model.drop-path", "1"], "--model.drop-path must be at least 0 and below 1, got 1.0"),
        ("mha", ["--model.num-classes", "7"], "got 7. Set --model.num-classes 10"),
        (
            "lstm",
            ["--model.hidden-size", "0"],
            "--model.hidden-size must be at least 1, got 0",
        ),
        (
            "lstm",
            ["--model.proj-size", "64"],
            "--model.proj-size must be at least 0 and below 64 (--model.hidden-size), got 64",
        ),
        ("lstm", ["--model.num-classes", "7"], "got 7. Set --model.num-classes 10"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_options_that_any_model_refuses_are_refused_before_writing(task, arguments, message, tmp_path):
    presets = importlib.import_module(f"configs.{task}").PRESETS
    config = parse(task, presets, ["tiny", *arguments, "--run.dir", str(tmp_path / "run")])
    with pytest.raises(UserError) as error:
        fit(config, importlib.import_module(f"train.{task}").make_task)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def small(folder, **run_options):
    tiny = PRESETS["tiny"].config
    run_options = {"steps": 3, "batch_size": 8, "dir": str(folder)} | run_options
    return dataclasses.replace(
        tiny,
        model=tiny.model.clone(embed_dim=8, mlp_dim=8),
        data=dataclasses.replace(tiny.data, train_split="train[:40]", test_split="test[:24]"),
        run=dataclasses.replace(tiny.run, **run_options),
        mesh=Mesh(1, 1, 1),
    )


def test_a_run_folder_of_another_config_is_refused(tmp_path):
    """The error names each field that differs, with both values."""
    fit(small(tmp_path / "run"), make_task)
    other = small(tmp_path / "run", seed=4)
    other = dataclasses.replace(other, model=other.model.clone(qk_norm=True))
    with pytest.raises(UserError, match=r"model.qk_norm was False, now True; run.seed was 0, now 4\. .*--run.dir"):
        fit(other, make_task)
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json must be valid JSON"):
        fit(small(tmp_path / "run"), make_task)


def test_a_finished_run_repeats_no_step_and_prints_its_result(tmp_path, capsys):
    fit(small(tmp_path / "run"), make_task)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    first = [line for line in capsys.readouterr().out.splitlines() if "│ test" in line]
    fit(small(tmp_path / "run"), make_task)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    again = capsys.readouterr().out
    assert "Training already finished at step 3 " in again
    assert len(first) == 4 and [line for line in again.splitlines() if "│ test" in line] == first


def test_a_run_whose_loss_is_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = small(tmp_path / "run", steps=40, save_every=1, eval_every=1)
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, learning_rate=1e38, clip=None, warmup_fraction=0.5)
    )
    with pytest.raises(
        RunStopped, match=r"step \d+: .*\. .*start a new run.*\. Last checkpoint: step \d+ in .*/run$"
    ) as error:
        fit(config, make_task)
    broken, saved = map(int, re.findall(r" step (\d+)", f" {error.value}"))
    kept = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == saved < broken


@pytest.mark.slow
def test_a_run_that_skips_too_many_steps_in_a_row_stops_at_the_same_step_after_resuming(tmp_path):
    config = small(tmp_path / "run", steps=40, save_every=4, eval_every=40)
    run = {"on_nonfinite": "skip", "max_skipped_steps": 10, "steps_per_call": 3}
    config = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, learning_rate=1e38, clip=None, warmup_fraction=0.5),
        run=dataclasses.replace(config.run, **run),
    )
    told = []
    for _ in range(2):
        with pytest.raises(
            RunStopped, match=r"10 steps in a row were skipped\. .*\. Last checkpoint: step \d+ in"
        ) as error:
            fit(config, make_task)
        told.append(str(error.value))
    assert told[0] == told[1]
    stopped, saved = map(int, re.findall(r" step (\d+)", f" {told[0]}"))
    assert stopped - 10 < saved < stopped  # the skipped steps are on both sides of the checkpoint


def test_the_program_exits_2_with_one_line_and_no_traceback():
    result = run("vit", "tiny", "--run.steps", "0")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: --run.steps must be from 1 to 2147483647")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_help_all_lists_presets_and_explains_every_option(task):
    result = run(task, "--help-all")
    assert result.returncode == 0
    presets = importlib.import_module(f"configs.{task}").PRESETS
    assert f"train.{task} [PRESET]" in result.stdout
    assert f"PRESET: {', '.join(presets)} (default: sample)" in " ".join(result.stdout.split())
    for name in set(flat_config(presets["sample"].config)) - {"model.category_discriminator"}:
        assert f"--{name.replace('_', '-')}" in result.stdout


@pytest.mark.parametrize("task", TASKS)
def test_a_section_of_help_all_begins_with_the_text_of_its_group(task, capsys):
    """A comment at a field must not be taken for the text of its group."""
    presets = importlib.import_module(f"configs.{task}").PRESETS
    with pytest.raises(SystemExit):
        parse(task, presets, ["--help-all"])
    _, *parts = re.split(r"^\W*([a-z.-]+) options\W*$", capsys.readouterr().out, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert sections.keys() >= {"data", "run", "mesh", "distributed", "optim", "model", "augment"}
    for name, section in sections.items():
        if "." in name:  # The field of a group in a group has its own text.
            continue
        config = presets["sample"].config
        expected = options.texts_of(type(config)).get(name) or str(type(getattr(config, name)).__doc__)
        text = " ".join(re.sub("[│─]|-{9,}", " ", section).split())
        assert text.startswith(" ".join(expected.partition("\n\n")[0].split())), name


@pytest.mark.parametrize("task", TASKS)
def test_help_fits_a_screen_and_names_every_preset_and_every_option(task, capsys):
    presets = importlib.import_module(f"configs.{task}").PRESETS
    for preset in presets:
        for arguments in ([preset, "--help"], [preset, "--run.steps", "7", "-h"]):
            with pytest.raises(SystemExit) as left:
                parse(task, presets, arguments)
            assert left.value.code == 0
        lines = capsys.readouterr().out.splitlines()
        lines = lines[len(lines) // 2 :]
        assert len(lines) <= 50 + len(presets) and max(map(len, lines)) <= 80
        assert [line.startswith(f"    python -m train.{task} ") for line in lines[1:4]] == [True, True, False]
        assert all(any(line.startswith(f"{name} ") for line in lines) for name in presets)
        # An option is shown alone, as --run.steps, or in the list of its group, as --run.* log-every.
        text = " ".join(" ".join(lines).split())
        groups = {
            group: options.split(", ")
            for names, options in re.findall(r"((?:--[\w.-]+\.\* )+)((?:[\w-]+(?:, )?)+)", text)
            for group in names.split()
        }
        for name, value in flat_config(presets[preset].config).items():
            group, _, last = name.replace("_", "-").rpartition(".")
            alone = f"--{name.replace('_', '-')}"
            assert re.search(rf"{re.escape(alone)}(,| |$)", text) or last in groups[f"--{group}.*"], name
            common = name in names_with(presets[preset].config, Rule.COMMON) and name.count(".") < 2
            if common and value is not None and not isinstance(value, bool):
                shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
                assert f"{alone} {shown} " in text


def test_help_shows_the_presets_values_and_the_text_of_each_field(capsys):
    with pytest.raises(SystemExit):
        parse("vit", PRESETS, ["cifar10", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "options, with their values in preset cifar10: --init-from STR Initial weights: a file, folder or Hu" in text
    assert (
        "--run.steps 78000 Number of optimizer steps in the run "
        "--run.epochs FLOAT Length of the run in epochs, instead of --run.steps --run.batch-size 128 Examples per"
        in text
    )
    assert (
        "--optim.ema 0.999 Evaluate an exponential moving average of the parameters with this decay rate; None:" in text
    )
    assert "--data.image-size INT INT Height and width in pixels to resize all images to --run.steps" in text
    assert "--model.num-classes 10 V, number of classes; 0: return the pooled features instead of logits more" in text
    assert (
        "cifar10 cifar10 78,000 × 128 for a GPU or TPU" in text and "sample (default) mnist_sample 2,000 × 100" in text
    )


HELP = """
import atexit, runpy, sys
late = ("orbax", "tyro", "grain", "tensorflow_datasets", "matplotlib")
atexit.register(lambda: print("late:", [name for name in late if name in sys.modules]))
sys.argv = ["train", "--help"]
runpy.run_module("train.{TASK}", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_help_loads_no_library_that_it_does_not_need(task):
    command = [sys.executable, "-c", HELP.replace("{TASK}", task)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.endswith("late: []\n")


@pytest.mark.parametrize("task", TASKS)
def test_every_option_has_a_text_and_every_preset_a_description(task):
    for preset in _presets(task).PRESETS.values():
        assert preset.about
        options = options_of(preset.config).values()
        assert [o.name for o in options if not o.text] == []


def test_the_rules_of_an_option_are_at_its_field():
    options = options_of(PRESETS["tiny"].config)
    changeable = {name for name, option in options.items() if Rule.CHANGEABLE_ON_RESUME in option.rules}
    groups = {name for name in options if name.startswith(("mesh.", "distributed."))}
    assert changeable == groups | {
        *("run.dir", "run.steps_per_call", "run.compilation_cache", "run.on_nonfinite", "run.on_save_error"),
        *("run.extend", "run.patience", "run.log_every", "run.eval_every", "run.save_every"),
        *("run.max_skipped_steps", "run.tensorboard", "run.wandb", "data.dir", "data.workers", "data.memory_limit"),
    }
    own = {name for name, option in options.items() if Rule.PER_PROCESS in option.rules}
    assert own == {"distributed.process_id", "data.dir", "data.workers", "data.memory_limit"}


def _presets(task):
    return importlib.import_module(f"configs.{task}")


@pytest.mark.parametrize(
    ("task", "arguments", "folder"),
    [
        ("vit", [], "vit-sample"),
        ("vit", ["tiny"], "vit-tiny"),
        ("vit", ["--run.steps", "2000", "--optim.ema", "0.998", "--augment.shift", "2"], "vit-sample"),
        ("vit", ["sample", "--model.depth", "6", "--run.seed", "1"], "vit-sample-depth6-seed1"),
        ("vit", ["sample", "--run.seed", "1", "--model.depth", "6"], "vit-sample-depth6-seed1"),
        ("vit", ["--optim.learning-rate", "1e-3"], "vit-sample-learning_rate0.001"),
        ("vit", ["--optim.learning-rate", "0.00001", "--optim.b1", "0.5"], "vit-sample-b1_0.5-learning_rate1e-05"),
        ("vit", ["--augment.shift", "3"], "vit-sample-shift3"),
        ("vit", ["--optim.clip", "None", "--model.layer-scale", "0.1"], "vit-sample-layer_scale0.1-no_clip"),
        ("vit", ["--model.qk-norm", "--model.no-patch-bias"], "vit-sample-no_patch_bias-qk_norm"),
        ("vit", ["--model.pool", "map", "--data.image-size", "14", "21"], "vit-sample-image_size14x21-pool_map"),
        ("vit", ["--data.name", "my_images"], "vit-sample-name_my_images"),
        ("vit", ["--init-from", "vit.npz"], "vit-finetune-init_from_vit.npz"),
        ("vit", ["--data.train-split", "train[:90%]"], "vit-sample-train_split_train_90_[0-9a-f]{6}"),
        ("vit", ["sample", "--init-from=vit.npz"], "vit-sample-init_from_vit.npz"),
        ("vit", ["--init-from", "/a/b c/vit.npz"], "vit-finetune-init_from_vit.npz_[0-9a-f]{6}"),
        ("vit", ["--init-from", "/a/weights/"], "vit-finetune-init_from_weights_[0-9a-f]{6}"),
        ("vit", ["--init-from", "../.."], "vit-finetune-init_from_.._[0-9a-f]{6}"),
        ("vit", ["--data.name", "猫"], "vit-sample-name_[0-9a-f]{6}"),
        ("vit", ["--data.name", "x" * 300], "vit-sample-name_x{24}_[0-9a-f]{6}"),
        ("vit", ["--run.dir", "runs/mine", "--model.depth", "6"], "mine"),
        ("aae", ["tiny", "--optim.generator.learning-rate", "1e-3"], "aae-tiny-generator.learning_rate0.001"),
        ("aae", ["tiny", "--model.decoder.batch-norm"], "aae-tiny-decoder.batch_norm_empty"),
        ("aae", ["tiny", "--model.encoder.hidden-sizes", "9", "8"], "aae-tiny-encoder.hidden_sizes9x8"),
        ("lstm", ["--model.num-layers", "3"], "lstm-sample-num_layers3"),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else None,
)
def test_a_run_folder_is_named_after_the_changed_options(task, arguments, folder):
    named = parse(task, _presets(task).PRESETS, arguments, resolve=lambda config, *_: config).run.dir
    assert named is not None and re.fullmatch(f"runs/{folder}", named)


def test_options_that_may_change_on_resume_do_not_change_the_name():
    options = ["--mesh.data", "4", "--mesh.fsdp", "2", "--distributed.process-id", "1", "--data.dir", "/mnt/data"]
    options += ["--data.workers", "7", "--data.memory-limit", "9", "--run.steps-per-call", "5", "--run.wandb", "x"]
    options += ["--run.tensorboard", "--run.on-nonfinite", "skip", "--run.on-save-error", "retry"]
    options += ["--run.compilation-cache", "on"]
    assert parse("vit", PRESETS, ["tiny", *options]).run.dir == "runs/vit-tiny"


def test_a_name_has_a_maximum_length_and_is_unique_for_each_config():
    names = set()
    many = [
        f"--{group}.{name}"
        for group, name in (("optim", "warmup-fraction"), ("optim", "final-lr-fraction"), ("augment", "rotate"))
    ]
    many += ["--augment.magnitude", "--model.dropout", "--model.attention-dropout", "--model.drop-path"]
    splits = ["train", "train[:1%]", "train[:1]", "train[1:]", "train_1_", "Train[:1]", "train[:1]+test", "a/b", "b"]
    for split in splits:
        for last in ("0.125", "0.1250001"):
            values = [word for name in many for word in (name, last)]
            for given, seed in ((values, "1"), (values, "2"), (values[:2], "1")):
                config = parse("vit", PRESETS, ["tiny", *given, "--data.train-split", split, "--run.seed", seed])
                name = str(config.run.dir)
                assert len(name) <= 105 and re.fullmatch(r"runs/vit-tiny[\w.+-]+", name)
                names.add(name.lower())
    assert len(names) == len(splits) * 6


def test_another_option_starts_another_run(tmp_path, capsys, monkeypatch):
    """The same command resumes its own run."""
    monkeypatch.chdir(tmp_path)
    command = ["tiny", "--run.steps", "2", "--run.batch-size", "8", "--mesh.data", "1", "--data.train-split"]
    command += ["train[:40]", "--data.test-split", "test[:24]", "--model.embed-dim", "8", "--model.mlp-dim", "8"]
    for arguments in (command, [*command, "--run.seed", "1"], command):
        capsys.readouterr()
        fit(parse("vit", PRESETS, arguments), make_task)
    assert "Training already finished at step 2 " in capsys.readouterr().out
    one, other = sorted((tmp_path / "runs").iterdir())
    assert one.name.startswith("vit-tiny-") and other.name.startswith("vit-tiny-") and one != other
