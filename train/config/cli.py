"""Reads the command line: a preset and options that change it. A mistake gives a one-line error."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn, TypeVar

from configs.base import Config, Preset
from configs.options import Rule
from train.config.flat import differing
from train.config.run_name import default_folder
from train.config.tyro_errors import plain_message
from train.process.errors import Interrupted, RunStopped, UserError
from train.process.signals import ignore_signals, raise_on_signals
from w2jax.text import nearest

AnyConfig = TypeVar("AnyConfig", bound=Config)
Options = TypeVar("Options")


def parse(
    task: str,
    presets: Mapping[str, Preset[AnyConfig]],
    arguments: Sequence[str] | None = None,
    resolve: Callable[[AnyConfig, AnyConfig], AnyConfig] = lambda config, default: config,
) -> AnyConfig:
    """The config of `python -m train.TASK [PRESET] [--options]`. The default preset is "sample".

    `resolve(config, preset's config)` completes the config with what is not on the command line, such as a model file.

    Raises:
        UserError: a preset or option is unknown (the message suggests the nearest one), or a value is invalid.
        SystemExit: after printing the help.
    """
    # Imported late because they import JAX, which programs that only read files do not need.
    from train.config.help import short_help
    from train.config.options import names_with, options_of
    from train.config.tree import flat_config

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    preset = "sample" if not arguments or arguments[0].startswith("-") else arguments.pop(0)
    if preset not in presets:
        hint = _did_you_mean(preset, presets, f"Choose one of {', '.join(presets)}")
        raise UserError(f'there is no preset "{preset}". {hint}')
    default = presets[preset].config
    if arguments and arguments[0].startswith("--tyro-"):
        raise UserError(
            f'there is no option "{arguments[0]}". For shell completion, run python -m train.completion --help'
        )
    if {"-h", "--help"} & set(arguments):
        print(short_help(task, presets, preset))
        raise SystemExit(0)
    import tyro  # Imported late, so that the short help is fast.

    with one_line_errors():
        config, unknown = tyro.cli(
            type(default),
            default=default,
            args=["--help"] if "--help-all" in arguments else arguments,
            prog=f"python -m train.{task} {'[PRESET]' if preset == 'sample' else preset}",
            description=f"{type(default).__doc__}\n\nPRESET: {', '.join(presets)} (default: sample).",
            return_unknown_args=True,
        )
    if unknown and unknown[0] in presets:
        raise UserError(
            f'the preset must come first and only once, got "{unknown[0]}" after other arguments. '
            f"Run python -m train.{task} {unknown[0]} [--options]"
        )
    if unknown:
        flags = [option.flag for option in options_of(config).values()]
        hint = _did_you_mean(unknown[0].split("=")[0], flags, f"See python -m train.{task} --help-all")
        raise UserError(f'there is no option "{unknown[0]}". {hint}')
    values, of_preset = flat_config(config), flat_config(default)
    changed = differing(values, of_preset, ignored=names_with(config, Rule.CHANGEABLE_ON_RESUME))
    folder = config.run.dir or default_folder(
        task, preset, {name: values.get(name, "absent") for name in changed}, values.keys() | of_preset.keys()
    )
    return resolve(replace(config, run=replace(config.run, dir=folder)), default)


def read_options(
    kind: type[Options], program: str, arguments: Sequence[str] | None, description: str | None = None
) -> Options:
    """The options of `python -m PROGRAM` as a dataclass of type `kind`. Training programs use `parse` instead.

    Raises:
        UserError: an option is unknown or missing, or a value is invalid.
        SystemExit: after printing the help.
    """
    import tyro  # Imported late, as in `parse`.

    with one_line_errors():
        return tyro.cli(
            kind,
            args=arguments,
            prog=f"python -m {program}",
            description=description,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        )


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns tyro's framed error messages into a UserError of one line. Tyro's help passes through."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            yield
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise UserError(plain_message(errors.getvalue())) from None


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a program's main and exits with its status: 0 done, 1 run stopped, 2 user error, 128 + N after signal N."""
    raise_on_signals()
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except RunStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        status = 1
    except Interrupted as error:
        ignore_signals()
        print(f"interrupted by {error}", file=sys.stderr)
        status = 128 + error.number
    except Exception:
        jax = sys.modules.get("jax")
        if jax is None or not jax.distributed.is_initialized():
            raise
        from train.process.distributed import PROCESS_LOST

        traceback.print_exc()
        print(PROCESS_LOST, file=sys.stderr)
        status = 1
    _leave(status)


def _leave(status: int | None) -> NoReturn:
    """Exits; if `status` is an error, without any cleanup.

    A normal exit after an error has two problems. One of several processes would wait for the other processes. And XLA
    threads that are still running, for example after a signal, would end the process with a segmentation fault.
    """
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    close = nearest(name, known)
    return f'Did you mean "{close[0]}"?' if close else otherwise
