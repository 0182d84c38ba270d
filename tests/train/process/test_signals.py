"""A signal ends a run after the current step, with a checkpoint; the same command resumes bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import interrupted_at, lines, small, with_run

from train.engine.loop import fit
from train.process.errors import Interrupted
from train.process.signals import SIGNALS
from train.vit import make_task

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def default_handlers():
    """Ensures that no signal is ignored, which tests would inherit from nohup or a shell's background job."""
    outer = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in outer.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    config = with_run(small("", workers=0), tmp_path_factory.mktemp("whole") / "run", steps=8, eval_every=4)
    return config, fit(config, make_task)


@pytest.mark.parametrize(
    ("moment", "number", "done"),
    [
        (("step", 3), signal.SIGINT, 3),
        pytest.param(("step", 4), signal.SIGTERM, 4, marks=pytest.mark.slow),  # a save and an evaluation are due here
        pytest.param(("step", 8), signal.SIGHUP, 8, marks=pytest.mark.slow),
        pytest.param(("test", 1), signal.SIGINT, 4, marks=pytest.mark.slow),  # after a save, before its evaluation ends
        pytest.param(("test", 2), signal.SIGTERM, 8, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_interrupted_run_is_saved_and_resumes_to_the_same_bits(whole, tmp_path, monkeypatch, moment, number, done):
    expected_config, expected = whole
    config = with_run(expected_config, tmp_path / "run")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupted_at(patch, moment, number)
        with pytest.raises(Interrupted) as error:
            fit(config, make_task)
    assert error.value.number == number
    assert f"Last checkpoint: step {done} in {tmp_path / 'run'}. Run the same command to resume" in str(error.value)
    assert signal.getsignal(number) is before
    for a, b in zip(jax.tree.leaves(fit(config, make_task)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert lines(config) == lines(expected_config)
    assert not (tmp_path / "run" / "lock").exists()


@pytest.mark.slow
def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    """The first process ends when it gets a signal."""
    folder = tmp_path / "run"
    options = ["tiny", "--run.dir", str(folder), "--run.steps", "1000000", "--run.log-every", "5"]
    command = [sys.executable, "-m", "train.vit", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            waited = time.monotonic()
            while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
                assert time.monotonic() - waited < 200 and process.poll() is None
                time.sleep(0.05)
            second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert second.returncode == 2 and f"is in use by process {process.pid} on" in second.stderr
            os.kill(process.pid, signal.SIGTERM)
            _, words = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == 143
    assert words.startswith("interrupted by SIGTERM. Last checkpoint: step ") and words.count("\n") == 1
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]


SWALLOWED = """
import gc, signal, time
from train.config.cli import run_main

def main():
    calls = []
    def callback(*_):
        if not calls:
            calls.append(1)
            signal.raise_signal(signal.SIGTERM)
    gc.callbacks.append(callback)
    gc.collect()
    assert calls
    time.sleep(60)

run_main(main)
"""


def test_a_signal_during_a_callback_ends_the_program_too():
    result = subprocess.run([sys.executable, "-c", SWALLOWED], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (result.returncode, result.stderr) == (143, "interrupted by SIGTERM\n")
