"""Random changes to a batch of training images, inside the jitted step: a pure function of the key.

Images are floats in [0, 1], [B, h, w, C]; what enters at the border is 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from configs.base import Augment


def augment(
    key: Key[Array, ""], images: Float[Array, "B h w C"], labels: Float[Array, "B V"], config: Augment
) -> tuple[Float[Array, "B h w C"], Float[Array, "B V"]]:
    """Images and labels (one-hot or soft) after everything that `config` turns on, in the order of its fields."""
    batch, height, width, _ = images.shape
    keys = dict(zip(("warp", "flip", "erase", "rand", "mixup"), jax.random.split(key, 5), strict=True))
    if config.shift or config.rotate or config.scale or config.shear:
        images = jax.vmap(warp)(images, random_affine(keys["warp"], batch, config))
    if config.flip:
        mirrored = jax.random.bernoulli(keys["flip"], 0.5, (batch, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    if config.rand_augment:
        each = jax.random.split(keys["rand"], batch)
        images = jax.vmap(partial(rand_augment, count=config.rand_augment, magnitude=config.magnitude))(each, images)
    if config.erase:
        images = jnp.where(random_squares(keys["erase"], (batch, height, width), config.erase), 0, images)
    if config.mixup:
        images, labels = mixup(keys["mixup"], images, labels, config.mixup)
    return images, labels


def random_affine(key: Key[Array, ""], batch: int, config: Augment) -> Float[Array, "B 2 3"]:
    """Matrices that take an output pixel (row, column, 1), measured from the centre, to where it comes from."""
    turn, grow, slant, move = jax.random.split(key, 4)
    uniform = partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    angle = jnp.deg2rad(config.rotate) * uniform(turn, (batch,))
    size = 1.0 / (1.0 + config.scale * uniform(grow, (batch,)))
    shear = config.shear * uniform(slant, (batch,))
    shift = config.shift * uniform(move, (batch, 2))
    cos, sin = size * jnp.cos(angle), size * jnp.sin(angle)
    rows = [[cos, -sin, shift[:, 0]], [sin + shear * cos, cos - shear * sin, shift[:, 1]]]
    return rearrange(jnp.array(rows), "r c b -> b r c")


def warp(image: Float[Array, "h w C"], matrix: Float[Array, "2 3"]) -> Float[Array, "h w C"]:
    """The image seen through an affine map about its centre, bilinearly; outside is 0."""
    height, width, _ = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    pixels = rearrange(jnp.mgrid[:height, :width], "c h w -> h w c") - centre
    source = pixels @ matrix[:, :2].T + matrix[:, 2] + centre
    coordinates = [source[..., 0], source[..., 1]]
    return jax.vmap(lambda plane: map_coordinates(plane, coordinates, order=1), in_axes=-1, out_axes=-1)(image)


def random_squares(key: Key[Array, ""], shape: tuple[int, int, int], largest: float) -> Array:
    """True [B, h, w, 1] inside one square an image, with a side uniform up to `largest` of the shorter side."""
    batch, height, width = shape
    side_key, row_key, column_key = jax.random.split(key, 3)
    half = jax.random.uniform(side_key, (batch, 1)) * largest * min(height, width) / 2
    row = jax.random.uniform(row_key, (batch, 1), maxval=height)
    column = jax.random.uniform(column_key, (batch, 1), maxval=width)
    inside_rows = jnp.abs(jnp.arange(height) + 0.5 - row) < half
    inside_columns = jnp.abs(jnp.arange(width) + 0.5 - column) < half
    return inside_rows[:, :, None, None] & inside_columns[:, None, :, None]


def mixup(
    key: Key[Array, ""], images: Float[Array, "B h w C"], labels: Float[Array, "B V"], alpha: float
) -> tuple[Float[Array, "B h w C"], Float[Array, "B V"]]:
    """Blends each example with its neighbour in the batch by λ ~ Beta(α, α) (Zhang et al. 2018, "mixup")."""
    part = jax.random.beta(key, alpha, alpha, (images.shape[0],))
    part = jnp.maximum(part, 1 - part)

    def blend(x):
        weight = rearrange(part, "b -> b" + " 1" * (x.ndim - 1))
        return weight * x + (1 - weight) * jnp.roll(x, 1, axis=0)

    return blend(images), blend(labels)


def rand_augment(
    key: Key[Array, ""], image: Float[Array, "h w C"], count: int, magnitude: float
) -> Float[Array, "h w C"]:
    """`count` operations drawn from colour and geometry (after Cubuk et al. 2020, "RandAugment")."""
    for each in jax.random.split(key, count):
        choice, sign_key = jax.random.split(each)
        index = jax.random.randint(choice, (), 0, len(_COLOUR) + len(_GEOMETRY))
        strength = magnitude * jax.random.rademacher(sign_key, (), jnp.float32)
        # Under vmap a switch computes every branch, so the one costly warp stands outside of it.
        matrix = jax.lax.switch(
            jnp.maximum(index - len(_COLOUR) + 1, 0), [_identity, *_GEOMETRY], strength, image.shape
        )
        coloured = jax.lax.switch(jnp.minimum(index, len(_COLOUR)), [*_COLOUR, lambda x, s: x], image, strength)
        image = warp(coloured, matrix)
    return image


def _gray(image):
    return image.mean(axis=-1, keepdims=True)


def _contrast(image, strength):
    return jnp.clip(image.mean() + (image - image.mean()) * (1 + strength), 0, 1)


def _saturation(image, strength):
    return jnp.clip(_gray(image) + (image - _gray(image)) * (1 + strength), 0, 1)


def _solarize(image, strength):
    return jnp.where(image > 1 - jnp.abs(strength) / 2, 1 - image, image)


def _posterize(image, strength):
    levels = jnp.round(2.0 ** (8 - 5 * jnp.abs(strength)))
    return jnp.floor(image * (levels - 1) + 0.5) / (levels - 1)


def _autocontrast(image, strength):
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


_COLOUR = [
    lambda image, strength: jnp.clip(image * (1 + strength), 0, 1),  # brightness
    _contrast,
    _saturation,
    _solarize,
    _posterize,
    _autocontrast,
]


def _identity(strength, shape):
    return jnp.array([[1.0, 0, 0], [0, 1, 0]])


def _rotation(strength, shape):
    angle = jnp.deg2rad(30 * strength)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cos, -sin, 0], [sin, cos, 0]])


_GEOMETRY = [
    _rotation,
    lambda strength, shape: jnp.array([[1, 0, 0], [0.3 * strength, 1, 0]]),  # shear along the row
    lambda strength, shape: jnp.array([[1, 0.3 * strength, 0], [0, 1, 0]]),  # shear along the column
    lambda strength, shape: jnp.array([[1, 0, 0.3 * strength * shape[0]], [0, 1, 0]]),
    lambda strength, shape: jnp.array([[1, 0, 0], [0, 1, 0.3 * strength * shape[1]]]),
]
