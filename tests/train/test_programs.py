"""python -m train lists the programs."""

import importlib
import subprocess
import sys

import pytest
from tasks import TASKS

from train.__main__ import main, programs
from train.completion.__main__ import specs
from train.process.errors import UserError


def test_all_programs_are_listed_with_one_sentence_each():
    listed = programs()
    assert list(listed)[: len(TASKS)] == TASKS
    assert {f"train.{name}" for name in listed} == {name for name in specs() if name.count(".") == 1}
    for name, about in listed.items():
        assert about[0].isupper() and 15 < len(about) < 80 and "python" not in about, name
        module = importlib.import_module(f"train.{name}")
        assert hasattr(module, "main") or hasattr(importlib.import_module(f"{module.__name__}.__main__"), "main")


@pytest.mark.slow
def test_the_list_is_printed_in_any_folder(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)  # a folder of photos with the name of the package
    done = subprocess.run([sys.executable, "-m", "train"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m train.PROGRAM [ARGUMENTS]\n")
    assert "\n  vit         Trains a Vision Transformer that classifies images\n" in done.stdout
    assert "\n  dryrun      Compiles the training step of a config for a TPU\n" in done.stdout


@pytest.mark.parametrize(
    ("argument", "advice"),
    [("vit", "Run python -m train.vit"), ("xyz", "Run python -m train for the list of programs")],
)
def test_a_program_as_an_argument_is_refused(argument, advice, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", argument])
    with pytest.raises(UserError) as error:
        main()
    assert str(error.value) == f"the program must be written as train.PROGRAM, got the argument '{argument}'. {advice}"
