"""What a trained adversarial autoencoder is worth, and what it looks like."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Key

from configs.aae import Config
from train.data import Source
from train.evaluation.clusters import clustering_error
from train.evaluation.frechet import digit_features, frechet_distance
from train.evaluation.mmd import mmd
from train.evaluation.parzen import parzen
from train.evaluation.probe import probe_accuracy
from train.task import Batch, Grid, Picture, Plane, Scatter, State
from w2jax.aae import AAE
from w2jax.priors import place_codes

CODES = 4_000  # the most codes compared with the prior, and points of the prior in a picture
DIGITS = ("mnist", "mnist_sample")  # the datasets that `digit_features` is for

Images = Float[Array, "B h w C"]


def evaluated(model: AAE, state: State, method: Callable[[AAE], Any], key: Key[Array, ""] | None = None) -> Any:
    """What the method gives of the trained model; `key` is for what it samples."""
    return model.apply(state.eval_variables, method=method, rngs=None if key is None else {"sample": key})


def to_range(aae: AAE, pixels: Array) -> Images:
    """Pixels from 0 to 255 in the range of the decoder's output."""
    return pixels / 127.5 - 1.0 if aae.decoder.activation == "tanh" else pixels / 255.0


def to_unit(aae: AAE, images: Images) -> Images:
    """Images in the range of the decoder's output as pixels from 0 to 1."""
    return (images + 1.0) / 2.0 if aae.decoder.activation == "tanh" else images


def sampled(config: Config, num_classes: int, state: State, count: int, key: Key[Array, ""]) -> Images:
    """Images of codes drawn from the prior, pixels from 0 to 1; each class in turn, where the decoder is told one."""
    told = jax.nn.one_hot(jnp.arange(count) % num_classes, num_classes) if config.labels == "decoder" else None
    return to_unit(config.model, evaluated(config.model, state, lambda aae: aae.sample(count, told), key))


def make_assess(config: Config, train: Source) -> Callable[[State, Source], dict[str, float]]:
    """Metrics of codes and samples; beside each what real images, or the prior itself, get where there is such a bound.

    parzen: log-likelihood of the test images in nats, its window chosen on the validation split; mmd: squared maximum
    mean discrepancy of test codes and prior; frechet: distance of samples and test images in the features of a digit
    classifier; probe_accuracy: of a linear classifier on the codes; clustering_error: where the categories were not
    taught. All by `metric_examples` samples or images.

    Raises:
        UserError: if there is no such validation split.
    """
    model, num_classes, count = config.model, train.num_classes, config.metric_examples
    validation = train.open_split(config.validation_split)

    @jax.jit
    def encode(state: State, pixels: Array) -> tuple[Array, Array]:
        code = evaluated(model, state, lambda aae: aae.encode(to_range(aae, pixels)))
        return code.z, jnp.zeros((len(pixels), 0)) if code.logits is None else code.logits

    @jax.jit
    def draw(state: State, key: Array) -> Array:
        return sampled(config, num_classes, state, count, key)

    @jax.jit
    def draw_codes(state: State, key: Array) -> Array:
        return evaluated(model, state, lambda aae: aae.sample_codes(2 * CODES), key)

    def assess(state: State, test: Source) -> dict[str, float]:
        key, prior_key = jax.random.split(jax.random.key(config.run.seed))
        known, held_out, unseen = (_evenly(split, count) for split in (train, validation, test))
        (z, logits), (_, held_out_logits), (test_z, test_logits) = (
            map(np.asarray, encode(state, split["image"])) for split in (known, held_out, unseen)
        )
        samples = np.asarray(draw(state, key))

        window = [_pixels(split["image"] / 255.0) for split in (held_out, unseen)]
        ours, real = parzen(_pixels(samples), *window), parzen(_pixels(known["image"] / 255.0), *window)
        values = {
            "parzen": ours.log_likelihood,
            "parzen_standard_error": ours.standard_error,
            "parzen_sigma": ours.sigma,
            "parzen_of_training_images": real.log_likelihood,
        }
        prior, again = np.split(np.asarray(draw_codes(state, prior_key)), 2)
        spread = float(prior.std())
        values |= {"mmd": mmd(test_z[:CODES], prior, spread), "mmd_of_prior": mmd(again, prior, spread)}
        if train.name in DIGITS:
            size = min(len(known["image"]), len(unseen["image"]))  # The distance of finite sets depends on their size.
            sets = [split["image"][:size].astype(np.float32) / 255.0 for split in (known, unseen)]
            images, truth, drawn = (digit_features(images) for images in (*sets, samples[:size]))
            values |= {
                "frechet": frechet_distance(drawn, truth),
                "frechet_of_training_images": frechet_distance(images, truth),
            }
        values["probe_accuracy"] = probe_accuracy(
            np.hstack([z, _softmax(logits)]),
            known["label"],
            np.hstack([test_z, _softmax(test_logits)]),
            unseen["label"],
            num_classes,
        )
        if model.encoder.categories and config.labels != "categories":
            values["clustering_error"] = clustering_error(
                _softmax(held_out_logits), held_out["label"], _softmax(test_logits), unseen["label"]
            )
        return values

    return assess


def _evenly(source: Source, most: int) -> dict[str, np.ndarray]:
    """At most so many examples, from all over the split."""
    return source.gather(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """In float64: in float32 many probabilities would be 1, and no image the surest of its category."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)


def make_figures(config: Config, num_classes: int) -> Callable[[State, Batch], dict[str, Picture]]:
    """The pictures that there are of such a model."""

    def figures(state: State, batch: Batch) -> dict[str, Picture]:
        def draw(aae: AAE) -> dict[str, Picture]:
            code = aae.encode(to_range(aae, batch["image"]))
            y = jax.nn.one_hot(batch["label"], num_classes) if config.labels == "decoder" else code.y
            pictures: dict[str, Picture] = {"reconstructions": _reconstructions(aae, batch, code.z, y)}
            if y is None:
                pictures["samples"] = Grid(_cells(aae, aae.sample(100), 10), "Images of codes drawn from the prior.")
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

        return evaluated(config.model, state, draw, jax.random.key(config.run.seed))

    return figures


def _cells(aae: AAE, images: Images, columns: int) -> Float[Array, "rows columns h w"]:
    """Images in reading order, as gray cells."""
    return rearrange(to_unit(aae, images).mean(axis=-1), "(r c) h w -> r c h w", c=columns)


def _reconstructions(aae: AAE, batch: Batch, z: Array, y: Array | None) -> Grid:
    count = 30
    originals = _cells(aae, to_range(aae, batch["image"][:count]), 10)
    again = _cells(aae, aae.decode(z[:count], None if y is None else y[:count]), 10)
    return Grid(
        rearrange([originals, again], "k r c h w -> (r k) c h w"), "Test images, each above its reconstruction."
    )


def _samples(aae: AAE, kinds: int) -> Grid:
    y = jnp.tile(jnp.eye(kinds), (10, 1))
    caption = "Images of codes drawn from the prior; each column has its label or category."
    return Grid(_cells(aae, aae.sample(10 * kinds, y), kinds), caption)


def _styles(aae: AAE, batch: Batch, z: Array, y: Array) -> Grid:
    count, kinds = 10, y.shape[1]
    styles, contents = jnp.repeat(z[:count], kinds, axis=0), jnp.tile(jnp.eye(kinds), (count, 1))
    first = _cells(aae, to_range(aae, batch["image"][:count]), 1)
    written = _cells(aae, aae.decode(styles, contents), kinds)
    return Grid(
        jnp.concatenate([first, written], axis=1), "The style of the test image in front, with every label or category."
    )


def _clusters(aae: AAE, batch: Batch, y: Array) -> Grid:
    members, kinds = 8, y.shape[1]
    heads = _cells(aae, aae.decode(jnp.zeros((kinds, aae.encoder.latent_size)), jnp.eye(kinds)), kinds)
    assigned = (y.argmax(axis=1)[:, None] == jnp.arange(kinds)) & batch["mask"][:, None]
    probability, chosen = jax.lax.top_k(jnp.where(assigned, y, -1.0).T, members)
    images = to_range(aae, batch["image"])[rearrange(chosen, "k m -> (m k)")]
    cells = _cells(aae, images, kinds) * rearrange(probability >= 0.0, "k m -> m k 1 1")
    return Grid(
        jnp.concatenate([heads, cells]),
        "A category in each column: its image at z = 0, and below it the surest test images.",
    )


def _classes(aae: AAE) -> Grid:
    classes = jnp.repeat(jnp.arange(aae.prior_classes), 10)
    images = aae.decode(aae.sample_codes(len(classes), classes))
    return Grid(
        _cells(aae, images, 10), "Images of codes drawn from each class's part of the prior, a class in each row."
    )


def _latent(aae: AAE, batch: Batch, points: Array) -> Scatter:
    caption, heads = "Codes of the test images by class, over samples of the prior.", None
    background = aae.sample_codes(CODES)
    if aae.cluster_heads:
        kinds = aae.encoder.categories
        heads = aae.represent(jnp.zeros((kinds, 2)), jnp.eye(kinds))
        background = heads[jnp.arange(CODES) % kinds] + background
        caption = "Codes of the test images by class, over samples of the prior around each cluster head."
    points = jnp.where(batch["mask"][:, None], points, jnp.nan)
    return Scatter(points, batch["label"], background, heads, caption)


def _manifold(aae: AAE, points: Array) -> Grid:
    """By the map from the unit square to the prior; over the rectangle of the points where heads make the prior."""
    count = 20
    steps = (jnp.arange(count) + 0.5) / count
    square = jnp.stack(jnp.meshgrid(steps, steps[::-1]), -1).reshape(-1, 2)  # as a plot: to the right, and upwards
    caption = "Images of codes on an even grid over the prior, each with the same mass."
    if aae.cluster_heads:
        low, high = points.min(axis=0), points.max(axis=0)
        return Grid(
            _cells(aae, aae.decoder(low + square * (high - low)), count),
            "Images of codes on an even grid over the rectangle of all codes.",
        )
    if aae.prior == "swiss_roll":
        along = (jnp.arange(count**2) + 0.5) / count**2
        square = jnp.stack([along, jnp.full(count**2, 0.5)], axis=1)
        caption = "Images of codes along the middle of the roll, from inside out, line by line."
    return Grid(
        _cells(aae, aae.decode(place_codes(square, aae.prior, aae.prior_scale, aae.prior_classes)), count), caption
    )


def _plane(aae: AAE, batch: Batch, codes: Array) -> Plane:
    """Three standard deviations of the codes each way, along their two principal directions."""
    count, wide, mask = 30, 3.0, batch["mask"][:, None]
    centre = jnp.where(mask, codes, 0.0).sum(axis=0) / mask.sum()
    apart = jnp.where(mask, codes - centre, 0.0)
    variance, directions = jnp.linalg.eigh(apart.T @ apart / mask.sum())  # rising
    spread, axes = jnp.sqrt(variance[-2:]), directions[:, -2:]
    caption = "Move over the plane of codes: beside it stands the image that each decodes to. Points are test images."
    if codes.shape[1] == 2:  # as it is, not turned
        spread, axes = jnp.sqrt((apart**2).sum(axis=0) / mask.sum()), jnp.eye(2)
    else:
        caption = (
            "Move over the plane through the mean code, along the two widest directions: beside it stands the image "
            "that each code decodes to. Points are test images."
        )
    points = apart @ axes / jnp.maximum(wide * spread, 1e-12)
    inside = mask[:, 0] & (jnp.abs(points) <= 1.0).all(axis=1)
    steps = 2.0 * (jnp.arange(count) + 0.5) / count - 1.0
    square = jnp.stack(jnp.meshgrid(steps, steps[::-1]), -1).reshape(-1, 2)  # as a plot: to the right, and upwards
    images = _cells(aae, aae.decoder(centre + (wide * spread * square) @ axes.T), count)
    return Plane(images, jnp.where(inside[:, None], points, jnp.nan), batch["label"], caption)
