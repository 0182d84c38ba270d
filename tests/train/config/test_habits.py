"""Options that users know from other programs get the right hint."""

import re

import pytest
from tasks import TASKS, presets

from train.config import habits
from train.config.cli import parse
from train.config.habits import hint
from train.config.options import options_of
from train.process.errors import UserError

EPOCHS = "Use --run.epochs. Length of the run in epochs, instead of --run.steps"
RESUME = "Leave it out: the same command resumes its run. --run.dir chooses the run folder"
MODEL = "The program's name chooses the model, such as python -m train.vit, and --model.* changes it"
SCHEDULE = "The schedule is a linear warm-up and a cosine: see warmup-fraction and final-lr-fraction under --optim.*"
DEVICES = "All devices are used. --mesh.* divides the work, and JAX_PLATFORMS=cpu in the environment selects the CPU"
PATIENCE = "Early stopping: end the run after this number of evaluations in a row that do not improve the test metric"
DATA = "Use --data.name and --data.dir. To prepare a folder of images, run python -m train.prepare --help"


def options(task):
    return options_of(presets(task)["tiny"].config).values()


@pytest.mark.parametrize(
    ("task", "word", "expected"),
    [
        ("vit", "--lr", "Use --optim.learning-rate. Peak learning rate"),
        ("vit", "--learning_rate=3", "Use --optim.learning-rate. Peak learning rate"),
        (
            "aae",
            "--lr",
            "Use --optim.reconstruction.learning-rate, --optim.discriminator.learning-rate, "
            "--optim.generator.learning-rate or --optim.classification.learning-rate. Peak learning rate",
        ),
        ("vit", "--lr-schedule", SCHEDULE),
        ("vit", "--epochs", EPOCHS),
        ("mha", "--max_epochs=3", EPOCHS),
        ("vit", "--trainer.max_epochs", EPOCHS),
        ("lstm", "--resume", RESUME),
        ("vit", "--batch", "Use --run.batch-size. Examples per step, summed over all devices"),
        ("vit", "--batch_size", "Use --run.batch-size. Examples per step, summed over all devices"),
        ("vit", "-b", "Use --run.batch-size. Examples per step, summed over all devices"),
        ("vit", "--model", MODEL),
        ("vit", "--pretrained", "Use --init-from with a file, a folder or the name of a model on the Hugging Face hub"),
        ("lstm", "--pretrained", "See python -m train.lstm --help-all"),
        ("lstm", "--patch-size", "This is an option of train.vit"),
        ("aae", "--class_token", "This is an option of train.vit"),
        (
            "vit",
            "--num-classes",
            "Use --model.num-classes. V, number of classes; 0: return the pooled features instead of logits",
        ),
        ("vit", "--img-size", "Use --data.image-size HEIGHT WIDTH"),
        ("vit", "--opt", "The optimizer is AdamW, and --optim.* changes it"),
        ("vit", "--weight-decay", "Use --optim.weight-decay. Decoupled weight decay"),
        ("vit", "--wd", "Use --optim.weight-decay. Decoupled weight decay"),
        ("vit", "--output", "Use --run.dir for the folder of the run"),
        ("vit", "--data-dir", DATA),
        (
            "vit",
            "--workers",
            "Use --data.workers. Number of processes that decode a streamed split",
        ),
        ("vit", "--amp", "Use --model.dtype. Data type of activations and products; parameters stay float32"),
        ("vit", "--device", DEVICES),
        ("vit", "--gpus", DEVICES),
        ("vit", "--val-split", "Use --data.train-split and --data.test-split, such as train[:90%] and train[90%:]"),
        ("aae", "--data.validation_split", "Use --validation-split. Validation split, in TFDS notation"),
        ("vit", "--hidden_size", "Use --model.embed-dim. D, width of every token"),
        ("lstm", "--hidden_dim", "Use --model.hidden-size. Hidden width of each LSTM layer"),
        ("vit", "--dir", "Use --data.dir or --run.dir"),
        ("vit", "--run.name", "Use --run.dir for the folder of the run"),
        ("vit", "--early-stopping", f"Use --run.patience. {PATIENCE}"),
        ("vit", "--patience", f"Use --run.patience. {PATIENCE}"),
        ("vit", "--momentum", "See python -m train.vit --help-all"),
        ("lstm", "--lrr", "See python -m train.lstm --help-all"),
        ("vit", "--stepz", 'Did you mean "--run.steps"?'),
        ("vit", "--model.emb-dims", 'Did you mean "--model.embed-dim"?'),
    ],
)
def test_an_option_of_another_program_gets_a_hint(task, word, expected):
    with pytest.raises(UserError) as error:
        parse(task, presets(task), ["tiny", *([word] if "=" in word else [word, "3"])])
    assert str(error.value) == f'there is no option "{word}". {expected}'


@pytest.mark.parametrize("task", TASKS)
def test_hints_name_only_options_that_the_task_has(task):
    flags = {option.flag for option in options(task)}
    words = " ".join([*habits._NAMES.values(), *habits._SENTENCES.values(), habits._WEIGHTS]).split()
    assert len(words) == len(set(words)) + 1  # hidden-dim is another option of an LSTM than of a ViT.
    for word in words:
        advice = hint(f"--{word}", options(task)) or ""
        for named in re.findall(r"--[a-z][\w.-]*[\w*]", advice.partition("python -m")[0]):
            is_group = named.endswith(".*") and any(flag.startswith(named[:-1]) for flag in flags)
            assert named in flags or is_group, (word, advice)


def test_every_option_in_the_table_exists_in_a_task():
    flags = [option.flag.replace("--", ".") for task in TASKS for option in options(task)]
    assert [name for name in habits._NAMES if not any(flag.endswith(f".{name}") for flag in flags)] == []


@pytest.mark.parametrize("task", TASKS)
def test_an_option_without_its_group_leads_to_the_option(task):
    for option in options(task):
        word = option.flag.rpartition(".")[2].removeprefix("--")
        if option.flag != f"--{word}" and word not in " ".join(habits._SENTENCES.values()).split():
            assert option.flag in str(hint(f"--{word}", options(task)))
