"""Tab completion in bash and zsh, after sourcing the script that `python -m train.completion` prints."""

import importlib
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Returns the folder with the printed script of each shell."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh"):
        command = [sys.executable, "-m", "train.completion", shell]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        (folder / shell).write_text(result.stdout)
    return folder


@pytest.fixture
def here(tmp_path):
    """Returns a folder with a run and files to complete."""
    for name in ("runs/vit-sample", "runs/vit-tiny", "some folder"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "program.py").write_text("")
    return tmp_path


CALL = """
source {script}
shift 0
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
[[ $(complete -p python) =~ -F\\ ([^ ]+) ]] && "${{BASH_REMATCH[1]}}" python "${{@: -1}}" "${{@: -2:1}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def in_bash(scripts, here, *words):
    """Returns the completions that bash offers for the last word of a command line."""
    command = ["bash", "--norc", "-c", CALL.format(script=scripts / "bash"), "bash", *words]
    result = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout.split("\n")[:-1] if result.stdout.strip() else []


def presets_of(task):
    return list(importlib.import_module(f"configs.{task}").PRESETS)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("python -m train.v", ["train.vit"]),
        ("python -m train.vit ", presets_of("vit")),
        ("python -m train.aae cl", ["clusters_16", "clusters_30"]),
        ("python -m train.lstm sample --model.num-l", ["--model.num-layers"]),
        ("python -m train.vit --run.steps", ["--run.steps", "--run.steps-per-call"]),
        ("python -m train.vit sample --model.pool ", ["cls", "gap", "cls_gap", "map"]),
        ("python -m train.vit sample --model.pool g", ["gap"]),
        ("python -m train.vit sample --run.steps ", []),
        ("python -m train.vit sample --run.dir ru", ["runs"]),
        ("python -m train.mha tiny --run.tensorboard --run.no-", ["--run.no-extend", "--run.no-tensorboard"]),
        ("python -m train.predict runs/vit-sample --att", ["--attention"]),
        ("python -m train.predict ru", []),  # no offers: bash then completes file names
        ("python -m train.prepare f", ["fashion_mnist", "folder"]),
        ("python -m train.prepare mnist --na", []),
        ("python -m train.prepare folder --na", ["--name"]),
        ("python -m train.dryrun v", ["vit"]),
        ("python -m train.dryrun vit --topo", ["--topology"]),
        ("python -m train.runs --sort ", ["name", "time", "metric"]),
        ("python -m train.report --o", ["--out"]),
        ("python -m train.export --o", ["--out", "--overwrite"]),
        ("python -m train.completion ", ["bash", "zsh"]),
        ("python -m http.server --b", []),
        ("python program", []),
    ],
)
def test_bash_offers_programs_presets_options_and_choices(scripts, here, line, offered):
    assert in_bash(scripts, here, *line.split(" ")) == offered


def test_bash_offers_every_option_and_no_word_of_help_texts(scripts, here):
    from configs.aae import PRESETS
    from train.config.flat import flatten
    from train.config.tree import config_to_tree

    offered = in_bash(scripts, here, "python", "-m", "train.aae", "tiny", "-")
    names = set(flatten(config_to_tree(PRESETS["sample"].config))) - {"model.category_discriminator"}
    assert {f"--{name.replace('_', '-')}" for name in names} <= set(offered)
    assert all(word.startswith("-") and " " not in word for word in offered)
    assert in_bash(scripts, here, "python", "-m", "train.aae", "tiny", "--run.steps", "5", "") == offered


def test_bash_keeps_pythons_earlier_completion_for_other_commands(scripts, here):
    setup = "_before() {{{{ COMPREPLY=(theirs); }}}}; complete -F _before python; source {0}; source {0}\n"
    for words, offered in ((("x"), "theirs"), (("-m", "json.to"), "theirs"), (("-m", "train.runs", "--js"), "--json")):
        words = ["python", *([words] if isinstance(words, str) else words)]
        script = CALL.replace("source {script}\n", setup.format(scripts / "bash")).format()
        command = ["bash", "--norc", "-c", script, "bash", *words]
        result = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        assert (result.stdout, result.stderr) == (f"{offered}\n", "")


def typed(here, arguments, setup, keys):
    """Returns what an interactive shell shows after the keys, and the resulting command line."""
    # Run the terminal in a separate process: forking this one is unsafe because of JAX's threads.
    command = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", *arguments]
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "> ", "HOME": str(here), "LC_ALL": "C.UTF-8"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=here, env=environment, bufsize=0, **pipes) as process:
        try:
            process.stdin.write(f"{setup}; echo rea''dy\n".encode())
            read_until(process.stdout, "ready\r\n")
            process.stdin.write(keys.encode() + b"#\x01echo '\x05' done\n")
            return read_until(process.stdout, "# done\r\n")
        finally:
            process.kill()


def read_until(stream, end, seconds=30):
    shown, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([stream], [], [], 0.1)[0]:
            shown += stream.read(65536)
            if end.encode() in shown:
                return shown.decode()
    raise AssertionError(shown.decode())


KEYS = [
    ("python -m train.vi\t", "python -m train.vit "),
    ("python -m train.vit fash\t", "python -m train.vit fashion_mnist "),
    ("python -m train.vit tiny --run.bat\t", "python -m train.vit tiny --run.batch-size "),
    ("python -m train.vit tiny --model.pool g\t", "python -m train.vit tiny --model.pool gap "),
    ("python -m train.vit tiny --run.dir runs/vit-s\t", "python -m train.vit tiny --run.dir runs/vit-sample/"),
    ("python -m train.predict runs/vit-s\t", "python -m train.predict runs/vit-sample/"),
    ("python -m train.prepare folder --na\t", "python -m train.prepare folder --name "),
    ("python pro\t", "python program.py "),
]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(("keys", "line"), KEYS)
def test_a_tab_completes_the_command_line(scripts, here, shell, keys, line):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    arguments = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
    assert f"\n{line}# done\r\n" in typed(here, arguments, f"source {scripts / shell}", keys)
