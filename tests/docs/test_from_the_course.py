"""The page for students of the PyTorch course shows the same numbers as torch, and the course's settings."""

import re
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from configs import aae, lstm, mha, vit
from train.config.cli import parse

PAGE = (Path(__file__).parents[2] / "docs" / "from-the-course.md").read_text()
CONFIGS = {"lstm": lstm, "mha": mha, "vit": vit, "aae": aae}


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
PROGRAMS = {title: blocks for title, text in SECTIONS.items() if (blocks := python_blocks(text))}
EXERCISE = r"^\*\*Exercise\.\*\* (.*?)\n\n<details><summary>Solution</summary>\n\n(.*?)\n\n</details>\n*\Z"
EXERCISES = {title: re.search(EXERCISE, text, re.DOTALL | re.MULTILINE) for title, text in SECTIONS.items()}


@cache
def ran(title):
    """Runs the blocks of a section, separately from the other sections, and returns the names that they define."""
    names = {"__name__": "__main__"}
    with torch.random.fork_rng():
        for block in PROGRAMS[title]:
            exec(block, names)
    return names


def test_every_code_block_is_in_a_section():
    assert sum(map(len, PROGRAMS.values())) == len(python_blocks(PAGE)) == PAGE.count("```python")
    assert len(PROGRAMS) == 12


def test_every_section_ends_with_an_exercise_and_its_hidden_solution():
    assert all(EXERCISES.values()), EXERCISES
    assert PAGE.count("**Exercise.**") == PAGE.count("<details") == PAGE.count("</details>") == len(SECTIONS)
    for title, blocks in PROGRAMS.items():
        assert python_blocks(EXERCISES[title][2]) == blocks[-1:]
        assert not any("answer" in block for block in blocks[:-1])


@pytest.mark.parametrize("title", PROGRAMS)
def test_the_solution_gives_the_number_in_the_exercise(title):
    """The number is exact to its last digit, "below" is a bound, and "about" allows 5 %."""
    task = EXERCISES[title][1].replace("\n", " ")
    ((kind, number),) = re.findall(r"Check: `answer`(?:,.*?,)? is (about |below |)(\d[\de.-]*\d|\d)\b", task)
    answer = float(ran(title)["answer"])
    if kind == "below ":
        assert 0 <= answer < float(number)
    elif kind == "about ":
        assert answer == pytest.approx(float(number), rel=0.05)
    else:
        assert f"{answer:.{len(number.partition('.')[2])}f}" == number


@pytest.mark.parametrize("title", PROGRAMS)
def test_our_results_equal_torchs(title):
    expected, found = (jax.tree.leaves(ran(title)[name]) for name in ("expected", "found"))
    assert jax.tree.structure(ran(title)["expected"]) == jax.tree.structure(ran(title)["found"])
    for theirs, ours in zip(expected, found, strict=True):
        assert isinstance(theirs, torch.Tensor) and isinstance(ours, jax.Array | np.ndarray)
        assert theirs.shape == ours.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        assert theirs.ndim == 0 or np.ptp(theirs.numpy()) > 1e-3


def test_the_training_step_updates_every_parameter_as_torch_does():
    names = ran("A training step")
    for name, before in names["before"].items():
        theirs, ours = (np.asarray(names[side][name]) - before.numpy() for side in ("expected", "found"))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        assert np.abs(theirs).mean() > 5e-4


def test_only_positions_make_attention_depend_on_the_order():
    for without, *with_positions in (ran("Positions")["errors"], ran("Positions")["our_errors"]):
        assert without < 1e-6 and min(with_positions) > 0.1


def test_both_training_loops_learn():
    losses = ran("A training loop")["found"]
    assert len(losses) == 30 and losses[-10:].mean() < losses[:10].mean() - 0.02


def test_dropout_is_drawn_from_the_key_alone():
    names = ran("train() and eval()")
    np.testing.assert_array_equal(names["once"], names["again"])
    for drawn in (names["once"], names["other"]):
        assert np.abs(drawn - names["found"]).max() > 1e-2
    assert np.abs(names["once"] - names["other"]).max() > 1e-2


def test_a_fully_masked_query_has_equal_weights_in_the_course_and_zero_here():
    names = ran("Scaled dot-product attention")
    assert not names["mask"][:, :, 8].any()
    np.testing.assert_allclose(names["attention"][:, :, 8], 1 / 50, rtol=1e-6)
    for ours in (names["weights"], names["our_out"]):
        np.testing.assert_array_equal(ours[:, :, 8], 0)


@pytest.mark.parametrize(
    ("title", "option"),
    [
        ("Multi-head attention", {"scale": None}),
        ("Vision Transformer", {"residual_from_norm": False}),
        ("Vision Transformer", {"attention_scale": None}),
        ("Vision Transformer", {"norm_eps": 1e-6}),
    ],
)
def test_without_the_courses_option_the_numbers_differ(title, option):
    """Without an option that the page names, the outputs differ from torch's."""
    names = ran(title)
    module = names["module"].clone(**option)
    if title == "Vision Transformer":
        inputs = (names["images"].permute(0, 2, 3, 1),)
        found, expected = names["our_logits"], names["logits"]
    else:
        inputs = (names["Q"], names["K"], names["V"])
        found, expected = names["found"][0], names["expected"][0]
    other, _ = module.apply(names["variables"], *(jax.numpy.array(x) for x in inputs))
    assert np.abs(other - expected.numpy()).max() > 100 * np.abs(found - expected.numpy()).max()


def test_the_converted_batch_norm_has_nontrivial_statistics():
    norm = ran("Adversarial autoencoder")["dec"][4]
    assert norm.running_mean.abs().max() > 0.1 and (norm.running_var - 1).abs().max() > 0.1


def test_the_commands_have_the_courses_settings():
    (block,) = re.findall(r"^```bash\n(.*?)^```", SECTIONS["Training programs"], re.DOTALL | re.MULTILINE)
    commands = [line.removeprefix("python -m train.").split() for line in block.splitlines()]
    configs = {task: parse(task, CONFIGS[task].PRESETS, arguments) for task, *arguments in commands}
    assert list(configs) == ["lstm", "mha", "vit", "aae"]

    reader, run = configs["lstm"], configs["lstm"].run
    assert (reader.model.num_layers, reader.model.hidden_size, run.batch_size) == (2, 256, 256)
    assert run.steps == 5 * -(-60_000 // run.batch_size)
    assert run.steps == 1175  # the answer of the last exercise
    assert reader.optim == vit.Optim(
        learning_rate=1e-3, warmup_fraction=0.0, final_lr_fraction=1.0, weight_decay=0.0, clip=None, ema=None
    )

    model = configs["vit"].model
    assert model.pool == "cls" and model.class_token and model.residual_from_norm and model.norm_eps == 1e-5
    assert model.attention_scale == model.embed_dim**-0.5

    model = configs["aae"].model
    assert model.decoder.image_shape == (32, 32, 1) and model.decoder.activation == "tanh"
    assert model.encoder.hidden_sizes == model.decoder.hidden_sizes == (512, 512) and model.decoder.batch_norm == (1,)
    assert model.discriminator.hidden_sizes == (512, 256)
    assert {part.dropout for part in (model.encoder, model.decoder, model.discriminator)} == {0.2}
    assert model.encoder.latent_size == 8 and (configs["aae"].run.steps, configs["aae"].run.batch_size) == (20_000, 64)
