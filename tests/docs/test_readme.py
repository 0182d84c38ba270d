"""The code blocks of the README and the docs work: each is run, or its options are parsed by the real program."""

import argparse
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import groupby
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from models import assert_same_trees
from PIL import Image
from predictors import untrained
from tasks import TASKS

from train import export, prepare
from train.__main__ import programs
from train.completion.__main__ import main as completion
from train.config.checks import check_ranges
from train.data import abstract_source, open_source
from train.dryrun.__main__ import main as dryrun
from train.dryrun.__main__ import read_task
from train.engine.loop import fit
from train.onnx_program import onnx_program
from train.predict.__main__ import main as predict
from w2jax.convert.__main__ import _parser as converter
from w2jax.convert.__main__ import main as convert

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "ko")
# The Korean pages have the same blocks and the same code spans (test_korean.py).
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [(name, language, block) for name, page in PAGES.items() for language, block in FENCE.findall(page)]

SHAPES = re.compile(r"^ *(\w+), (\w+) = .*#.*?\[([\d, ]+)\](?:, (\d × )?\[([\d, ]+)\])?", re.MULTILINE)
# Pages that train for long: without the flags of the tests, which make compilation fast and programs slow.
OPTIMIZED = ("README.md", "docs/own-loop.md")
ALONE = ("docs/python.md",)  # its blocks run separately; every other page is one program

# The commands that are not tried, or their first words, each with its reason.
NOT_TRIED = {
    "git clone https://github.com/w2jax/w2jax": "needs the network",
    "cd w2jax": "needs the clone of the line before",
    "python -m venv .venv": "part of Python",
    ". .venv/bin/activate": "needs the environment of the line before",
    "tensorboard --logdir runs": "a program that the user installs",
    "mkdir -p": "part of Linux",
    "ln -sfn": "part of Linux",
    "sbatch train.sbatch": "needs Slurm; the script is the next block",
    "gcloud compute tpus queued-resources": "needs Google Cloud",
    "gcloud storage cp": "needs Google Cloud",
    "gcsfuse": "needs Google Cloud",
    "pip install uv": "needs the network",
    "python -m uv venv": "needs uv",
}


def python_blocks(name):
    return [block for page, language, block in BLOCKS if (page, language) == (name, "python")]


def commands(block):
    """Yields the words of each command in a block, without comments and environment variables.

    A command that runs on another machine, by ssh or srun, is yielded instead of the one that sends it there.
    """
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("!"), comments=True)
        for is_and, part in groupby(words, "&&".__eq__):
            words = [] if is_and else list(part)
            while words and re.fullmatch(r"[A-Z_]+=.*|srun", words[0]):
                words.pop(0)
            if words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]:
                yield from commands(words[words.index("--command") + 1])
            elif words:
                yield [re.sub(r"^(.*/)?python3?$", "python", words[0]), *words[1:]]


def is_tried(command):
    return not any(f"{command} ".startswith(f"{start} ") for start in NOT_TRIED)


COMMANDS = {
    shlex.join(words): words for _, language, block in BLOCKS if language == "bash" for words in commands(block)
}


def examples():
    """Yields the words of each example in the help of a program. Forms of a command have brackets."""
    texts = [str(converter().description)]
    for name in programs():
        module = importlib.import_module(f"train.{name}")
        module = module if hasattr(module, "main") else importlib.import_module(f"train.{name}.__main__")
        texts.append(str(module.__doc__))
    lines = [line.strip(" -") for text in texts for line in text.splitlines()[1:]]
    yield from commands("\n".join(x for x in lines if x.startswith("python -m ") and not re.search(r"\[|\|", x)))


COMMANDS |= {shlex.join(words): words for words in examples()}
MENTIONED = {line for page in PAGES.values() for line in re.findall(r"`(python -m [^`\n]+)`", FENCE.sub("", page))}


def test_every_code_block_is_found_and_in_a_tested_language():
    assert {language for _, language, _ in BLOCKS} <= {"python", "bash", "text"}
    assert sum(page.count("```") for page in PAGES.values()) == 2 * len(BLOCKS)


@pytest.mark.slow
@pytest.mark.parametrize("block", dict.fromkeys(block for name in ALONE for block in python_blocks(name)))
def test_each_python_block_runs_and_gives_the_shapes_in_its_comments(block):
    names: dict = {}
    exec(block, names)
    said = SHAPES.findall(block)
    assert said
    for first, second, first_shape, times, second_shape in said:
        assert str(list(names[first].shape)) == f"[{first_shape}]"
        value = names[second]
        if times:
            assert len(value) == int(times[0])
            value = value[0]
        assert str(list(value.shape)) == f"[{second_shape}]"


def weights_give_the_same_logits(names):
    np.testing.assert_allclose(names["logits"], names["expected"], rtol=1e-5, atol=1e-5)
    assert np.ptp(names["expected"]) > 0.1


def pieces_give_the_whole(names):
    lstm, variables, x = names["lstm"], names["variables"], names["x"][:2, :112]
    expected = lstm.apply(variables, x)[0]
    np.testing.assert_allclose(names["in_pieces"](variables, x), expected, rtol=1e-5, atol=1e-6)
    assert jnp.ptp(expected) > 0.01


def ten_lines_train(_):
    """The README says 93 %. The last bits of another machine may change it a little."""
    rows = [json.loads(row) for row in Path("runs/my-vit/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 500 and rows[-1]["accuracy"] > 0.88


def vit_as_onnx():
    """Writes the file that the command before the block writes."""
    pytest.importorskip("jax2onnx", reason='needs the packages of pip install -e ".[onnx]"')
    Path("vit.onnx").write_bytes(onnx_program(untrained("vit")).content)


def five_class_names(names):
    assert names["probabilities"].shape == (5, 10)
    np.testing.assert_allclose(names["probabilities"].sum(axis=1), 1, rtol=1e-5)
    assert names["names"] == list("0123456789")


def a_resumed_loop_has_the_same_bits(names):
    with names["ocp"].CheckpointManager(Path("whole").absolute()) as manager:
        whole = names["train"](names["new_state"](), 300, manager)
    assert_same_trees(whole, names["resumed"])
    assert names["state"]["step"] == 600 and names["accuracy"] > 0.91  # 0.94 on our machine


# What a page needs before its blocks run.
BEFORE = {"docs/use.md": vit_as_onnx}

# Checks of a page's variables, after all blocks of the page have run.
THEN = {
    "README.md": ten_lines_train,
    "docs/own-loop.md": a_resumed_loop_has_the_same_bits,
    "docs/convert.md": weights_give_the_same_logits,
    "docs/scale.md": pieces_give_the_whole,
    "docs/use.md": five_class_names,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAGES if name not in ALONE and python_blocks(name)])
def test_the_python_blocks_of_a_page_run_and_give_the_stated_results(name, tmp_path, monkeypatch):
    """The blocks run one after the other, as a reader would run them."""
    if name in OPTIMIZED:
        program = f"import sys; sys.path[:] = {sys.path!r}; import test_readme; test_readme.run_page({name!r})"
        env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        monkeypatch.chdir(tmp_path)
        run_page(name)


def run_page(name: str):
    if name in BEFORE:
        BEFORE[name]()
    names: dict = {}
    for block in python_blocks(name):
        exec(block, names)
    if name in THEN:
        THEN[name](names)


class Parsed(Exception):
    """Raised to stop a program after it has read its options."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with everything that the commands need: two short runs, images, datasets, weights."""
    desk = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        patch.setenv("TFDS_DATA_DIR", str(desk / "tfds"))
        for task in ("vit", "aae"):
            small = ["--data.train-split", "train[:64]", "--data.test-split", "test[:64]", "--mesh.data", "1"]
            if task == "aae":
                small += ["--validation-split", "train[64:96]", "--metric-examples", "32"]
            fit(*read_task(task, ["tiny", "--run.steps", "2", "--run.dir", f"runs/{task}-sample", *small]))
        export.main(["runs/vit-sample", "--format", "timm", "--out", "vit.safetensors"])
        export.main(["runs/vit-sample", "--format", "timm", "--out", "pretrained"])
        copies = ("mine", "my-run", "early", "textures", "lstm-sample", "vit-mnist", "vit-cifar10", "cifar10", "g14")
        for copy in copies:
            shutil.copytree("runs/vit-sample", f"runs/{copy}")

        config, _ = read_task("vit", ["tiny"])
        digits = open_source(config.data, "test[:4]").gather(np.arange(4))["image"][..., 0]
        Path("photos").mkdir()
        for path, digit in zip(("digit.png", "photo.jpg", "photos/a.png", "photos/b.png"), digits, strict=True):
            Image.fromarray(digit).save(path)
        for folder, classes in {"DIR": 3, "imagenet/train": 1000, "imagenet/test": 1000}.items():
            for k in range(classes):
                (Path(folder) / f"class_{k:04}").mkdir(parents=True)
                for i in range(2 if folder == "DIR" else 1):
                    Image.fromarray(digits[i]).convert("RGB").save(Path(folder) / f"class_{k:04}" / f"{i}.png")
        for place in ("train/grass", "train/gravel", "test/grass", "test/gravel"):
            (Path("textures") / place).mkdir(parents=True)
            Image.fromarray(digits[0]).save(Path("textures") / place / "007.jpg")
        prepare.main(["folder", "--from", "DIR", "--name", "my_images"])
        prepare.main(["folder", "--from", "textures", "--name", "textures"])
        prepare.main(["folder", "--from", "imagenet", "--name", "imagenet"])
        Path("bucket").symlink_to(".")
        Path("data").symlink_to("tfds")
        yield desk


def stop_behind(patch, owner, name):
    """Makes a program stop after the function that reads its options."""
    real = getattr(owner, name)

    def read(*arguments, **options):
        raise Parsed(real(*arguments, **options))

    patch.setattr(owner, name, read)


def try_training(task, arguments):
    """Does what a training run does before its first step, except for opening the data."""
    if arguments[-1:] == ["--help"]:
        with pytest.raises(SystemExit) as end:
            read_task(task, arguments)
        assert not end.value.code
        return
    config, make_task = read_task(task, arguments)
    check_ranges(config)
    made = make_task(config, abstract_source(config.data, config.data.train_split))
    state = jax.eval_shape(made.init, *([] if made.initial_params is None else [made.initial_params().params]))
    assert sum(x.size for x in jax.tree.leaves(state.params)) > 0


def try_dryrun(arguments, patch):
    """Reads the options of the dry run and of the task. It does not compile, which takes minutes and a TPU compiler."""
    stop_behind(patch, tyro, "cli")
    with pytest.raises(Parsed) as options:
        dryrun(arguments)
    patch.undo()
    try_training(arguments[0], options.value.args[0][1])


def try_prepare(arguments, tmp_path, patch):
    """Prepares a folder. For datasets that would need a download or large files, only reads the options."""
    patch.setenv("TFDS_DATA_DIR", str(tmp_path))
    if "--data-dir" in arguments:
        arguments[arguments.index("--data-dir") + 1] = str(tmp_path)
    if arguments[0] == "folder":
        prepare.main(arguments)
        assert list(tmp_path.rglob("dataset_info.json"))
        return
    stop_behind(patch, tyro, "cli")
    with pytest.raises(Parsed):
        prepare.main(arguments)


def try_command(words, tmp_path, patch):
    """Tries the command and fails if it does not work; returns False if the command is unknown."""
    match words:
        case ["python", "-m", "train.predict", *arguments]:
            predict(arguments)
            for option in ("--out", "--attention"):
                if option in arguments:
                    with Image.open(arguments[arguments.index(option) + 1]) as image:
                        assert min(image.size) >= 28
            if "--rollout" in arguments:
                written = {path.suffix for path in Path(arguments[arguments.index("--rollout") + 1]).iterdir()}
                assert written == {".png", ".svg"}
        case ["python", "-m", "train.export", *arguments]:
            if "onnx" in arguments:
                pytest.importorskip("jax2onnx", reason='needs the packages of pip install -e ".[onnx]"')
            export.main(arguments)
            default = Path(arguments[0], "exported", "model.stablehlo")
            out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else default
            assert (out / "model.safetensors" if out.is_dir() else out).stat().st_size > 1000
        case ["python", "-m", "train.report" | "train.demo" as module, *arguments] if (
            module == "train.demo" or "--serve" in arguments
        ):
            program = importlib.import_module(f"{module}.__main__")
            stop_behind(patch, program, "read_options")
            with pytest.raises(Parsed):
                program.main(arguments)
        case ["python", "-m", "train.report" | "train.runs" as module, *_]:
            patch.setattr("sys.argv", words[2:])
            program = importlib.import_module("train.report.__main__" if module == "train.report" else module)
            assert not program.main()
        case ["python", "-m", "train.completion", shell, ">", _]:
            completion([shell])
        case ["python", "-m", "train.prepare", *arguments]:
            try_prepare(arguments, tmp_path, patch)
        case ["python", "-m", "train.dryrun", *arguments]:
            try_dryrun(arguments, patch)
        case ["python", "-m", "w2jax.convert", source, target, *arguments]:
            assert convert([source, target, *arguments]) == 0 and Path(target).stat().st_size > 1000
        case ["python", "-m", module, *arguments] if module.removeprefix("train.") in TASKS:
            try_training(module.removeprefix("train."), arguments)
        case ["python", "-m", module, *arguments] if module.split(".")[0] == "benchmarks":
            is_package = importlib.util.find_spec(module).submodule_search_locations
            program = importlib.import_module(f"{module}.__main__" if is_package else module)
            stop_behind(patch, argparse.ArgumentParser, "parse_args")
            patch.setattr("sys.argv", [module, *arguments])
            with pytest.raises(Parsed):
                program.main()
        case ["pip", "install", "-e", what] | ["python", "-m", "uv", "pip", "install", "--python", "venv", "-e", what]:
            extras = re.fullmatch(r"\.(?:/w2jax)?\[([\w,]+)\]", what)[1].split(",")
            assert set(extras) <= set(
                tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            )
        case [".ci/run"]:
            assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
        case ["pytest" | "ruff" | "pyright" | "lint-imports" | "mkdocs", *_]:
            if words[:2] == ["pytest", "-m"]:
                words = [".ci/versions --only newest -n 0", *words[1:]]
            line = " ".join(words).replace("not slow", "'not slow'")
            assert re.search(rf"^ *{re.escape(line)}( |$)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
        case _:
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("command", list(filter(is_tried, COMMANDS)))
def test_each_command_of_a_page_runs_or_is_parsed_by_its_program(command, desk, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        monkeypatch.chdir(desk)
        monkeypatch.setenv("TFDS_DATA_DIR", str(desk / "tfds"))
        assert try_command(COMMANDS[command], tmp_path, patch), "say in NOT_TRIED why it cannot be tried"


def test_every_untried_command_is_on_a_page():
    assert all(any(f"{command} ".startswith(f"{start} ") for command in COMMANDS) for start in NOT_TRIED)


@pytest.mark.parametrize("command", sorted(MENTIONED))
def test_each_program_that_a_page_mentions_exists(command):
    """It accepts the preset and the options in the same code span."""
    module, *arguments = command.split()[2:]
    if "…" in module or "TASK" in module:
        return
    assert importlib.util.find_spec(module) is not None
    task = module.removeprefix("train.")
    form = re.search(r"…|\b[A-Z]{3,}\b|\[", " ".join(arguments))  # contains a placeholder
    if task in TASKS and not form and arguments != ["--help"]:
        check_ranges(read_task(task, arguments)[0])


def test_every_promise_of_the_reliability_page_names_a_test():
    """The test in the right column must exist."""
    rows = re.findall(r"^\| (?!promise|---)(.*) \| (.*) \|$", PAGES["docs/reliability.md"], re.MULTILINE)
    assert len(rows) >= 30
    for promise, holders in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", holders)
        assert named, promise
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
