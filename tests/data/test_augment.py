"""Augmentation: what each change does, exactly where that can be said, and that nothing happens unasked."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import Augment
from train.data.augment import augment, rand_augment, random_affine, warp

B, HEIGHT, WIDTH, C, V = 64, 9, 12, 3, 5
IMAGES = jax.random.uniform(jax.random.key(0), (B, HEIGHT, WIDTH, C))
LABELS = jax.nn.one_hot(jnp.arange(B) % V, V)
EVERYTHING = Augment(shift=2, rotate=20, scale=0.2, shear=0.2, flip=True, erase=0.5, mixup=0.4, rand_augment=2)


@cache
def compiled(config):
    return jax.jit(lambda key: augment(key, IMAGES, LABELS, config))


def run(config, key=1):
    return compiled(config)(jax.random.key(key))


def test_nothing_changes_when_all_is_off():
    images, labels = run(Augment())
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_the_result_follows_from_the_key_and_stays_a_picture_with_a_distribution():
    (a, la), (b, lb), (c, _) = run(EVERYTHING), run(EVERYTHING), run(EVERYTHING, key=2)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(la, lb)
    assert not np.allclose(a, c)
    assert a.shape == IMAGES.shape and float(a.min()) >= 0 and float(a.max()) <= 1 + 1e-6
    np.testing.assert_allclose(la.sum(-1), 1.0, rtol=1e-6)


def test_a_whole_pixel_move_takes_each_pixel_from_its_neighbour_and_fills_with_zero():
    moved = warp(IMAGES[0], jnp.array([[1.0, 0, 2], [0, 1, -3]]))
    expected = np.zeros((HEIGHT, WIDTH, C), np.float32)
    expected[:-2, 3:] = IMAGES[0, 2:, :-3]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_a_quarter_turn_about_the_centre_is_rot90():
    square = IMAGES[0, :, :HEIGHT]
    turned = warp(square, jnp.array([[0.0, -1, 0], [1, 0, 0]]))
    np.testing.assert_allclose(turned, np.rot90(square, -1), atol=1e-5)


def test_matrices_stay_within_what_the_config_allows_and_use_it():
    n = 2000
    shifts = random_affine(jax.random.key(0), n, Augment(shift=3.0))
    np.testing.assert_allclose(shifts[:, :, :2], np.broadcast_to(np.eye(2), (n, 2, 2)), atol=1e-6)
    assert 2.9 < float(jnp.abs(shifts[:, :, 2]).max()) <= 3.0
    turns = random_affine(jax.random.key(0), n, Augment(rotate=30.0))[:, :, :2]
    np.testing.assert_allclose(jnp.linalg.det(turns), 1.0, rtol=1e-5)
    degrees = np.rad2deg(np.arctan2(turns[:, 1, 0], turns[:, 0, 0]))
    assert -30.01 <= degrees.min() < -29 and 29 < degrees.max() <= 30.01
    slants = random_affine(jax.random.key(0), n, Augment(shear=0.3))[:, :, :2]
    np.testing.assert_array_equal(slants - slants * jnp.array([[0, 0], [1, 0]]), np.broadcast_to(np.eye(2), (n, 2, 2)))
    assert -0.3 <= float(slants[:, 1, 0].min()) < -0.29 and 0.29 < float(slants[:, 1, 0].max()) <= 0.3
    sizes = 1 / jnp.sqrt(jnp.linalg.det(random_affine(jax.random.key(0), n, Augment(scale=0.2))[:, :, :2]))
    assert 0.799 <= float(sizes.min()) < 0.81 and 1.19 < float(sizes.max()) <= 1.201


def test_about_half_of_the_images_are_mirrored_and_the_rest_untouched():
    images, _ = run(Augment(flip=True))
    same = np.array([np.array_equal(a, b) for a, b in zip(images, IMAGES, strict=True)])
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(images, IMAGES, strict=True)])
    assert (same ^ mirrored).all() and 16 < mirrored.sum() < 48


def test_an_erased_part_is_one_rectangle_no_larger_than_asked():
    images, _ = run(Augment(erase=0.6))
    for image, original in zip(np.asarray(images), np.asarray(IMAGES), strict=True):
        gone = (image != original).any(-1)
        np.testing.assert_array_equal(image[gone], 0)
        rows, columns = gone.any(1), gone.any(0)
        np.testing.assert_array_equal(gone, rows[:, None] & columns[None])
        assert max(rows.sum(), columns.sum()) <= 0.6 * HEIGHT + 1


def test_mixup_blends_image_and_label_by_one_weight_and_the_first_stays_the_larger():
    images, labels = run(Augment(mixup=0.5))
    weights = jnp.take_along_axis(labels, LABELS.argmax(-1)[:, None], 1)[:, :, None, None]
    np.testing.assert_allclose(images, weights * IMAGES + (1 - weights) * jnp.roll(IMAGES, 1, 0), atol=1e-5)
    assert 0.5 <= float(weights.min()) < 0.6 < 0.95 < float(weights.max()) <= 1.0


@pytest.mark.parametrize("magnitude", [0.3, 1.0])
def test_random_operations_differ_between_images_and_stay_in_range(magnitude):
    keys = jax.random.split(jax.random.key(3), 200)
    out = jax.jit(jax.vmap(lambda k: rand_augment(k, IMAGES[0], 1, magnitude)))(keys)
    assert float(out.min()) >= 0 and float(out.max()) <= 1 + 1e-6
    assert len({tuple(np.round(x, 4).ravel()) for x in np.asarray(out)}) >= 18  # 11 operations, most of two signs


def test_random_operations_of_no_strength_leave_a_picture_of_full_contrast_as_it_is():
    image = IMAGES[0].at[0, 0].set(0).at[0, 1].set(1)  # each channel spans 0..1, so autocontrast has nothing to do
    keys = jax.random.split(jax.random.key(3), 60)
    out = jax.jit(jax.vmap(lambda k: rand_augment(k, image, 1, 0.0)))(keys)
    np.testing.assert_allclose(out, jnp.broadcast_to(image, out.shape), atol=1 / 255)
