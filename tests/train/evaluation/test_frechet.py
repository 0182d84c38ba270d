"""The Fréchet distance equals the formula, and its features recognize digits."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import Data
from train.data import open_source
from train.evaluation.frechet import WEIGHTS, classify, digit_features, frechet_distance, load_weights

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(37, 5)), RNG.normal(1, 2, size=(23, 5)) @ RNG.normal(size=(5, 5))


def digits(split):
    source = open_source(Data(), split)
    examples = source.gather(np.arange(len(source)))
    return examples["image"] / np.float32(255), examples["label"]


def with_moments(mean, covariance, count):
    """Returns points with exactly this mean and this unbiased covariance."""
    points = RNG.normal(size=(count, len(mean)))
    points = points - points.mean(axis=0)
    root = np.linalg.cholesky(covariance) @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T)))
    return mean + points @ root.T


def test_it_equals_the_formula_with_the_root_of_the_covariances_product():
    values = np.linalg.eigvals(np.cov(X.T) @ np.cov(Y.T))  # of the nonsymmetric product, as in the paper
    expected = ((X.mean(0) - Y.mean(0)) ** 2).sum() + np.trace(np.cov(X.T) + np.cov(Y.T)) - 2 * np.sqrt(values).sum()
    assert frechet_distance(X, Y) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(Y, X) == pytest.approx(expected, rel=1e-5)


def test_between_two_normal_distributions_it_has_the_known_value():
    # Along one axis the squared distance is (m - n)² + (s - t)². The distances of the axes add up, in any rotation.
    turn, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    x = with_moments(turn @ [1.0, 2, 3], turn @ np.diag([1.0, 4, 9]) @ turn.T, 31)
    y = with_moments(turn @ [1.0, 0, 4], turn @ np.diag([25.0, 1, 9]) @ turn.T, 17)
    assert frechet_distance(x, y) == pytest.approx((0 + 16) + (4 + 1) + (1 + 0), rel=1e-5)


def test_the_distance_to_itself_is_zero_and_to_a_shifted_set_is_the_shift():
    assert frechet_distance(X, X) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(X, X + np.array([3.0, 0, 0, 4, 0])) == pytest.approx(25, rel=1e-5)
    few = X[:3]  # fewer points than features: the covariance is not invertible
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_the_shipped_classifier_recognizes_the_samples_test_digits():
    images, labels = digits("test")
    logits, features = classify(load_weights(), jnp.asarray(images))
    assert (np.asarray(logits).argmax(axis=1) == labels).mean() >= 0.985
    np.testing.assert_array_equal(digit_features(images), features)
    assert WEIGHTS.stat().st_size < 250_000


def test_test_digits_are_near_training_digits():
    """Noise, blurred digits and sets without some classes are far from them."""
    images, labels = digits("train[:2000]")
    train, test = digit_features(images), digit_features(digits("test")[0])
    floor = frechet_distance(train, test)
    blurred = (images + np.roll(images, 1, axis=1) + np.roll(images, 1, axis=2)) / 3
    noise = RNG.uniform(size=images.shape).astype(np.float32)
    assert frechet_distance(digit_features(blurred), test) > 2 * floor
    assert frechet_distance(train[labels != 4], test) > 2 * floor
    assert frechet_distance(digit_features(noise), test) > 100 * floor


def test_an_images_features_depend_only_on_it_and_little_on_its_size():
    images, _ = digits("train[:300]")  # more images than one batch
    features = digit_features(images)
    assert features.shape == (300, 64) and features.min() == 0
    np.testing.assert_allclose(digit_features(images[297:]), features[297:], rtol=1e-3, atol=1e-3)
    large = images[:7].repeat(2, axis=1).repeat(3, axis=2)
    error = np.abs(digit_features(large) - features[:7]).mean()
    assert error < 0.1 * np.abs(features[1:8] - features[:7]).mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(X[0], Y), r"x must be floats \[N, D\], got float64 \[5\]"),
        (lambda: frechet_distance(X, Y[:1]), "y must have 2 or more rows, got 1"),
        (
            lambda: frechet_distance(X, Y[:, 1:]),
            r"the number of columns must be the same, got x \[37, 5\], y \[23, 4\]",
        ),
        (lambda: digit_features(np.zeros((2, 28, 28))), r"images must be floats \[N, h, w, 1\].*got float64 \[2, 28"),
        (lambda: digit_features(np.zeros((2, 9, 9, 3))), r"images must be floats .* got float64 \[2, 9, 9, 3\]"),
        (lambda: digit_features(np.zeros((2, 9, 9, 1), np.uint8)), "images must be floats .* got uint8"),
    ],
)
def test_mismatched_inputs_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
