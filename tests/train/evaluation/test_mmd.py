"""The discrepancy is Gretton's unbiased estimate with the kernels of WAE."""

import numpy as np
import pytest

from train.evaluation import mmd as module
from train.evaluation.mmd import mmd

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(41, 3)).astype(np.float32), RNG.normal(0.5, 2, size=(29, 3)).astype(np.float32)


def direct(x, y, std):
    """Computes the estimate pair by pair in float64, as in the papers."""

    def kernel(a, b):
        square = ((a.astype(np.float64) - b) ** 2).sum()
        return sum(s * 2 * a.size * std**2 / (s * 2 * a.size * std**2 + square) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    def among(points):
        n = len(points)
        return sum(kernel(points[i], points[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    return among(x) + among(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


@pytest.mark.parametrize("std", [1.0, 5.0])
def test_it_is_the_mean_over_pairs_of_different_points(std):
    assert mmd(X, Y, std) == pytest.approx(direct(X, Y, std), abs=3e-6)


def test_it_is_symmetric_and_invariant_to_shifts_scales_and_block_size(monkeypatch):
    value = mmd(X, Y)
    assert mmd(Y, X) == pytest.approx(value, abs=2e-6)
    assert mmd(X + 10, Y + 10) == pytest.approx(value, abs=1e-5)
    assert mmd(5 * X, 5 * Y, 5.0) == pytest.approx(value, abs=2e-6)
    monkeypatch.setattr(module, "rows_per_block", lambda others: 4)
    assert mmd(X, Y) == pytest.approx(value, abs=2e-6)


def test_for_equal_distributions_it_is_zero_on_average_and_often_negative():
    values = np.array([mmd(*RNG.normal(size=(2, 20, 3)).astype(np.float32)) for _ in range(300)])
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error < 0.03  # the biased estimate would be near 0.5
    assert 0.3 < (values < 0).mean() < 0.8


def test_it_grows_with_the_distance_up_to_twice_the_number_of_kernels():
    codes, prior = RNG.normal(size=(2, 500, 2)).astype(np.float32)
    near, far = mmd(codes + 0.3, prior), mmd(codes + 1, prior)
    assert 5 * abs(mmd(codes, prior)) < near < far / 3
    apart = mmd(0.01 * codes, 0.01 * prior + 1000)  # within a cloud each kernel is 1, between the clouds 0
    assert apart == pytest.approx(2 * 7, abs=0.05)


@pytest.mark.parametrize(
    ("x", "y", "std", "message"),
    [
        (X[0], Y, 1.0, r"x must be floats \[N, D\], got float32 \[3\]"),
        (X, Y[:1], 1.0, "y must have 2 or more rows, got 1"),
        (X[:, :2], Y, 1.0, r"the number of columns must be the same, got x \[41, 2\], y \[29, 3\]"),
        (X, Y, 0.0, "prior_std must be positive, got 0.0"),
    ],
)
def test_mismatched_inputs_raise(x, y, std, message):
    with pytest.raises(ValueError, match=message):
        mmd(x, y, std)
