"""Augments a batch of training images inside the jitted step. The result is a pure function of the key.

Images are floats [B, h, w, C] in [0, 1]. Pixels outside the original image are 0.
"""

import math
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
    """Applies every augmentation that `config` turns on, to the images and their labels (one-hot or soft).

    The order is: affine warp, flip, RandAugment, erasing, mixup.
    """
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
    """Draws affine matrices that map an output pixel (row, column, 1) to its position in the input.

    Both positions are measured from the image center.
    """
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
    """Applies an affine map about the image center, with bilinear interpolation."""
    height, width, _ = image.shape
    center = jnp.array([(height - 1) / 2, (width - 1) / 2])
    pixels = rearrange(jnp.mgrid[:height, :width], "c h w -> h w c") - center
    source = pixels @ matrix[:, :2].T + matrix[:, 2] + center
    coordinates = [source[..., 0], source[..., 1]]
    return jax.vmap(lambda plane: map_coordinates(plane, coordinates, order=1), in_axes=-1, out_axes=-1)(image)


def random_squares(key: Key[Array, ""], shape: tuple[int, int, int], largest: float) -> Array:
    """Returns a mask [B, h, w, 1] that is True inside one random square per image.

    The side of the square is uniform from 0 to `largest` times the image's shorter side.
    """
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
    """Blends each example with its neighbor (Zhang et al. 2018, "mixup"). The batch shares one λ ~ Beta(α, α)."""
    # JAX samples Beta by rejection. With one λ per example, all devices would have to synchronize at every attempt.
    weight = jax.random.beta(key, alpha, alpha)
    weight = jnp.maximum(weight, 1 - weight)

    def blend(x):
        return weight * x + (1 - weight) * jnp.roll(x, 1, axis=0)

    return blend(images), blend(labels)


def rand_augment(
    key: Key[Array, ""], image: Float[Array, "h w C"], count: int, magnitude: float
) -> Float[Array, "h w C"]:
    """Applies `count` random color or geometry operations (after Cubuk et al. 2020, "RandAugment")."""
    image = rearrange(image, "h w c -> c h w")  # Long contiguous rows use a CPU's vector units well.
    for each in jax.random.split(key, count):
        choice, sign_key = jax.random.split(each)
        index = jax.random.randint(choice, (), 0, len(_COLOR) + len(_GEOMETRY))
        strength = magnitude * jax.random.rademacher(sign_key, (), jnp.float32)
        # Under vmap, a switch computes every branch. So XLA fuses the color operations into one pass, and all geometry
        # operations share the single function `three_shears`.
        image = jax.lax.switch(jnp.minimum(index, len(_COLOR)), [*_COLOR, lambda x, s: x], image, strength)
        kind = jnp.maximum(index - len(_COLOR) + 1, 0)
        slants = jax.lax.switch(kind, [lambda s, shape: jnp.zeros(5), *_GEOMETRY], strength, image.shape[1:])
        image = three_shears(image, slants, magnitude)
    return rearrange(image, "c h w -> h w c")


def three_shears(image: Float[Array, "C h w"], slants: Float[Array, "5"], magnitude: float) -> Float[Array, "C h w"]:
    """Applies one operation of `_GEOMETRY` by shifting the rows, then the columns, then the rows again.

    This is the method of Paeth 1986, "A fast algorithm for general raster rotation". It needs no gather, which is slow
    on a TPU.

    Args:
        image: one image.
        slants: three shears and two shifts (first, down, last, rows, columns), which give the distance from each result
            pixel to its source. `first` and `last` are in pixels per row, `down` in pixels per column. `rows` and
            `columns` shift the whole image, in pixels.
        magnitude: largest strength from which `slants` was computed. It bounds the shifts.
    """
    _, height, width = image.shape
    first, down, last, rows, columns = slants
    turn, slant = math.radians(_DEGREES * magnitude), _SLANT * magnitude
    half, sine = math.tan(turn / 2), math.sin(turn)
    # In a rotation, a pixel may leave the frame on the left or right and come back later. A pixel that leaves at the
    # top or bottom cannot come back, because only the second shift changes rows. So the frame is temporarily widened
    # by the largest distance of the first shift.
    margin = _next_integer(half * height / 2)
    row = jnp.arange(height) - (height - 1) / 2
    column = jnp.arange(width + 2 * margin) - (width - 1) / 2 - margin
    image = shift_rows(image, first * row, margin, margin)
    reach = _next_integer(max(max(sine, slant) * (width / 2 + margin), slant * height))
    image = rearrange(image, "c h w -> c w h")
    image = rearrange(shift_rows(image, rows + down * column, reach, 0), "c w h -> c h w")
    reach = _next_integer(max(max(half, slant) * height / 2, slant * width))
    return shift_rows(image, columns + last * row, reach, -margin)


def _next_integer(bound: float) -> int:
    return int(bound) + 1


def shift_rows(image: Float[Array, "C h w"], by: Float[Array, "h"], reach: int, grow: int) -> Float[Array, "C h v"]:
    """Shifts each row: a result pixel is read `by` pixels further along its row, with linear interpolation.

    The result has width v = w + 2 · grow.

    Args:
        image: one image.
        by: one shift per row, with |by| ≤ `reach` up to rounding.
        reach: upper bound of the shifts. The compiled program grows with it.
        grow: columns to add on each side; a negative number removes columns. At least -reach.
    """
    width = image.shape[2] + 2 * grow
    # by + reach = base · coarse + fine + fraction. Two passes select among about √(2 · reach) shifts each. One pass
    # would select among 2 · reach shifts, and more passes would write more memory.
    base = math.isqrt(2 * reach) + 1
    steps = 2 * reach // base + 1
    place = (by + reach)[:, None]
    whole = place.astype(jnp.int32)  # Integer division, because a float quotient may round up.
    coarse, fine, fraction = whole // base, whole % base, place - whole

    def choose(image, index, choices, stride, length):
        result = image[..., :length]
        for i in range(1, choices):
            result = jnp.where(index == i, image[..., i * stride : i * stride + length], result)
        return result

    image = jnp.pad(image, [(0, 0), (0, 0), (reach + grow, base * steps - reach + grow)])
    image = choose(image, coarse, steps, base, width + base)
    image = choose(image, fine, base, 1, width + 1)
    return (1 - fraction) * image[..., :-1] + fraction * image[..., 1:]


def _gray(image):
    return image.mean(axis=0, keepdims=True)


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
    low, high = image.min(axis=(1, 2), keepdims=True), image.max(axis=(1, 2), keepdims=True)
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


_COLOR = [
    lambda image, strength: jnp.clip(image * (1 + strength), 0, 1),  # brightness
    _contrast,
    _saturation,
    _solarize,
    _posterize,
    _autocontrast,
]


_DEGREES = 30
_SLANT = 0.3  # Shears: pixels per pixel. Shifts: fraction of the side.


def _rotation(strength, shape):
    angle = jnp.deg2rad(_DEGREES * strength)
    half = jnp.tan(angle / 2)
    return jnp.array([half, -jnp.sin(angle), half, 0, 0])


_GEOMETRY = [
    _rotation,
    lambda strength, shape: jnp.array([0, 0, _SLANT * strength, 0, 0]),  # horizontal shear
    lambda strength, shape: jnp.array([0, _SLANT * strength, 0, 0, 0]),  # vertical shear
    lambda strength, shape: jnp.array([0, 0, 0, _SLANT * strength * shape[0], 0]),
    lambda strength, shape: jnp.array([0, 0, 0, 0, _SLANT * strength * shape[1]]),
]
