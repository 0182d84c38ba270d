"""Numbers of options are checked before a run begins."""

import importlib
from dataclasses import replace
from math import inf, isfinite, nan

import jax
import pytest
from tasks import TASKS

from train.config.checks import check_batch, check_ranges
from train.config.options import model_flags, options_of
from train.data import open_source
from train.process.errors import UserError, as_user_error

CONFIGS = {task: importlib.import_module(f"configs.{task}").PRESETS["tiny"].config for task in TASKS}
# The mesh, the data and the model check their numbers themselves.
UNRANGED = ("mesh.", "distributed.", "data.", "model.")


def with_value(config, name, value):
    """Returns a copy of the config in which the option with the dotted `name` has another value."""
    first, _, rest = name.partition(".")
    changed = {first: with_value(getattr(config, first), rest, value) if rest else value}
    return config.clone(**changed) if hasattr(config, "clone") else replace(config, **changed)


@pytest.mark.parametrize("task", TASKS)
def test_every_number_has_a_range(task):
    for option in options_of(CONFIGS[task]).values():
        if type(option.value) in (int, float) and not option.name.startswith(UNRANGED):
            assert option.range is not None, option.flag


@pytest.mark.parametrize("task", TASKS)
def test_a_number_outside_its_range_is_refused_and_the_option_is_named(task):
    config = CONFIGS[task]
    check_ranges(config)
    options = [option for option in options_of(config).values() if option.range is not None]
    assert len(options) > 15
    for option in options:
        low, high = option.range.low, option.range.high
        wrong = [low - 1, *([] if option.range.includes_low else [low])]
        if isfinite(high):
            wrong += [high + 1, *([] if option.range.includes_high else [high])]
        for value in (*wrong, nan, inf, -inf):
            with pytest.raises(UserError, match=f"^{option.flag} must be ") as error:
                check_ranges(with_value(config, option.name, value))
            assert str(error.value).endswith(f", got {value}")
        right = [low if option.range.includes_low else low + 1e-9, *([high] if option.range.includes_high else [])]
        for value in filter(isfinite, right):
            check_ranges(with_value(config, option.name, value))


def test_mixup_needs_two_images_in_each_part_of_a_batch():
    """With one image, it would blend the image with itself."""

    def config(size, accumulate, mixup=0.2):
        sized = with_value(with_value(CONFIGS["vit"], "run.batch_size", size), "optim.accumulate", accumulate)
        return with_value(sized, "augment.mixup", mixup)

    for size, accumulate, devices in ((4, 4, 1), (1, 1, 1)):
        check_batch(config(size, accumulate, mixup=0.0), devices)
        with pytest.raises(UserError) as caught:
            check_batch(config(size, accumulate), devices)
        assert str(caught.value) == (
            "--augment.mixup needs at least 2 images in each part of a batch, because it blends them, got "
            f"--run.batch-size {size} in {accumulate} {'part' if accumulate == 1 else 'parts'} "
            f"(--optim.accumulate). Set --run.batch-size to at least {2 * accumulate}, or leave out --augment.mixup"
        )
    for size, accumulate, devices in ((8, 4, 1), (8, 4, 2), (2, 1, 2)):
        check_batch(config(size, accumulate), devices)


@pytest.mark.parametrize("task", TASKS)
def test_infinite_and_huge_numbers_are_refused_for_every_option(task):
    config = CONFIGS[task]
    for option in options_of(config).values():
        wrong = {int: (2**63, -(2**63)), float: (nan, inf, -inf, 1e300, -1e300)}
        kind = type(option.value[0] if isinstance(option.value, tuple) and option.value else option.value)
        for value in wrong.get(kind, ()):
            given = (value,) * len(option.value) if isinstance(option.value, tuple) else value
            with pytest.raises(UserError, match=f"^{option.flag} must be ") as error:
                check_ranges(with_value(config, option.name, given))
            assert str(error.value).endswith(f", got {value}")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_number_of_a_model_is_refused_by_its_option_or_gives_a_model(task):
    config = CONFIGS[task]
    source = open_source(config.data, "train")
    make_task = importlib.import_module(f"train.{task}").make_task
    refused = 0
    for option in options_of(config).values():
        if not option.name.startswith("model.") or type(option.value) not in (int, float):
            continue
        for value in (-1, 0, 1, 2**31 - 1):
            changed = with_value(config, option.name, type(option.value)(value))
            try:
                check_ranges(changed)
                with as_user_error(model_flags(changed)):
                    shapes = jax.eval_shape(make_task(changed, source).init)
                assert all(min(leaf.shape, default=1) > 0 for leaf in jax.tree.leaves(shapes)), (option.flag, value)
            except UserError as error:
                refused += 1
                assert option.name.rpartition(".")[2].replace("_", "-") in str(error).replace("_", "-")
                assert "\n" not in str(error)
    assert refused > 4
