"""Pictures of an adversarial autoencoder for the report."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from configs.aae import Config
from train.evaluation.aae_apply import Images, apply_eval, model_range_to_unit, pixels_to_model_range
from train.task import Batch, Grid, Picture, Plane, Scatter, State
from w2jax.aae import AAE
from w2jax.priors import place_codes

PRIOR_POINTS = 4_000  # samples of the prior in a scatter plot


def make_figures(config: Config, num_classes: int) -> Callable[[State, Batch], dict[str, Picture]]:
    """Returns `figures(state, batch)`, which draws a trained autoencoder. The config determines the pictures."""

    def figures(state: State, batch: Batch) -> dict[str, Picture]:
        def draw(aae: AAE) -> dict[str, Picture]:
            code = aae.encode(pixels_to_model_range(aae, batch["image"]))
            y = jax.nn.one_hot(batch["label"], num_classes) if config.labels == "decoder" else code.y
            pictures: dict[str, Picture] = {"reconstructions": _reconstructions(aae, batch, code.z, y)}
            if y is None:
                pictures["samples"] = Grid(_cells(aae, aae.sample(100), 10), "Decoded samples of the prior.")
            else:
                pictures |= {"samples": _samples(aae, y.shape[1]), "styles": _styles(aae, batch, code.z, y)}
            if code.y is not None:
                pictures["clusters"] = _clusters(aae, batch, code.y)
            if config.labels == "prior":
                pictures["classes"] = _classes(aae)
            representation = aae.represent(code.z, y) if aae.cluster_heads else code.z
            if representation.shape[1] == 2:
                pictures["latent"] = _latent(aae, batch, representation)
                if y is None or aae.cluster_heads:
                    pictures["manifold"] = _manifold(aae, representation)
            if (y is None or aae.cluster_heads) and representation.shape[1] > 1:
                pictures["plane"] = _plane(aae, batch, representation)
            return pictures

        return apply_eval(config.model, state, draw, jax.random.key(config.run.seed))

    return figures


def _cells(aae: AAE, images: Images, columns: int) -> Float[Array, "rows columns h w"]:
    """Arranges images row by row, as gray cells."""
    return rearrange(model_range_to_unit(aae, images).mean(axis=-1), "(r c) h w -> r c h w", c=columns)


def _reconstructions(aae: AAE, batch: Batch, z: Array, y: Array | None) -> Grid:
    count = 30
    originals = _cells(aae, pixels_to_model_range(aae, batch["image"][:count]), 10)
    decoded = _cells(aae, aae.decode(z[:count], None if y is None else y[:count]), 10)
    return Grid(
        rearrange([originals, decoded], "k r c h w -> (r k) c h w"),
        "Test images, each above its reconstruction.",
        row_labels=("image", "decoded") * (count // 10),
    )


def _samples(aae: AAE, classes: int) -> Grid:
    y = jnp.tile(jnp.eye(classes), (10, 1))
    caption = "Decoded samples of the prior. Each column has one label or category."
    return Grid(_cells(aae, aae.sample(10 * classes, y), classes), caption, tuple(map(str, range(classes))))


def _styles(aae: AAE, batch: Batch, z: Array, y: Array) -> Grid:
    count, classes = 10, y.shape[1]
    styles, contents = jnp.repeat(z[:count], classes, axis=0), jnp.tile(jnp.eye(classes), (count, 1))
    originals = _cells(aae, pixels_to_model_range(aae, batch["image"][:count]), 1)
    decoded = _cells(aae, aae.decode(styles, contents), classes)
    return Grid(
        jnp.concatenate([originals, decoded], axis=1),
        "Each row: a test image, and its style decoded with every label or category.",
        column_labels=("image", *map(str, range(classes))),
    )


def _clusters(aae: AAE, batch: Batch, y: Array) -> Grid:
    members, clusters = 8, y.shape[1]
    heads = _cells(aae, aae.decode(jnp.zeros((clusters, aae.encoder.latent_size)), jnp.eye(clusters)), clusters)
    assigned = (y.argmax(axis=1)[:, None] == jnp.arange(clusters)) & batch["mask"][:, None]
    probability, chosen = jax.lax.top_k(jnp.where(assigned, y, -1.0).T, members)
    images = pixels_to_model_range(aae, batch["image"])[rearrange(chosen, "k m -> (m k)")]
    cells = _cells(aae, images, clusters) * rearrange(probability >= 0.0, "k m -> m k 1 1")
    return Grid(
        jnp.concatenate([heads, cells]),
        "Each column is a category: the decoded image at z = 0, then the most probable test images.",
        column_labels=tuple(map(str, range(clusters))),
    )


def _classes(aae: AAE) -> Grid:
    classes = jnp.repeat(jnp.arange(aae.prior_classes), 10)
    images = aae.decode(aae.sample_codes(len(classes), classes))
    return Grid(_cells(aae, images, 10), "Decoded samples of each class's region of the prior, one class per row.")


def _latent(aae: AAE, batch: Batch, points: Array) -> Scatter:
    caption, heads = "Codes of the test images, colored by class. Gray points are samples of the prior.", None
    background = aae.sample_codes(PRIOR_POINTS)
    if aae.cluster_heads:
        clusters = aae.encoder.categories
        heads = aae.represent(jnp.zeros((clusters, 2)), jnp.eye(clusters))
        background = heads[jnp.arange(PRIOR_POINTS) % clusters] + background
        caption = (
            "Codes of the test images, colored by class. Crosses are cluster heads. "
            "Gray points are samples of the prior around each head."
        )
    points = jnp.where(batch["mask"][:, None], points, jnp.nan)
    return Scatter(points, batch["label"], background, heads, caption)


def _manifold(aae: AAE, points: Array) -> Grid:
    """Decodes codes on a grid over the prior, or with cluster heads over the rectangle that contains all points."""
    count = 20
    steps = (jnp.arange(count) + 0.5) / count
    square = jnp.stack(jnp.meshgrid(steps, steps[::-1]), -1).reshape(-1, 2)  # x to the right, y upwards, as in a plot
    caption = "Decoded codes on a grid over the prior. Each cell has the same probability mass."
    if aae.cluster_heads:
        low, high = points.min(axis=0), points.max(axis=0)
        return Grid(
            _cells(aae, aae.decoder(low + square * (high - low)), count),
            "Decoded codes on an evenly spaced grid over the rectangle that contains the codes of all test images.",
        )
    if aae.prior == "swiss_roll":
        along = (jnp.arange(count**2) + 0.5) / count**2
        square = jnp.stack([along, jnp.full(count**2, 0.5)], axis=1)
        caption = "Decoded codes along the middle of the Swiss roll, from the inside to the outside, row by row."
    return Grid(
        _cells(aae, aae.decode(place_codes(square, aae.prior, aae.prior_scale, aae.prior_classes)), count), caption
    )


def _plane(aae: AAE, batch: Batch, codes: Array) -> Plane:
    """Decodes codes on a plane: the mean code ± 3 standard deviations along the two principal directions."""
    count, deviations, mask = 30, 3.0, batch["mask"][:, None]
    center = jnp.where(mask, codes, 0.0).sum(axis=0) / mask.sum()
    centered = jnp.where(mask, codes - center, 0.0)
    variance, directions = jnp.linalg.eigh(centered.T @ centered / mask.sum())  # ascending
    spread, axes = jnp.sqrt(variance[-2:]), directions[:, -2:]
    caption = "Move the pointer over the plot to see the decoded image at each code. Points are codes of test images."
    if codes.shape[1] == 2:  # not rotated
        spread, axes = jnp.sqrt((centered**2).sum(axis=0) / mask.sum()), jnp.eye(2)
    else:
        caption = (
            "A plane through the mean code, along the two directions of largest variance. "
            "Move the pointer over the plot to see the decoded image at each code. Points are codes of test images."
        )
    points = centered @ axes / jnp.maximum(deviations * spread, 1e-12)
    inside = mask[:, 0] & (jnp.abs(points) <= 1.0).all(axis=1)
    steps = 2.0 * (jnp.arange(count) + 0.5) / count - 1.0
    square = jnp.stack(jnp.meshgrid(steps, steps[::-1]), -1).reshape(-1, 2)  # x to the right, y upwards, as in a plot
    images = _cells(aae, aae.decoder(center + (deviations * spread * square) @ axes.T), count)
    return Plane(images, jnp.where(inside[:, None], points, jnp.nan), batch["label"], caption)
