"""Pixels are normalized by the mean and deviation of each channel."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from train.data.normalize import input_channels, mean_and_std, normalize_like, normalized
from train.process.errors import UserError
from w2jax.image_spec import ImageSpec

VALUES = (0.1, 0.4, 0.7, 0.2, 0.3, 0.5)
PIXELS = np.arange(256, dtype=np.float32)


def test_each_channel_has_its_own_mean_and_deviation():
    images = np.random.default_rng(0).random((2, 5, 4, 3), np.float32)
    expected = np.stack([(images[..., c] - VALUES[c]) / VALUES[3 + c] for c in range(3)], axis=-1)
    np.testing.assert_allclose(normalized(jnp.asarray(images), VALUES), expected, atol=1e-6)


def test_a_gray_value_is_used_as_red_green_and_blue():
    images = np.random.default_rng(0).random((2, 5, 4, 1), np.float32)
    expected = normalized(jnp.repeat(images, 3, axis=-1), VALUES)
    np.testing.assert_array_equal(normalized(jnp.asarray(images), VALUES), expected)
    assert (input_channels(VALUES, 1), input_channels("half", 1), input_channels("half", 4)) == (3, 1, 4)


@pytest.mark.parametrize("normalize", ["auto", "half", (0.5, 0.5)])
def test_half_keeps_the_rounding_of_older_runs(normalize):
    images = jnp.asarray((PIXELS / 255).reshape(1, 16, 16, 1))
    np.testing.assert_array_equal(normalized(images, normalize), 2.0 * images - 1.0)


@pytest.mark.parametrize("normalize", ["half", "imagenet", "clip", "none", VALUES, (0.2, 0.3)])
def test_the_option_and_the_fields_of_a_spec_say_the_same(normalize):
    mean, std = mean_and_std(normalize)
    repeats = 3 // len(mean)
    spec = ImageSpec((4, 6), 7, mean=mean * repeats, std=std * repeats)
    assert normalize_like(spec) == normalize
    assert normalize_like(replace(spec, std=(0.9, 0.8, 0.7)))[-3:] == (0.9, 0.8, 0.7)


@pytest.mark.parametrize(
    "wrong", ["imagnet", (), (0.5,), (0.5, 0.5, 0.5), (0.5, 0.0), (0.5, -1.0), (0.5, float("nan")), ("a", "b"), 3, None]
)
def test_other_values_are_refused(wrong):
    with pytest.raises(
        UserError, match=r"--normalize must be auto, half, none, imagenet, clip, or 2, 6 or 8 numbers: .*\. Got "
    ):
        mean_and_std(wrong)


def test_values_for_other_channels_than_the_images_have_are_refused():
    with pytest.raises(
        UserError, match=r"--normalize must have values for 4 channels, .* got 3\. Set --normalize half"
    ):
        input_channels("imagenet", 4)
