"""Augmentation: the effect of each operation, exactly where possible; without options, images stay unchanged."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from configs.base import Augment
from train.data.augment import _GEOMETRY, augment, rand_augment, random_affine, shift_rows, three_shears, warp

B, HEIGHT, WIDTH, C, V = 64, 9, 12, 3, 5
IMAGES = jax.random.uniform(jax.random.key(0), (B, HEIGHT, WIDTH, C))
LABELS = jax.nn.one_hot(jnp.arange(B) % V, V)
EVERYTHING = Augment(shift=2, rotate=20, scale=0.2, shear=0.2, flip=True, erase=0.5, mixup=0.4, rand_augment=2)


@cache
def compiled(config):
    return jax.jit(lambda key: augment(key, IMAGES, LABELS, config))


def run(config, key=1):
    return compiled(config)(jax.random.key(key))


def test_without_options_nothing_changes():
    images, labels = run(Augment())
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_the_key_decides_the_augmentation():
    """The result is still an image in [0, 1] and a distribution over labels."""
    (a, la), (b, lb), (c, _) = run(EVERYTHING), run(EVERYTHING), run(EVERYTHING, key=2)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(la, lb)
    assert not np.allclose(a, c)
    assert a.shape == IMAGES.shape and float(a.min()) >= 0 and float(a.max()) <= 1 + 1e-6
    np.testing.assert_allclose(la.sum(-1), 1.0, rtol=1e-6)


def test_a_shift_by_whole_pixels_moves_pixels_and_fills_with_zero():
    moved = warp(IMAGES[0], jnp.array([[1.0, 0, 2], [0, 1, -3]]))
    expected = np.zeros((HEIGHT, WIDTH, C), np.float32)
    expected[:-2, 3:] = IMAGES[0, 2:, :-3]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_a_quarter_turn_about_the_center_is_rot90():
    square = IMAGES[0, :, :HEIGHT]
    turned = warp(square, jnp.array([[0.0, -1, 0], [1, 0, 0]]))
    np.testing.assert_allclose(turned, np.rot90(square, -1), atol=1e-5)


def test_matrices_stay_within_the_config_and_use_its_range():
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


def test_about_half_of_the_images_are_mirrored_and_the_rest_unchanged():
    images, _ = run(Augment(flip=True))
    same = np.array([np.array_equal(a, b) for a, b in zip(images, IMAGES, strict=True)])
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(images, IMAGES, strict=True)])
    assert (same ^ mirrored).all() and 16 < mirrored.sum() < 48


def test_an_erased_part_is_one_rectangle_of_at_most_the_given_size():
    images, _ = run(Augment(erase=0.6))
    for image, original in zip(np.asarray(images), np.asarray(IMAGES), strict=True):
        gone = (image != original).any(-1)
        np.testing.assert_array_equal(image[gone], 0)
        rows, columns = gone.any(1), gone.any(0)
        np.testing.assert_array_equal(gone, rows[:, None] & columns[None])
        assert max(rows.sum(), columns.sum()) <= 0.6 * HEIGHT + 1


def test_mixup_blends_image_and_label_by_one_weight():
    """The first image keeps the larger weight."""
    found = []
    mix = jax.jit(partial(augment, config=Augment(mixup=0.5)))
    for key in jax.random.split(jax.random.key(0), 20):
        images, labels = mix(key, IMAGES, LABELS)
        weights = jnp.take_along_axis(labels, LABELS.argmax(-1)[:, None], 1)
        weight = weights[0, 0]
        np.testing.assert_allclose(images, weight * IMAGES + (1 - weight) * jnp.roll(IMAGES, 1, 0), atol=1e-5)
        np.testing.assert_allclose(labels, weight * LABELS + (1 - weight) * jnp.roll(LABELS, 1, 0), atol=1e-5)
        found.append(float(weight))
    assert 0.5 <= min(found) < 0.6 < 0.95 < max(found) <= 1.0


@pytest.mark.parametrize("magnitude", [0.3, 1.0])
def test_random_operations_differ_between_images_and_stay_in_range(magnitude):
    same, labels = jnp.broadcast_to(IMAGES[0], (200, HEIGHT, WIDTH, C)), jnp.ones((200, V)) / V
    changes = jax.jit(partial(augment, config=Augment(rand_augment=1, magnitude=magnitude)))
    out, _ = changes(jax.random.key(3), same, labels)
    assert float(out.min()) >= 0 and float(out.max()) <= 1 + 1e-6
    assert len({tuple(np.round(x, 4).ravel()) for x in np.asarray(out)}) >= 18  # 11 operations, most with two signs


def test_random_operations_of_strength_zero_change_nothing():
    """For an image of full contrast."""
    image = IMAGES[0].at[0, 0].set(0).at[0, 1].set(1)  # each channel spans 0..1, so autocontrast changes nothing
    keys = jax.random.split(jax.random.key(3), 60)
    out = jax.jit(jax.vmap(lambda k: rand_augment(k, image, 1, 0.0)))(keys)
    np.testing.assert_allclose(out, jnp.broadcast_to(image, out.shape), atol=1 / 255)


def test_random_operations_give_each_image_the_same_in_any_batch():
    keys = jax.random.split(jax.random.key(4), 24)
    operations = jax.jit(partial(rand_augment, count=2, magnitude=0.8))
    barrier = jax.jit(jax.vmap(partial(rand_augment, count=2, magnitude=0.8)))(keys, IMAGES[:24])
    alone = jnp.stack([operations(key, image) for key, image in zip(keys, IMAGES, strict=False)])
    np.testing.assert_allclose(barrier, alone, atol=1e-5)


def test_random_operations_use_no_gather_which_is_slow_on_a_tpu():
    def program(config):
        return jax.jit(partial(augment, config=config)).lower(jax.random.key(0), IMAGES, LABELS).as_text()

    assert "gather" in program(Augment(rotate=10))  # shows that "gather" in the program's text can be detected
    assert "gather" not in program(Augment(rand_augment=2))


def moved_along(lines, by):
    """Shifts each line [..., w] by `by` pixels, with linear interpolation and 0 outside."""
    places = np.arange(lines.shape[-1])
    flat = zip(lines.reshape(-1, len(places)), np.broadcast_to(by, lines.shape[:-1]).ravel(), strict=True)
    read = [np.interp(places + move, np.arange(-1, len(places) + 1), np.pad(line, 1)) for line, move in flat]
    return np.reshape(read, lines.shape)


@pytest.mark.parametrize("reach, grow", [(6, 0), (24, 5), (24, -2)])
def test_each_row_moves_by_its_own_amount_and_whole_pixels_are_exact(reach, grow):
    whole = np.arange(-reach, reach + 1, dtype=np.float32)
    below, above = np.nextafter(whole[1:], -np.inf), np.nextafter(whole[:-1], np.inf)
    by = np.concatenate([whole, below, above, whole[1:] - 0.3])  # values that round to whole pixels are the hardest
    image = np.random.default_rng(0).random((2, len(by), 13), np.float32)
    moved = jax.jit(partial(shift_rows, reach=reach, grow=grow))(image, by)
    padded = np.pad(image, [(0, 0), (0, 0), (9, 9)])
    expected = moved_along(padded, by)[:, :, 9 - grow : 9 + 13 + grow]
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    n = len(whole)
    np.testing.assert_array_equal(moved[:, :n], expected[:, :n].astype(np.float32))


sheared = jax.jit(three_shears, static_argnames="magnitude")


# At 3/4 of the strength, 120 rows move by 27 pixels, computed as 27.000002 in float32: above the exact bound.
@pytest.mark.parametrize("strength, shape", [(-1.0, (11, 30)), (0.4, (30, 11)), (-0.75, (120, 7))])
def test_shears_and_shifts_interpolate_between_rows_and_columns(strength, shape):
    height, width = shape
    image = np.random.default_rng(0).random((2, *shape), np.float32)
    from_center = [np.arange(side) - (side - 1) / 2 for side in shape]
    columns = image.transpose(0, 2, 1)
    expected = [
        moved_along(image, 0.3 * strength * from_center[0]),
        moved_along(columns, 0.3 * strength * from_center[1]).transpose(0, 2, 1),
        moved_along(columns, 0.3 * strength * height).transpose(0, 2, 1),
        moved_along(image, 0.3 * strength * width),
    ]
    for operation, result in zip(_GEOMETRY[1:], expected, strict=True):
        moved = sheared(image, operation(jnp.float32(strength), shape), magnitude=abs(strength))
        np.testing.assert_allclose(moved, result, atol=1e-4)
    np.testing.assert_array_equal(sheared(image, jnp.zeros(5), magnitude=abs(strength)), image)


@pytest.mark.parametrize("strength, shape", [(-1.0, (26, 43)), (0.4, (43, 26)), (1.0, (51, 22))])
def test_three_shears_equal_the_exact_rotation(strength, shape):
    """Pixels that stay inside the image in the exact rotation are kept."""
    angle = np.deg2rad(30 * strength)
    matrix = jnp.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    # Each pixel's value is its position. Linear interpolation preserves it, so the result shows each pixel's origin.
    places = jnp.stack([*jnp.mgrid[: shape[0], : shape[1]], jnp.ones(shape)]).astype(jnp.float32)
    exact = np.asarray(warp(places.transpose(1, 2, 0), matrix)).transpose(2, 0, 1)
    turned = np.asarray(sheared(places, _GEOMETRY[0](jnp.float32(strength), shape), magnitude=abs(strength)))

    def surrounded(mask):  # the shears blur up to two pixels around the edge differently
        return sliding_window_view(np.pad(mask, 2, constant_values=True), (5, 5)).all((2, 3))

    kept, empty = surrounded(exact[2] > 1 - 1e-5), surrounded(exact[2] == 0)
    np.testing.assert_allclose(turned[:, kept], exact[:, kept], atol=1e-4)
    np.testing.assert_array_equal(turned[:, empty], 0)
