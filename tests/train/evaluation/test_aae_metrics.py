"""Metrics and pictures of a trained adversarial autoencoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import random_variables
from pictures import with_fitting_labels

from configs.aae import Config
from train.data.source import InMemorySource
from train.evaluation.aae_figures import make_figures
from train.evaluation.aae_metrics import METRIC_DESCRIPTIONS, MIN_EXAMPLES, make_final_metrics
from train.evaluation.mmd import mmd
from train.evaluation.parzen import parzen
from train.task import State
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder

SHAPE, K, N = (4, 5, 1), 3, 64
RNG = np.random.default_rng(0)


def source(split, count):
    labels = RNG.permutation(np.arange(count) % K).astype(np.int32)
    images = RNG.integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    images[:, 0, 0, 0] = 100 * labels  # the first pixel encodes the class
    return InMemorySource("shapes", split, SHAPE, K, list("abc"), images, labels, open_split=lambda _: VALIDATION)


TRAIN, VALIDATION, TEST = (source(split, count) for split, count in (("train", 90), ("valid", 50), ("test", 70)))


def autoencoder(latent=2, categories=0, **options):
    encoder = AAEEncoder(latent, (8,), stochastic=False, categories=categories)
    small = AAEDiscriminator((4,)), AAEDiscriminator((4,))
    return AAE(
        encoder, AAEDecoder(SHAPE, (6,), batch_norm=(), activation="sigmoid"), *small, **options, prior_classes=K
    )


def trained(model, *inputs):
    variables = random_variables(model, jnp.zeros((1, *SHAPE)), *inputs)
    return State(jnp.zeros((), jnp.int32), variables["params"], {}, batch_stats={})


def batch(masked=0):
    seen = TEST.gather(np.arange(N))
    return jax.device_put({**seen, "mask": np.arange(N) < N - masked})


def pictures(model, state, masked=0, **options):
    figures = make_figures(Config(model=model, **options), K)
    return with_fitting_labels(jax.jit(figures)(state, batch(masked)))


def test_reconstructions_are_below_their_images():
    model = autoencoder()
    state = trained(model)
    cells = pictures(model, state)["reconstructions"].cells
    images = batch()["image"][:30] / 255.0
    again = model.apply(state.eval_variables, images, method="reconstruct")
    np.testing.assert_allclose(cells[0::2].reshape(30, 4, 5), images[..., 0], atol=1e-6)
    np.testing.assert_allclose(cells[1::2].reshape(30, 4, 5), again[..., 0], atol=1e-5)


def test_codes_of_padding_are_not_drawn_and_heads_are_marked():
    model = autoencoder(categories=K, cluster_heads=True)
    state = trained(model)
    picture = pictures(model, state, masked=10)["latent"]
    code = model.apply(state.eval_variables, batch()["image"] / 255.0, method="encode")
    heads = state.params["heads"]["kernel"]
    np.testing.assert_allclose(picture.points[:-10], (code.z + code.y @ heads)[:-10], rtol=1e-4, atol=1e-5)
    assert np.isnan(picture.points[-10:]).all()
    np.testing.assert_allclose(picture.marks, heads, atol=1e-6)
    np.testing.assert_array_equal(picture.labels, batch()["label"])
    np.testing.assert_allclose(picture.background.mean(0), heads.mean(0), atol=0.1)


@pytest.mark.parametrize("latent", [2, 5])
def test_the_plane_shows_decoded_images_and_each_code_at_its_position(latent):
    model = autoencoder(latent=latent)
    state = trained(model)
    plane = pictures(model, state, masked=10)["plane"]
    codes = np.asarray(model.apply(state.eval_variables, batch()["image"] / 255.0, method="encode").z)[:-10]
    shown = np.isfinite(plane.points).all(axis=1)
    assert not shown[-10:].any() and shown[:-10].mean() > 0.9
    # A point's position is a linear map of its code. The decoded images must use the same map.
    design = np.column_stack([plane.points[shown], np.ones(shown.sum())])
    seen = codes[shown[:-10]]
    found, *_ = np.linalg.lstsq(design, seen, rcond=None)  # maps [x, y, 1] to the code
    rows, columns = plane.images.shape[:2]
    for row, column in ((0, 0), (3, 20), (rows - 1, columns - 2)):
        place = np.array([2 * (column + 0.5) / columns - 1, 1 - 2 * (row + 0.5) / rows, 1.0])
        image = model.apply(state.eval_variables, jnp.asarray(place @ found)[None], method="decode")
        np.testing.assert_allclose(plane.images[row, column], image[0, ..., 0], atol=2e-3)
    if latent == 2:
        np.testing.assert_allclose(found[:2], np.diag(3 * codes.std(axis=0)), atol=1e-4)
    # The plane has the two directions of largest variance.
    left = seen - design @ found
    assert left.var(axis=0).sum() <= np.sort(np.linalg.eigvalsh(np.cov(codes.T)))[:-2].sum() * 1.2 + 1e-6


def test_a_decoder_conditioned_on_labels_has_no_plane():
    model = autoencoder(latent=4)
    assert "plane" not in pictures(model, trained(model, jnp.zeros((1, K))), labels="decoder")


def test_a_style_is_written_with_every_label():
    model = autoencoder(latent=4)
    state = trained(model, jnp.zeros((1, K)))
    cells = pictures(model, state, labels="decoder")["styles"].cells
    images = batch()["image"][:10] / 255.0
    z = model.apply(state.eval_variables, images, method="encode").z
    assert cells.shape == (10, 1 + K, 4, 5)
    np.testing.assert_allclose(cells[:, 0], images[..., 0], atol=1e-6)
    for label in range(K):
        told = jnp.tile(jnp.eye(K)[label], (10, 1))
        written = model.apply(state.eval_variables, z, told, method="decode")
        np.testing.assert_allclose(cells[:, 1 + label], written[..., 0], atol=1e-5)


def test_below_a_clusters_head_are_its_most_probable_images():
    """Cells are black where a cluster has too few images."""
    model = autoencoder(categories=K)
    state = trained(model)
    cells = pictures(model, state, masked=10)["clusters"].cells
    y = np.asarray(model.apply(state.eval_variables, batch()["image"] / 255.0, method="encode").y)[:-10]
    head = model.apply(state.eval_variables, jnp.zeros((K, 2)), jnp.eye(K), method="decode")
    np.testing.assert_allclose(cells[0], head[..., 0], atol=1e-5)
    for cluster in range(K):
        own = np.flatnonzero(y.argmax(1) == cluster)
        best = own[np.argsort(-y[own, cluster])][:8]
        np.testing.assert_allclose(
            cells[1 : 1 + len(best), cluster], TEST.images[best, ..., 0] / 255.0, atol=1e-5, err_msg=str(cluster)
        )
        assert not cells[1 + len(best) :, cluster].any()


def test_each_row_of_classes_shows_the_classes_region_of_the_prior():
    """The manifold uses the same regions."""
    model = autoencoder(prior="uniform").clone(decoder=AAEDecoder(SHAPE, (), batch_norm=(), activation="sigmoid"))
    state = trained(model)
    kernel = np.zeros((2, 20), np.float32)
    kernel[0, 0] = kernel[1, 1] = 1.0  # the first two pixels show the code
    state = state.replace(
        params={**state.params, "decoder": {"output": {"kernel": kernel, "bias": np.zeros(20, np.float32)}}}
    )
    drawn = pictures(model, state, labels="prior")

    def pre_activation(cells):
        return np.log(cells / (1 - cells))

    shown = pre_activation(drawn["classes"].cells[:, :, 0, 0])
    for label in range(K):
        assert (shown[label] >= 2 * label / K - 1 - 1e-5).all() and (
            shown[label] <= 2 * (label + 1) / K - 1 + 1e-5
        ).all()
    steps = 2 * (np.arange(20) + 0.5) / 20 - 1
    np.testing.assert_allclose(pre_activation(drawn["manifold"].cells[5, :, 0, 0]), steps, atol=1e-5)
    np.testing.assert_allclose(pre_activation(drawn["manifold"].cells[:, 3, 0, 1]), -steps, atol=1e-5)


def test_metrics_are_of_test_images_with_the_validation_splits_window():
    model = autoencoder(prior_scale=2.0)
    state = trained(model)
    values = make_final_metrics(Config(model=model, metric_examples=100), TRAIN)(state, TEST)
    flat = [split.images.reshape(len(split), -1).astype(np.float32) / 255.0 for split in (TRAIN, VALIDATION, TEST)]
    assert values["parzen_of_training_images"] == pytest.approx(parzen(*flat).log_likelihood, rel=1e-5)
    z = model.apply(state.eval_variables, jnp.asarray(TEST.images / np.float32(255)), method="encode").z
    prior = 2.0 * np.asarray(jax.random.normal(jax.random.key(7), (4000, 2)))
    assert values["mmd"] == pytest.approx(mmd(np.asarray(z), prior, 2.0), rel=0.05)
    assert abs(values["mmd_of_prior"]) < 0.01 < values["mmd"]
    assert "frechet" not in values and "clustering_error" not in values


@pytest.mark.parametrize("labels", ["unused", "categories"])
def test_clusters_are_scored_on_images_not_used_to_label_them(labels):
    model = autoencoder(categories=K)
    state = trained(model)
    # The first pixel (0, 100/255 or 200/255) selects the category. The order of clusters differs from that of classes.
    kernel, logits = np.zeros((20, 8), np.float32), np.zeros((8, K), np.float32)
    kernel[0, 0], logits[0] = 255 / 100, [0.0, 100.0, 60.0]
    params = state.params["encoder"] | {
        "hidden_0": {"kernel": kernel, "bias": np.zeros(8, np.float32)},
        "logits": {"kernel": logits, "bias": np.array([10.0, -100.0, -30.0], np.float32)},
    }
    state = state.replace(params={**state.params, "encoder": params})
    values = make_final_metrics(Config(model=model, labels=labels, metric_examples=60), TRAIN)(state, TEST)
    assert values["probe_accuracy"] == 1.0
    assert values.get("clustering_error") == (0.0 if labels == "unused" else None)


def test_the_smallest_splits_have_finite_metrics():
    model = autoencoder(categories=K)
    train, test = (dataclasses.replace(source("any", MIN_EXAMPLES), name="mnist_sample") for _ in range(2))
    train = dataclasses.replace(train, open_split=lambda _: source("valid", 1))
    values = make_final_metrics(Config(model=model, metric_examples=MIN_EXAMPLES), train)(trained(model), test)
    assert {"frechet", "clustering_error"} <= values.keys() and all(map(np.isfinite, values.values()))


def test_the_frechet_distance_is_measured_of_digits_only():
    model = autoencoder()
    digits = dataclasses.replace(TRAIN, name="mnist_sample")
    values = make_final_metrics(Config(model=model, metric_examples=60), digits)(trained(model), TEST)
    assert values["frechet"] > 0.0 and values["frechet_of_training_images"] > 0.0
    assert {*values, "clustering_error"} <= set(METRIC_DESCRIPTIONS)  # The report has a description of each metric.
