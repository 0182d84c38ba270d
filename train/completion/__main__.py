"""Prints a shell script for TAB completion of all programs: python -m train.completion bash|zsh

- python -m train.completion bash > ~/.w2jax.bash
- python -m train.completion zsh > ~/.w2jax.zsh

Add `source ~/.w2jax.bash` to ~/.bashrc, or `source ~/.w2jax.zsh` to ~/.zshrc.
After `python -m train.`, the script completes programs, presets, options, their choices and file names.
"""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from train import export, prepare, runs
from train.config.cli import read_options, run_main
from train.config.tasks import task_names, task_presets
from train.data.locate import PREPARABLE
from train.demo import __main__ as demo
from train.dryrun import __main__ as dryrun
from train.predict import __main__ as predict
from train.report import __main__ as report

Shell = Literal["bash", "zsh"]


class CompletionSpec(NamedTuple):
    """What the command line of a program accepts."""

    options: type
    """The dataclass of the program's options."""
    words: Sequence[str] = ()
    """The choices for the first argument. If empty, files are completed."""
    tyro_arguments: Mapping[str, Any] = {}
    """Other arguments of `tyro.cli`."""


def specs() -> dict[str, CompletionSpec]:
    """Every program by its name after `python -m`. Options that depend on the first argument have the key NAME.WORD."""
    no_pairs = {"config": (tyro.conf.FlagCreatePairsOff,)}
    tasks = {}
    for task in task_names():
        presets = task_presets(task)
        sample = next(iter(presets.values())).config
        tasks[f"train.{task}"] = CompletionSpec(type(sample), tuple(presets), {"default": sample})
    return tasks | {
        "train.predict": CompletionSpec(predict.Options, tyro_arguments=no_pairs),
        "train.demo": CompletionSpec(demo.Options, tyro_arguments=no_pairs),
        "train.export": CompletionSpec(export.Options, tyro_arguments=no_pairs),
        "train.prepare": CompletionSpec(prepare.DownloadOptions, (*PREPARABLE, "folder"), no_pairs),
        "train.prepare.folder": CompletionSpec(prepare.FolderOptions, tyro_arguments=no_pairs),
        "train.report": CompletionSpec(report.Options),
        "train.runs": CompletionSpec(runs.Options, tyro_arguments=no_pairs),
        "train.dryrun": CompletionSpec(dryrun.Options, task_names(), no_pairs),
        "train.completion": CompletionSpec(Options, ("bash", "zsh")),
    }


def script(shell: Shell) -> str:
    """The script that the shell sources: tyro's completion of each program, and a function that selects the program."""
    specs_by_program = specs()
    words = [f"    {name}) echo {' '.join(spec.words)} ;;" for name, spec in specs_by_program.items() if spec.words]
    names = " ".join(name for name in specs_by_program if name.count(".") == 1)
    parts = [f'_w2jax_words() {{\n  case $1 in\n    "") echo {names} ;;', *words, "  esac\n}"]
    for name, spec in specs_by_program.items():
        completion = _tyro_completion(name, spec, shell)
        # For zsh, tyro writes a file for autoload, which is the body of a function.
        parts.append(completion if shell == "bash" else f"_w2jax:{name}() {{\n{completion}\n}}")
    return "\n".join([*parts, (Path(__file__).parent / f"find.{shell}").read_text()])


def _tyro_completion(name: str, spec: CompletionSpec, shell: Shell) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(spec.options, prog=name, args=["--tyro-print-completion", shell], **spec.tyro_arguments)
    # In bash, each further line of an option's help text would be offered as a completion.
    return re.sub(
        "^COMPLETION_SPEC = .*$", lambda line: line[0].replace("\\n", " "), printed.getvalue(), flags=re.MULTILINE
    )


@dataclass(frozen=True)
class Options:
    """Prints a shell script for TAB completion of all programs."""

    shell: tyro.conf.Positional[Shell]
    """Shell that the script is for."""


def main(arguments: Sequence[str] | None = None) -> None:
    print(script(read_options(Options, "train.completion", arguments, __doc__).shell))


if __name__ == "__main__":
    run_main(main)
