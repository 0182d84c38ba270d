"""Completion by TAB in bash and zsh, of every program here: python -m train.completion bash|zsh

- python -m train.completion bash > ~/.w2jax.bash    # and in ~/.bashrc: source ~/.w2jax.bash
- python -m train.completion zsh > ~/.w2jax.zsh      # and in ~/.zshrc: source ~/.w2jax.zsh

What it prints completes `python -m train.TAB`, presets, options, their choices, and files.
"""

import contextlib
import importlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from train import export, predict, prepare, runs
from train.config.cli import read_options, run_main
from train.config.tasks import task_names
from train.data.locate import PREPARABLE
from train.dryrun import __main__ as dryrun
from train.report import __main__ as report

Shell = Literal["bash", "zsh"]


class Program(NamedTuple):
    """A program as its command line is to be completed."""

    options: type
    """Their dataclass."""
    words: Sequence[str] = ()
    """What its first argument can be; none: it takes files."""
    given: Mapping[str, Any] = {}
    """Further arguments of `tyro.cli`."""


def programs() -> dict[str, Program]:
    """All of them by what stands behind `python -m`; what has other options by its first word, as NAME.WORD."""
    no_pairs = {"config": (tyro.conf.FlagCreatePairsOff,)}
    found = {}
    for task in task_names():
        presets = importlib.import_module(f"configs.{task}").PRESETS
        found[f"train.{task}"] = Program(
            type(presets["sample"].config), tuple(presets), {"default": presets["sample"].config}
        )
    return found | {
        "train.predict": Program(predict.Options, given=no_pairs),
        "train.export": Program(export.Options),
        "train.prepare": Program(prepare.Published, (*PREPARABLE, "folder"), no_pairs),
        "train.prepare.folder": Program(prepare.Own, given=no_pairs),
        "train.report": Program(report.Options),
        "train.runs": Program(runs.Options, given=no_pairs),
        "train.dryrun": Program(dryrun.Options, task_names(), no_pairs),
        "train.completion": Program(Options, ("bash", "zsh")),
    }


def script(shell: Shell) -> str:
    """What a shell is to source: tyro's completion of each program, and what finds the program in the command line."""
    found = programs()
    words = [f"    {name}) echo {' '.join(program.words)} ;;" for name, program in found.items() if program.words]
    names = " ".join(name for name in found if name.count(".") == 1)
    parts = [f'_w2jax_words() {{\n  case $1 in\n    "") echo {names} ;;', *words, "  esac\n}"]
    for name, program in found.items():
        by_tyro = _by_tyro(name, program, shell)
        # In zsh it is made to be a file, which is the body of a function.
        parts.append(by_tyro if shell == "bash" else f"_w2jax:{name}() {{\n{by_tyro}\n}}")
    return "\n".join([*parts, (Path(__file__).parent / f"find.{shell}").read_text()])


def _by_tyro(name: str, program: Program, shell: Shell) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(program.options, prog=name, args=["--tyro-print-completion", shell], **program.given)
    # The further lines of an option's text, which the script would offer as words of their own.
    return re.sub(
        "^COMPLETION_SPEC = .*$", lambda spec: spec[0].replace("\\n", " "), printed.getvalue(), flags=re.MULTILINE
    )


@dataclass(frozen=True)
class Options:
    """Completion by TAB in bash and zsh."""

    shell: tyro.conf.Positional[Shell]
    """Whose script to print."""


def main(arguments: Sequence[str] | None = None) -> None:
    print(script(read_options(Options, "train.completion", arguments, __doc__).shell))


if __name__ == "__main__":
    run_main(main)
