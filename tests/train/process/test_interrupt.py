"""Ctrl-C while a program still imports its modules ends it with status 130 and without a traceback."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


pytestmark = pytest.mark.usefixtures("default_handlers")


def interrupted(module: str, *command: str) -> tuple[int, list[str]]:
    """Sends Ctrl-C when a program has imported `module`. Returns its exit status and the lines that it printed.

    With -X importtime, Python prints the name of each module that it has imported, so the test waits for no time.
    """
    program = [sys.executable, "-X", "importtime", "-m", *command]
    process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    with process, process.stdout, process.stderr:
        seen = next(line for line in process.stderr if line.split("|")[-1].strip() == module)
        process.send_signal(signal.SIGINT)
        lines = [line for line in process.stderr if not line.startswith("import time:")]
        assert seen and process.stdout.read() == ""
        return process.wait(), lines


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("train.process.malloc", ["train.vit"]),  # before the restart with huge pages
        ("numpy", ["train.vit"]),
        ("jax", ["train.vit"]),
        pytest.param("flax", ["train.vit"], marks=pytest.mark.slow),
        ("jax", ["train.predict", "runs/x", "x.png"]),
        pytest.param("jax", ["train.export", "runs/x"], marks=pytest.mark.slow),
        ("train.process.errors", ["train.prepare", "mnist"]),
        ("train.process.errors", ["train.runs"]),
        ("train.process.errors", ["train"]),
        ("numpy", ["w2jax.convert", "x.npz", "y.npz"]),
        ("jax", ["w2jax.convert", "x.npz", "y.npz"]),
    ],
)
def test_ctrl_c_during_the_imports_prints_no_traceback(module, command):
    status, lines = interrupted(module, *command)
    assert status == 130 and lines in ([], ["interrupted by Ctrl-C\n"])


def test_ctrl_c_during_a_conversion_prints_one_line_and_leaves_no_file(tmp_path):
    """The main function waits in the middle of its work."""
    program = f"""import os, signal
from w2jax.files import write_files_atomic
from w2jax.interrupt import run_main
from pathlib import Path
def main():
    write_files_atomic({{Path({str(tmp_path)!r}, "a"): lambda file: signal.raise_signal(signal.SIGINT)}})
run_main(main)"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted by Ctrl-C\n") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["w2jax", "w2jax.convert", "train", "train.process.malloc"])
def test_importing_a_package_does_not_change_ctrl_c(module):
    program = f"import signal, {module}; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", program, "train.vit"], cwd=ROOT, check=True)


def test_an_ignored_ctrl_c_stays_ignored():
    command = 'trap \'\' INT; exec "$0" -c \'import signal, sys; sys.argv = ["-m"]; sys.orig_argv = ["-mtrain"]; '
    command += "import train; assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN'"
    subprocess.run(["bash", "-c", command, sys.executable], cwd=ROOT, env={"W2JAX_HUGE_PAGES": "0"}, check=True)
