"""Reads the command line: a preset and options that change it. A mistake gives a one-line error."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from signal import SIG_DFL, SIG_IGN, SIGINT
from typing import NoReturn, TypeVar, cast

from configs.base import Config, Preset
from configs.options import Rule
from train.config.flags import flags_of, without_values
from train.config.flat import differing
from train.config.habits import hint
from train.config.run_name import default_folder
from train.config.tyro_errors import plain_message
from train.process import signals
from train.process.errors import Interrupted, RunStopped, UserError
from train.process.home import with_homes
from train.process.streams import lasting
from w2jax.text import nearest, printable, shorten

_LONGEST = 5000  # characters of an error; a list of differing parameters may need thousands

AnyConfig = TypeVar("AnyConfig", bound=Config)
Options = TypeVar("Options")


def parse(
    task: str,
    presets: Mapping[str, Preset[AnyConfig]],
    arguments: Sequence[str] | None = None,
    resolve: Callable[[AnyConfig, AnyConfig, Collection[str]], AnyConfig] = lambda config, default, given: config,
) -> AnyConfig:
    """The config of `python -m train.TASK [PRESET] [--options]`. `preset_of` has the default preset.

    `resolve(config, preset's config, given)` completes the config with what is not on the command line, such as a model
    file. `given` are the options on the command line, such as --run.steps.

    Raises:
        UserError: a preset or option is unknown (the message suggests the nearest one), or a value is invalid.
        SystemExit: after printing the help.
    """
    # Imported late because they import JAX, which programs that only read files do not need.
    from train.config.help import short_help
    from train.config.options import names_with, options_of
    from train.config.tree import flat_config

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    preset = preset_of(arguments, presets)
    if arguments[:1] == [preset]:
        arguments.pop(0)
    elif preset != "sample":
        print(f"preset {preset}, because --init-from is given without a preset", file=sys.stderr)
    if preset not in presets:
        close = nearest(preset, presets)
        advice = f'Did you mean "{close[0]}"?' if close else f"Choose one of {', '.join(presets)}"
        raise UserError(f'there is no preset "{preset}". {advice}')
    default = presets[preset].config
    if arguments and arguments[0].startswith("--tyro-"):
        raise UserError(
            f'there is no option "{arguments[0]}". For shell completion, run python -m train.completion --help'
        )
    if {"-h", "--help"} & set(arguments):
        print(short_help(task, presets, preset))
        raise SystemExit(0)
    import tyro  # Imported late, so that the short help is fast.

    options = options_of(default).values()
    arguments = without_values(arguments, [option.flag for option in options if option.type is bool], True)
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
    if unknown and unknown[0].lower() in ("true", "false"):
        raise UserError(f'unexpected argument "{unknown[0]}". To set an option to it, write --OPTION={unknown[0]}')
    if unknown:
        advice = hint(unknown[0].split("=")[0], options) or f"See python -m train.{task} --help-all"
        raise UserError(f'there is no option "{unknown[0]}". {advice}')
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    config = with_homes(_with_one_length(config, given))
    values, of_preset = flat_config(config), flat_config(default)
    changed = differing(values, of_preset, ignored=names_with(config, Rule.CHANGEABLE_ON_RESUME))
    folder = config.run.dir or default_folder(
        task, preset, {name: values.get(name, "absent") for name in changed}, values.keys() | of_preset.keys()
    )
    return resolve(replace(config, run=replace(config.run, dir=folder)), default, given)


def preset_of(arguments: Sequence[str], presets: Collection[str]) -> str:
    """The preset on a command line: its first word, else "finetune" if there are initial weights, else "sample"."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0]
    has_weights = any(argument.replace("_", "-").startswith("--init-from") for argument in arguments)
    return "finetune" if has_weights and "finetune" in presets else "sample"


def _with_one_length(config: AnyConfig, given: Collection[str]) -> AnyConfig:
    """The config with the length that the command line gives: --run.steps replaces the epochs of a preset.

    Raises:
        UserError: the command line has both --run.steps and --run.epochs.
    """
    if "--run.steps" not in given or config.run.epochs is None:
        return config
    if "--run.epochs" in given:
        raise UserError(
            f"--run.epochs must be left out if --run.steps is given, got {config.run.epochs:g} and "
            f"{config.run.steps}. Pass only one of them"
        )
    return replace(config, run=replace(config.run, epochs=None))


def read_options(
    kind: type[Options], program: str, arguments: Sequence[str] | None, description: str | None = None
) -> Options:
    """The options of `python -m PROGRAM` as a dataclass of type `kind`. Training programs use `parse` instead.

    Raises:
        UserError: an option is unknown or missing, or a value is invalid.
        SystemExit: after printing the help.
    """
    import tyro  # Imported late, as in `parse`.

    arguments = sys.argv[1:] if arguments is None else arguments
    help_if_requested(kind, program, arguments, description)
    with one_line_errors():
        options = tyro.cli(
            kind,
            args=without_values(arguments, flags_of(kind), False),
            prog=f"python -m {program}",
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        )
    return with_homes(options)


def help_if_requested(kind: type, program: str, arguments: Sequence[str], description: str | None = None) -> None:
    """Prints the help of a program (`program_help`) and raises SystemExit if the arguments contain -h or --help."""
    if {"-h", "--help"} & set(arguments):
        from train.config.program_help import program_help

        print(program_help(kind, program, description))
        raise SystemExit(0)


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
    signals.raise_on_signals()
    interrupted = None
    try:
        status = _status(main)
    except KeyboardInterrupt as error:
        status, interrupted = None, error
    signals.is_ending = True  # No function is called before this line, because Python may handle a signal at a call.
    if interrupted:
        signals.set_handlers(SIG_IGN)
        if not isinstance(interrupted, Interrupted):  # Raised by a library, such as W&B's prompt for a key.
            interrupted = Interrupted(SIGINT)
        status = 128 + interrupted.number
        print(printable(f"interrupted by {interrupted}"), file=sys.stderr)
    else:
        signals.set_handlers(SIG_DFL)
    _leave(status)


def _status(main: Callable[[], int | None]) -> int | None:
    """Runs a program's main, prints its errors and returns its status.

    Raises:
        Interrupted: a signal came, also while an error was printed.
    """
    # Names of files may contain characters that the terminal's encoding lacks.
    cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr, discard=True)
    try:
        status = main()
        sys.stdout.flush()
        return status
    except UserError as error:
        print(printable(shorten(f"error: {error}", _LONGEST)), file=sys.stderr)
        return 2
    except RunStopped as error:
        print(printable(shorten(f"stopped: {error}", _LONGEST)), file=sys.stderr)
    except OSError as error:
        place = "the current folder or a file" if error.filename is None else error.filename
        print(printable(f"stopped: cannot use {place}: {error.strerror or error}"), file=sys.stderr)
    except Exception:
        jax = sys.modules.get("jax")
        if jax is None or not jax.distributed.is_initialized():
            raise
        from train.process.distributed import PROCESS_LOST

        traceback.print_exc()
        print(PROCESS_LOST, file=sys.stderr)
    return 1


def _leave(status: int | None) -> NoReturn:
    """Exits; if `status` is an error, without any cleanup.

    A normal exit after an error has two problems. One of several processes would wait for the other processes. And XLA
    threads that are still running, for example after a signal, would end the process with a segmentation fault.
    """
    if status:
        with contextlib.suppress(RunStopped):  # A full disk. The error that set the status is printed.
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
