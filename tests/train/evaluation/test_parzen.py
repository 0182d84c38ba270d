"""The Parzen-window likelihood equals the formula, also in float32, and selects its width on validation images."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.evaluation import arrays, parzen

RNG = np.random.default_rng(0)
SAMPLES, VALIDATION, TEST = (RNG.uniform(size=(n, 97)).astype(np.float32) for n in (31, 19, 23))


def direct(samples, images, sigma):
    """Computes each image's log-likelihood by the formula in float64; only the largest exponent is factored out."""
    distances = ((images[:, None].astype(np.float64) - samples[None]) ** 2).sum(axis=-1)
    exponents = -distances / (2 * sigma**2)
    largest = exponents.max(axis=1, keepdims=True)
    kernels = np.log(np.exp(exponents - largest).mean(axis=1)) + largest[:, 0]
    return kernels - images.shape[1] / 2 * math.log(2 * math.pi * sigma**2)


def test_it_equals_the_formula_at_the_best_width_for_validation_images():
    # The test images are also the samples, so they would select the narrowest kernel.
    means = [direct(SAMPLES, VALIDATION, sigma).mean() for sigma in parzen.SIGMAS]
    best = int(np.argmax(means))
    assert 0 < best < 9
    result = parzen.parzen(SAMPLES, VALIDATION, SAMPLES)
    values = direct(SAMPLES, SAMPLES, parzen.SIGMAS[best])
    assert result.sigma == pytest.approx(10 ** (best / 9 - 1))
    assert result.log_likelihood == pytest.approx(values.mean(), abs=1e-3)
    values = direct(SAMPLES, TEST, parzen.SIGMAS[best])
    result = parzen.parzen(SAMPLES, VALIDATION, TEST)
    assert result.log_likelihood == pytest.approx(values.mean(), abs=1e-3)
    assert result.standard_error == pytest.approx(values.std() / math.sqrt(len(values)), rel=1e-3)


def test_every_width_in_float32_is_as_exact_as_the_formula():
    result = parzen.log_likelihoods(SAMPLES, TEST, parzen.SIGMAS)
    expected = np.stack([direct(SAMPLES, TEST, sigma) for sigma in parzen.SIGMAS], axis=1)
    np.testing.assert_allclose(result, expected, atol=5e-3)


def test_one_sample_gives_a_normal_density_centered_on_the_sample():
    sigmas = np.array([0.1, 0.4])
    result = parzen.log_likelihoods(SAMPLES[:1], SAMPLES[:1], sigmas)
    np.testing.assert_allclose(result, -97 / 2 * np.log(2 * math.pi * sigmas**2)[None], atol=5e-3)


def test_any_block_size_gives_the_same_result(monkeypatch):
    whole = parzen.parzen(SAMPLES, VALIDATION, TEST)
    monkeypatch.setattr(parzen, "rows_per_block", lambda others: 5)  # 5 divides neither 19 nor 23
    np.testing.assert_allclose(parzen.parzen(SAMPLES, VALIDATION, TEST), whole, rtol=1e-5)


def test_shifts_mirrors_and_doubled_samples_change_nothing():
    whole = np.array(parzen.parzen(SAMPLES, VALIDATION, TEST))
    for change in (lambda x: x + 20, lambda x: x[:, ::-1], lambda x: jnp.asarray(x)):
        np.testing.assert_allclose(parzen.parzen(*map(change, (SAMPLES, VALIDATION, TEST))), whole, rtol=3e-4)
    np.testing.assert_allclose(parzen.parzen(np.repeat(SAMPLES, 2, 0), VALIDATION, TEST), whole, rtol=1e-5)


def test_full_size_needs_much_less_than_a_gigabyte():
    images = jax.ShapeDtypeStruct((10_000, 784), np.float32)
    compiled = parzen._log_sums.lower(images, images, np.ones(10, np.float32), arrays.rows_per_block(10_000)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 250e6


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, np.zeros((5, 7, 7), np.float32), r"samples must be floats \[N, D\], got float32 \[5, 7, 7\]"),
        (1, np.zeros((5, 97), np.uint8), r"validation must be floats \[N, D\], got uint8 \[5, 97\]"),
        (2, np.zeros((0, 97), np.float32), "test must have 1 or more rows, got 0"),
        (
            2,
            np.zeros((5, 98), np.float32),
            r"the number of columns must be the same, got samples \[31, 97\], .* test \[5, 98\]",
        ),
        (0, np.full((5, 97), np.nan, np.float32), "samples must be finite, got NaN or infinity in 5 of 5 rows"),
    ],
)
def test_invalid_sets_of_images_raise(place, wrong, message):
    images = [SAMPLES, VALIDATION, TEST]
    images[place] = wrong
    with pytest.raises(ValueError, match=message):
        parzen.parzen(*images)
