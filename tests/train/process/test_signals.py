"""A signal ends a run after the current step, with a checkpoint; the same command resumes bit for bit."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs import interrupted_at, lines, small, with_run

from train.engine.checkpoint import Checkpoints
from train.engine.loop import _what_is_saved, fit
from train.process.errors import Interrupted, RunStopped
from train.process.signals import DeferredSignals, set_handled
from train.run.manifest import checkpoint_steps, damage
from train.vit import make_task

ROOT = Path(__file__).parents[3]


pytestmark = pytest.mark.usefixtures("default_handlers")


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


def test_a_second_signal_is_held_and_a_third_ends_the_run(capfd):
    with pytest.raises(Interrupted) as error, DeferredSignals() as signals, signals.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert capfd.readouterr().err == "" and signals.after(1, 1) == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err == "Saving. Send the signal again to stop without saving.\n"
        assert not signals.is_urgent and signals.after(1, 1) == signal.SIGTERM
        with pytest.raises(Interrupted) as third:
            signal.raise_signal(signal.SIGINT)
        set_handled(third.value)  # Otherwise the signal is sent again, to a later test.
        assert signals.is_urgent
    assert error.value.number == signal.SIGTERM


def test_a_signal_that_no_step_follows_ends_the_run():
    with pytest.raises(Interrupted) as error, DeferredSignals() as signals, signals.deferred():
        signal.raise_signal(signal.SIGTERM)
    assert error.value.number == signal.SIGTERM


@pytest.mark.parametrize("end", [RunStopped("a step is not finite"), Interrupted(signal.SIGINT)], ids=repr)
def test_a_run_that_ends_with_an_error_holds_signals_until_its_files_are_closed(end):
    closed = []
    with pytest.raises(type(end)) as error, DeferredSignals() as signals, file(closed), signals.deferred():
        raise end
    assert error.value is end and closed == ["file"]


@contextmanager
def file(closed):
    """A file that gets a signal while it is closed."""
    try:
        yield
    finally:
        signal.raise_signal(signal.SIGTERM)
        closed.append("file")


class Saving:
    """Checkpoints with a save in progress, and so many signals that come while the run waits for it."""

    def __init__(self, signals=0):
        self.signals, self.abandoned, self.waited = signals, False, False

    def failure(self, wait):
        for _ in range(self.signals if wait else 0):
            signal.raise_signal(signal.SIGTERM)
        self.waited = wait

    def abandon(self):
        self.abandoned = True

    def latest_step(self):
        return 7


@pytest.mark.parametrize(
    ("before", "during", "saves"),
    [(1, 0, True), (1, 1, True), (2, 0, True), (3, 0, False), (2, 1, False), (1, 2, False)],
)
def test_a_run_waits_for_its_save_until_the_third_signal(before, during, saves):
    """In both cases it prints what is saved."""
    checkpoints = Saving(during)
    with (
        pytest.raises(
            Interrupted, match=r"^SIGTERM\. Last checkpoint: step 7 in run\. Run the same command to resume$"
        ),
        DeferredSignals() as signals,
        _what_is_saved(SimpleNamespace(path="run"), checkpoints, signals),
        signals.deferred(),
    ):
        for _ in range(before):
            signal.raise_signal(signal.SIGTERM)
    assert (checkpoints.waited, checkpoints.abandoned) == (saves, not saves)


def test_a_second_signal_at_the_start_of_a_run_does_not_hide_what_is_saved():
    closed = []
    with (
        pytest.raises(Interrupted, match=r"^Ctrl-C\. Last checkpoint: step 7 in run"),
        DeferredSignals() as signals,
        file(closed),
        _what_is_saved(SimpleNamespace(path="run"), Saving(), signals),
    ):
        signal.raise_signal(signal.SIGINT)
    assert closed == ["file"]


def test_an_evaluation_ends_at_the_first_signal_and_the_second_is_held(capfd):
    with pytest.raises(Interrupted), DeferredSignals() as signals, signals.deferred():
        try:
            with signals.let_through():
                signal.raise_signal(signal.SIGINT)
                pytest.fail("the first signal had no effect")
        except Interrupted:
            signal.raise_signal(signal.SIGINT)
            assert not signals.is_urgent and capfd.readouterr().err.startswith("Saving. ")
            raise


@pytest.mark.slow
@pytest.mark.parametrize("moment", [("step", 1), ("test", 1)], ids=str)
def test_a_run_that_gets_a_signal_twice_is_saved(whole, tmp_path, monkeypatch, moment):
    """Also before its first checkpoint."""
    expected_config, expected = whole
    config = with_run(expected_config, tmp_path / "run", save_every=8)
    with monkeypatch.context() as patch:
        interrupted_at(patch, moment, signal.SIGINT)
        patch.setattr(Checkpoints, "save", signaled_first(signal.SIGINT))
        with pytest.raises(Interrupted) as error:
            fit(config, make_task)
    assert f"Last checkpoint: step {1 if moment[0] == 'step' else 4} in" in str(error.value)
    for a, b in zip(jax.tree.leaves(fit(config, make_task)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert lines(config) == lines(expected_config)


def signaled_first(number, save=Checkpoints.save):
    def signaled_save(*arguments, **options):
        signal.raise_signal(number)
        save(*arguments, **options)

    return signaled_save


SIGNALED = """
import os, signal, sys, time
import train.engine.loop
from train.config.cli import run_main
from train.lstm import main

times = int(sys.argv.pop(1))

class Signaled(train.engine.loop.Checkpoints):
    \"""Sends the signals before the checkpoint of step 20 gets its name. After three signals it takes for ever.\"""

    def _list_files(self):
        if self._saving == 20:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            time.sleep(1000 * (times == 3))
        super()._list_files()

train.engine.loop.Checkpoints = Signaled
run_main(main)
"""


def signaled_run(folder, times, steps):
    options = ["tiny", "--run.dir", str(folder), "--run.steps", steps, "--run.save-every", "10"]
    command = [sys.executable, "-c", SIGNALED, str(times), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_two_signals_during_a_save_leave_a_complete_checkpoint(tmp_path):
    first = signaled_run(tmp_path / "run", 2, "40")
    assert first.returncode == 143
    saved = max(checkpoint_steps(tmp_path / "run" / "checkpoints"))
    message, end = first.stderr.splitlines()
    assert message == "Saving. Send the signal again to stop without saving."
    assert saved >= 20 and end.startswith(f"interrupted by SIGTERM. Last checkpoint: step {saved} in ")
    assert damage(tmp_path / "run" / "checkpoints" / str(saved)) is None
    again = signaled_run(tmp_path / "run", 0, "40")
    assert f"Resumed from step {saved} in" in again.stdout


@pytest.mark.slow
def test_a_third_signal_ends_a_run_without_its_save(tmp_path):
    first = signaled_run(tmp_path / "run", 3, "40")
    assert first.returncode == 143
    assert first.stderr.splitlines()[-1].startswith("interrupted by SIGTERM. Last checkpoint: step 10 in ")
    again = signaled_run(tmp_path / "run", 0, "40")
    assert again.returncode == 0 and "Resumed from step 10 in" in again.stdout
    assert not (tmp_path / "run" / "damaged").exists()


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


@pytest.mark.parametrize("place", ["threading.Thread.start", "train.process.setup.str"])
def test_a_signal_during_the_hook_for_callbacks_ends_the_program_too(place):
    """The hook itself runs Python code, in which a second signal may come."""
    module, name = place.rsplit(".", 1)
    replacing = f"def main():\n    train.process.setup.silence_libraries(); {place} = signaled"
    program = f"""
import signal, threading, train.process.setup
wrapped = getattr({module}, "{name}", str)

def signaled(*arguments):
    {module}.{name} = wrapped
    signal.raise_signal(signal.SIGHUP)
    return wrapped(*arguments)

{SWALLOWED.replace("def main():", replacing)}
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    last = result.stderr.splitlines()[-1]
    assert (result.returncode, last) in {(143, "interrupted by SIGTERM"), (129, "interrupted by SIGHUP")}
    # If both signals come at the same time, the second one can come in a library's audit hook (the next test).
    assert result.stderr.count("\n") == 1 or result.stderr.startswith("Exception ignored in audit hook")


def test_a_signal_is_not_sent_again_after_the_run():
    """A notebook handles signals too."""
    received = []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    with DeferredSignals(), suppress(Interrupted):
        signal.raise_signal(signal.SIGINT)
    time.sleep(0.2)
    assert received == []


def test_a_signal_during_an_audit_hook_ends_the_program_too():
    """Some libraries add an audit hook. Python itself prints an exception of the hook for this event and ignores it."""
    program = f"""
import signal, sys

def audit(event, arguments):
    if event == "sys.unraisablehook" and not audited:
        audited.append(event)
        signal.raise_signal(signal.SIGHUP)

audited = []
sys.addaudithook(audit)
{SWALLOWED}
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert result.stderr.startswith("Exception ignored in audit hook")
    assert (result.returncode, result.stderr.splitlines()[-1]) == (129, "interrupted by SIGHUP")


AT_ONCE = """
import os, signal
from train.config.cli import run_main
from train.process.signals import SIGNALS

def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

run_main(main)
"""


def test_three_signals_at_once_end_the_program_with_one_message():
    """Python handles the second signal while the first one's exception ends the program."""
    result = subprocess.run([sys.executable, "-c", AT_ONCE], cwd=ROOT, capture_output=True, text=True, timeout=50)
    # Python handles the signal of the lowest number first.
    assert (result.returncode, result.stderr) == (129, "interrupted by SIGHUP\n")


@pytest.mark.slow
def test_a_keyboard_interrupt_of_a_library_ends_a_program_like_ctrl_c():
    """W&B's prompt for a key raises one."""
    program = "from train.config.cli import run_main\ndef main(): raise KeyboardInterrupt\nrun_main(main)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted by Ctrl-C\n")
