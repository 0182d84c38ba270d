"""Paths of options may begin with "~"."""

from pathlib import Path

import pytest

from configs.vit import PRESETS
from train.config.cli import parse
from train.export import Options
from train.process.errors import UserError
from train.process.home import with_homes


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))


def test_every_path_of_a_training_is_expanded(tmp_path):
    """A shell leaves "~" as it is in --run.dir=~/x."""
    config = parse("vit", PRESETS, ["tiny", "--run.dir=~/runs/a", "--data.dir=~/data", "--init-from", "~/a.npz"])
    assert config.run.dir == f"{tmp_path}/runs/a" and config.data.dir == f"{tmp_path}/data"
    assert config.init_from == f"{tmp_path}/a.npz"
    assert config.model == PRESETS["tiny"].config.model


def test_every_path_of_another_program_is_expanded(tmp_path):
    assert with_homes(Options(Path("~/run"), "timm", Path("a~b"))) == Options(tmp_path / "run", "timm", Path("a~b"))


def test_the_home_of_an_unknown_user_is_refused():
    with pytest.raises(UserError, match=r"got ~nobody-has-this-name/x\. Write the absolute path"):
        with_homes(Options(Path("~nobody-has-this-name/x")))
