"""The help of every program fits into 80 columns and explains every option."""

import argparse
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from benchmarks.__main__ import main as benchmarks
from train.__main__ import main as list_programs
from train.__main__ import programs
from train.config.program_help import program_help
from w2jax.convert.__main__ import _parser


@dataclass(frozen=True)
class Options:
    """What the program does."""

    place: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PLACE")]
    """Where
    it is."""
    kind: Literal["a", "b"] | None = None
    """A kind. Default: both."""
    seed: int = 0
    """A seed."""
    loud: bool = False
    """Be loud."""
    data_dir: Annotated[tuple[str, ...], tyro.conf.arg(name="from", aliases=("--source",), metavar="DIR")] = ("x", "y")
    """A folder with a description that is too long for one line of 53 columns."""


HELP = """\
usage: python -m train.x PLACE [OPTIONS]

What the program does.

arguments:
  PLACE                    Where it is. (required)

options:
  -h, --help               Show this help and exit.
  --kind a|b               A kind. Default: both.
  --seed INT               A seed. (default: 0)
  --loud                   Be loud.
  --from, --source DIR     A folder with a description that is too long for one
                           line of 53 columns. (default: x y)"""


def test_a_help_has_every_argument_and_its_default():
    assert program_help(Options, "train.x", None) == HELP


def test_paragraphs_are_wrapped_and_examples_stay_as_they_are():
    about = f"Does this: python -m train.x PLACE\n\n    an  example\n\n- a  list\n\n{'word ' * 30}"
    lines = program_help(Options, "train.x", about).splitlines()
    assert lines[2:8] == ["Does this.", "", "    an  example", "", "- a  list", ""]
    assert lines[8:11] == [" ".join(["word"] * 16), " ".join(["word"] * 14), ""]


@pytest.mark.parametrize("command", [*programs(), "prepare mnist", "prepare folder", "dryrun vit"])
def test_the_help_of_a_program_fits_into_80_columns(command, capsys, monkeypatch):
    name, *arguments = command.split()
    module = importlib.import_module(f"train.{name}")
    if not hasattr(module, "main"):
        module = importlib.import_module(f"train.{name}.__main__")
    monkeypatch.setattr("sys.argv", [name, *arguments, "--help"])
    try:
        module.main()
    except SystemExit as end:
        assert end.code == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80 and "(default: None)" not in told and "\n\n\n" not in told.strip()
    if not arguments:
        assert has_two_examples_first(told, f"train.{name}")


def has_two_examples_first(told, program):
    """Whether nothing but the usage and what the program does is above two examples."""
    lines = [line.strip() for line in told.splitlines() if not line.startswith("usage: ")]
    examples = [number for number, line in enumerate(lines) if line.startswith((f"python -m {program}", "- python -m"))]
    return examples[:2] == [examples[0], examples[0] + 1] and examples[0] <= 4


def test_the_list_of_programs_fits_into_80_columns(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train"])
    list_programs()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_help_of_the_converter_fits_into_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser: argparse.ArgumentParser = _parser()
    told = parser.format_help()
    assert max(map(len, told.splitlines())) <= 80 and has_two_examples_first(told, "w2jax.convert")


def test_the_help_of_the_benchmarks_has_two_examples_that_can_be_parsed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit):
        benchmarks()
    told = capsys.readouterr().out
    assert has_two_examples_first(told, "benchmarks")
    parse, parsed = argparse.ArgumentParser.parse_args, []

    def stop(parser):
        parsed.append(parse(parser))
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for line in [line.split() for line in told.splitlines() if line.startswith("  python -m benchmarks ")]:
        monkeypatch.setattr("sys.argv", line[2:])
        with pytest.raises(SystemExit) as end:
            benchmarks()
        assert end.value.code == 0
    assert len(parsed) == 2
