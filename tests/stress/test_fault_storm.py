"""A round of the fault storm loses nothing, and its checks see what is lost (see fault_storm.py)."""

import os
import random
import re
import subprocess
import sys

import pytest

from tests.stress.fault_storm import KINDS
from tests.stress.faults.damage import harm
from tests.stress.running import ROOT, Broken, Command
from tests.stress.trial import Outcome, Reference, Trial, changes, snapshot


@pytest.mark.slow
def test_a_round_of_faults_loses_nothing():
    # The autoencoder is left out, because its metrics at the end would take most of the time.
    command = [sys.executable, "-m", "tests.stress.fault_storm", "lstm", "mha", "vit", "--seconds", "30"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2400, check=False)
    print(ended.stdout, ended.stderr)  # shown if the test fails, with the commands that repeat the lost trials
    assert ended.returncode == 0
    tried = {name: int(count) for name, count in re.findall(r"^(\w[\w ]+?) +(\d+) +\d+", ended.stdout, re.MULTILINE)}
    assert tried.keys() == KINDS.keys() and min(tried.values()) >= 1


@pytest.fixture
def trial(tmp_path):
    reference = Reference(tmp_path / "whole", tmp_path / "stopped", 0.0)
    return Trial(random.Random(0), Command("lstm", ()), reference, tmp_path, tmp_path / "image.png", False, [])


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(1, "", "Traceback (most recent call last):\n  ...\nKeyError: 'step'\n"),
        Outcome(0, "Traceback (most recent call last):\n", ""),
        Outcome(2, "", "error: first line\nand a second\n"),
        Outcome(1, "", ""),
        Outcome(-11, "", "Segmentation fault\n"),
    ],
)
def test_a_program_that_does_not_end_with_one_line_is_seen(trial, outcome):
    with pytest.raises(Broken):
        trial.checked("training", outcome)


def test_a_program_may_finish_or_refuse_with_one_line(trial):
    assert trial.checked("training", Outcome(0, "step 24\n", "")).finished
    assert not trial.checked("training", Outcome(2, "step 2\n", "error: the run folder is a link\n")).finished


def test_a_false_claim_of_a_checkpoint_is_seen(trial, tmp_path):
    claim = Outcome(1, "", f"stopped: cannot write. Last checkpoint: step 1,200 in {tmp_path}\n")
    none = Outcome(1, "", f"stopped: cannot write. No checkpoint in {tmp_path}\n")
    trial.check_claim(none, tmp_path)
    with pytest.raises(Broken, match="Last checkpoint: step 1,200"):
        trial.check_claim(claim, tmp_path)
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    for outcome in (claim, none):
        with pytest.raises(Broken, match=r"but the folder has \[6\]"):
            trial.check_claim(outcome, tmp_path)


def test_any_change_of_a_folder_is_seen(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("one")
    (tmp_path / "link").symlink_to("inner/file")
    os.mkfifo(tmp_path / "pipe")
    before = snapshot(tmp_path)
    assert changes(before, snapshot(tmp_path)) == []
    (tmp_path / "inner" / "file").write_text("two")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("inner")
    (tmp_path / "pipe").unlink()
    (tmp_path / "pipe").write_text("")
    (tmp_path / "new").mkdir()
    assert changes(before, snapshot(tmp_path)) == ["inner/file", "link", "new", "pipe"]


@pytest.mark.parametrize("seed", range(20))
def test_every_harm_changes_the_file(trial, tmp_path, seed):
    trial.rng.seed(seed)
    path = tmp_path / "file"
    path.write_bytes(content := bytes(range(100)))
    harm(trial, path)
    assert not path.exists() or path.read_bytes() != content
