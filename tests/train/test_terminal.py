"""Text from files of other people must not control the terminal: every program prints escape codes as visible text."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.loggers.console import RunConsole
from train.predict import Predictor
from train.predict.output import print_classes
from w2jax.convert.__main__ import _print_table

ROOT = Path(__file__).parents[2]
EVIL = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb"
SHOWN = r"a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb"


@pytest.mark.parametrize("terminal", [False, True])
def test_messages_metrics_and_the_table_of_a_run(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    console = RunConsole(2, 0)
    console.say(f"the last process ({EVIL}) was killed")
    console.line(1, "test", {EVIL: 1.0})
    console.table({f"test {EVIL}": "1", "run folder": f"[bold]{EVIL}"})
    told = capsys.readouterr().out
    own = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", told)  # the table's colors
    assert own.replace("\n", "").isprintable() and own.count(SHOWN[:8]) == 4 and "[bold]" in own
    assert "\x1b[2J" not in told


@pytest.mark.parametrize("kind", ["UserError", "RunStopped"])
def test_the_error_that_ends_a_program(kind):
    """An error may have several lines, such as a list of tensors."""
    code = f"from train.config.cli import run_main; from train.process.errors import {kind}\n"
    code += f"def main(): raise {kind}({EVIL + chr(10) + 'second'!r})\nrun_main(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == [f"{'error' if kind == 'UserError' else 'stopped'}: {SHOWN}", "second"]


def test_labels_of_classes_and_notes_of_damaged_checkpoints(capsys):
    note: Any = f"skipped damaged checkpoint, {EVIL}"
    nothing: Any = None
    predictor = Predictor(nothing, nothing, (1, 1, 1), [EVIL, "b"], note, nothing)
    print_classes(predictor, [Path(f"{EVIL}.png")], np.array([[0.75, 0.25]]), 2, False)
    told = "".join(capsys.readouterr().out.split())  # The table may break a line.
    assert told.isprintable() and told.count("\\x1b[2J") == 3


def test_the_table_of_a_converted_file(capsys):
    _print_table({"read": EVIL})
    assert capsys.readouterr().out == f"read        {SHOWN}\n"
