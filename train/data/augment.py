"""Random changes to a batch of training images, inside the jitted step: a pure function of the key.

Images are floats in [0, 1], [B, h, w, C]; what enters at the border is 0.
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
    """Blends each example with its neighbour by λ ~ Beta(α, α), one for the batch (Zhang et al. 2018, "mixup")."""
    # Drawn by rejection: one for each example would make all devices wait for each other at every try.
    part = jax.random.beta(key, alpha, alpha)
    part = jnp.maximum(part, 1 - part)

    def blend(x):
        return part * x + (1 - part) * jnp.roll(x, 1, axis=0)

    return blend(images), blend(labels)


def rand_augment(
    key: Key[Array, ""], image: Float[Array, "h w C"], count: int, magnitude: float
) -> Float[Array, "h w C"]:
    """`count` operations drawn from colour and geometry (after Cubuk et al. 2020, "RandAugment")."""
    image = rearrange(image, "h w c -> c h w")  # long inner rows, for the vector units of a CPU
    for each in jax.random.split(key, count):
        choice, sign_key = jax.random.split(each)
        index = jax.random.randint(choice, (), 0, len(_COLOUR) + len(_GEOMETRY))
        strength = magnitude * jax.random.rademacher(sign_key, (), jnp.float32)
        # Under vmap a switch computes every branch: the colours fuse into one pass, and the geometry is one function.
        image = jax.lax.switch(jnp.minimum(index, len(_COLOUR)), [*_COLOUR, lambda x, s: x], image, strength)
        kind = jnp.maximum(index - len(_COLOUR) + 1, 0)
        slants = jax.lax.switch(kind, [lambda s, shape: jnp.zeros(5), *_GEOMETRY], strength, image.shape[1:])
        image = three_shears(image, slants, magnitude)
    return rearrange(image, "c h w -> h w c")


def three_shears(image: Float[Array, "C h w"], slants: Float[Array, "5"], magnitude: float) -> Float[Array, "C h w"]:
    """The image under one of `_GEOMETRY`, by shifts of its rows, its columns and its rows again (Paeth 1986, "A fast
    algorithm for general raster rotation"): without a gather, which is slow on a TPU.

    Args:
        image: one image; outside it is 0.
        slants: (first, down, last, rows, columns): each pixel of the result comes from that many pixels further, where
            `first` and `last` count per row, `down` per column, and the whole image moves by `rows` and `columns`.
        magnitude: the largest strength that `slants` were made with, which bounds the shifts.
    """
    _, height, width = image.shape
    first, down, last, rows, columns = slants
    turn, slant = math.radians(_DEGREES * magnitude), _SLANT * magnitude
    half, sine = math.tan(turn / 2), math.sin(turn)
    # Half-way through a rotation some of what ends inside the frame is left or right of it, never above or below: the
    # first and the last shift leave rows as they are. So the frame is wider in between, by the first one's reach.
    wider = _above(half * height / 2)
    row = jnp.arange(height) - (height - 1) / 2
    column = jnp.arange(width + 2 * wider) - (width - 1) / 2 - wider
    image = shift_rows(image, first * row, wider, wider)
    reach = _above(max(max(sine, slant) * (width / 2 + wider), slant * height))
    image = rearrange(image, "c h w -> c w h")
    image = rearrange(shift_rows(image, rows + down * column, reach, 0), "c w h -> c h w")
    reach = _above(max(max(half, slant) * height / 2, slant * width))
    return shift_rows(image, columns + last * row, reach, -wider)


def _above(bound: float) -> int:
    return int(bound) + 1


def shift_rows(image: Float[Array, "C h w"], by: Float[Array, "h"], reach: int, grow: int) -> Float[Array, "C h v"]:
    """Each pixel from `by` pixels further along its row, between two of them linearly; v = w + 2 · grow.

    Args:
        image: one image; outside it is 0.
        by: one move a row, |by| ≤ `reach` but for rounding.
        reach: bounds the moves, and with them the size of the program.
        grow: columns that are added on each side, or cut off if negative; at least -reach.
    """
    width = image.shape[2] + 2 * grow
    # by + reach = base · coarse + fine + part, in two passes of about √(2 · reach) choices each: fewer passes choose
    # among more, more passes write more.
    base = math.isqrt(2 * reach) + 1
    steps = 2 * reach // base + 1
    place = (by + reach)[:, None]
    whole = place.astype(jnp.int32)  # divided as an integer: a rounded quotient may be the next one's
    coarse, fine, part = whole // base, whole % base, place - whole

    def choose(image, index, choices, stride, length):
        result = image[..., :length]
        for i in range(1, choices):
            result = jnp.where(index == i, image[..., i * stride : i * stride + length], result)
        return result

    image = jnp.pad(image, [(0, 0), (0, 0), (reach + grow, base * steps - reach + grow)])
    image = choose(image, coarse, steps, base, width + base)
    image = choose(image, fine, base, 1, width + 1)
    return (1 - part) * image[..., :-1] + part * image[..., 1:]


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


_COLOUR = [
    lambda image, strength: jnp.clip(image * (1 + strength), 0, 1),  # brightness
    _contrast,
    _saturation,
    _solarize,
    _posterize,
    _autocontrast,
]


_DEGREES = 30
_SLANT = 0.3  # of a shear, per pixel, and of a move, as a part of the side


def _rotation(strength, shape):
    angle = jnp.deg2rad(_DEGREES * strength)
    half = jnp.tan(angle / 2)
    return jnp.array([half, -jnp.sin(angle), half, 0, 0])


_GEOMETRY = [
    _rotation,
    lambda strength, shape: jnp.array([0, 0, _SLANT * strength, 0, 0]),  # shear along the row
    lambda strength, shape: jnp.array([0, _SLANT * strength, 0, 0, 0]),  # shear along the column
    lambda strength, shape: jnp.array([0, 0, 0, _SLANT * strength * shape[0], 0]),
    lambda strength, shape: jnp.array([0, 0, 0, 0, _SLANT * strength * shape[1]]),
]
