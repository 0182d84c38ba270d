"""The probe is logistic regression at its minimum: it finds what is linear in a code and is at chance on noise."""

import jax.numpy as jnp
import numpy as np
import pytest

from train.evaluation import probe
from train.evaluation.probe import probe_accuracy

RNG = np.random.default_rng(0)
V, Z = 4, 3  # plus one constant coordinate
CENTERS = RNG.normal(size=(V, Z)).astype(np.float32)


def cloud(count, spread):
    labels = RNG.integers(0, V, count)
    codes = CENTERS[labels] + spread * RNG.normal(size=(count, Z)).astype(np.float32)
    return np.pad(codes, ((0, 0), (0, 1)), constant_values=3.3), labels


CODES, LABELS = cloud(301, 0.5)
TEST_CODES, TEST_LABELS = cloud(203, 0.5)


def test_the_solution_is_the_minimum_where_the_gradient_vanishes():
    targets = np.eye(V)[LABELS]
    weights, biases = (np.asarray(x, np.float64) for x in probe._fit(CODES, jnp.asarray(targets)))
    logits = CODES @ weights + biases
    wrong = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - targets
    np.testing.assert_allclose((CODES.T @ wrong + weights) / len(CODES), 0, atol=2e-5)
    np.testing.assert_allclose(wrong.mean(axis=0), 0, atol=2e-5)


def test_separable_codes_have_no_error_and_noise_is_at_chance():
    assert probe_accuracy(*cloud(301, 0.01), *cloud(203, 0.01), V) == 1.0
    noise = RNG.normal(size=(1203, Z + 1)).astype(np.float32)
    labels = RNG.integers(0, V, 1203)
    assert abs(probe_accuracy(noise[:301], labels[:301], noise[301:], labels[301:], V) - 1 / V) < 0.06


def test_scale_and_offset_of_each_coordinate_change_nothing():
    accuracy = probe_accuracy(CODES, LABELS, TEST_CODES, TEST_LABELS, V)
    assert 0.6 < accuracy < 0.95

    def change(codes):
        return codes * np.float32([1000, 1, -0.01, 2]) + np.float32([0, 50, 0, 1])

    changed = probe_accuracy(change(CODES), LABELS, change(TEST_CODES), TEST_LABELS, V)
    assert changed == pytest.approx(accuracy, abs=0.011)  # rounding may change two predictions at the boundary


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_coordinate_is_ignored_even_if_it_varies_in_test_codes(dtype):
    codes, still, moved = CODES.astype(dtype), TEST_CODES.astype(dtype), TEST_CODES.astype(dtype)
    codes[:, 3], still[:, 3], moved[:, 3] = 3.3, 3.3, 3.4
    accuracy = probe_accuracy(codes, LABELS, still, TEST_LABELS, V)
    assert probe_accuracy(codes, LABELS, moved, TEST_LABELS, V) == pytest.approx(accuracy, abs=0.011)


def test_the_accuracy_is_measured_on_the_test_codes():
    codes, labels = cloud(301, 0.01)
    test_codes, test_labels = cloud(203, 0.01)
    test_labels[:50] = (test_labels[:50] + 1) % V
    assert probe_accuracy(codes, labels, test_codes, test_labels, V) == pytest.approx(153 / 203)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": CODES[:, 0]}, r"codes must be floats \[N, D\], got float32 \[301\]"),
        (
            {"codes": CODES[:, :3]},
            r"the number of columns must be the same, got codes \[301, 3\], test_codes \[203, 4\]",
        ),
        ({"labels": LABELS[:300]}, r"labels must be integers \[301\], got int64 \[300\]"),
        ({"test_labels": TEST_LABELS / 1.0}, r"test_labels must be integers \[203\], got float64 \[203\]"),
        ({"num_classes": 3}, r"labels must be in 0\.\.2, got 0\.\.3"),
    ],
)
def test_mismatched_inputs_raise(change, message):
    fitting = {"codes": CODES, "labels": LABELS, "test_codes": TEST_CODES, "test_labels": TEST_LABELS, "num_classes": V}
    with pytest.raises(ValueError, match=message):
        probe_accuracy(**{**fitting, **change})
