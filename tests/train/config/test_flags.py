"""Flags may have a value, as in the command lines of W&B's sweeps."""

import pytest
from tasks import TASKS, presets

from train import prepare, runs
from train.config.cli import parse, read_options
from train.config.flags import flags_of
from train.config.options import options_of
from train.config.tree import flat_config
from train.dryrun import __main__ as dryrun
from train.predict.__main__ import Options as PredictOptions
from train.process.errors import UserError


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("word", "value"), [("True", True), ("true", True), ("TRUE", True), ("False", False), ("false", False)]
)
def test_every_flag_of_a_training_takes_true_and_false(task, word, value):
    options = options_of(presets(task)["tiny"].config).values()
    flags = [option for option in options if isinstance(option.value, bool)]
    assert len(flags) >= 3
    for given in ([f"{flag.flag}={word}" for flag in flags], [f"--{flag.name}={word}" for flag in flags]):
        config = flat_config(parse(task, presets(task), ["tiny", *given], lambda config, *_: config))
        assert [config[flag.name] for flag in flags] == [value] * len(flags)


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        (PredictOptions, ["run"]),
        (prepare.DownloadOptions, []),
        (prepare.FolderOptions, ["--from", "a", "--name", "b"]),
        (runs.Options, []),
        (dryrun.Options, ["--topology", "gpu"]),
    ],
)
def test_every_flag_of_another_program_takes_true_and_false(kind, needed):
    assert flags_of(kind)
    for flag in flags_of(kind):
        name = flag.removeprefix("--").replace("-", "_")

        def value(*words, name=name):
            return getattr(read_options(kind, "program", [*needed, *words]), name)

        assert value(f"{flag}=True") is value(f"--{name}=true") is value(flag) is True
        assert value(f"{flag}=False") is value(flag, f"{flag}=false") is value() is False


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--augment.flip=yes", "--augment.flip must be True or False, got yes"),
        ("--model.class_token=", "--model.class-token must be True or False, got no value"),
        ("--augment.flip True", 'unexpected argument "True". To set an option to it, write --OPTION=True'),
        ("--augment.no-flip=false", 'unexpected argument "false". To set an option to it, write --OPTION=false'),
    ],
)
def test_another_value_of_a_flag_is_refused(word, message):
    with pytest.raises(UserError) as error:
        parse("vit", presets("vit"), ["tiny", *word.split(" ")])
    assert str(error.value) == message


def test_the_last_of_several_values_of_a_flag_counts():
    for words, value in ((["=True", "=False"], False), (["=False", "=True"], True), (["", "=False"], False)):
        arguments = [f"--augment.flip{word}" for word in words]
        assert parse("vit", presets("vit"), ["tiny", *arguments]).augment.flip is value
