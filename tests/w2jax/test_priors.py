"""The priors: their shape, and the region of each class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2jax.priors import place_codes, sample_prior

KEY, N, K = jax.random.key(0), 20_000, 5
PRIORS = ("gaussian", "mixture", "swiss_roll", "uniform")


def draw(prior, size=2, scale=2.0, classes=None, count=N):
    return np.asarray(sample_prior(KEY, prior, count, size, scale, classes, K))


def test_a_gaussian_has_its_standard_deviation_in_every_direction():
    codes = draw("gaussian", 3)
    np.testing.assert_allclose(np.cov(codes.T), 4.0 * np.eye(3), atol=0.15)
    along = codes @ np.array([0.6, -0.48, 0.64]) / 2.0
    for bound, mass in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert np.mean(np.abs(along) < bound) == pytest.approx(mass, abs=0.01)


def test_the_uniform_prior_fills_its_cube_evenly():
    codes = draw("uniform", 3)
    counts, _ = np.histogramdd(codes, bins=3, range=[(-2, 2)] * 3)
    np.testing.assert_allclose(counts, N / 27, rtol=0.15)


def test_the_mixtures_components_are_on_a_circle_longer_along_the_radius():
    codes = draw("mixture")
    angle = np.arctan2(codes[:, 1], codes[:, 0]) % (2 * np.pi)
    component = np.round(angle / (2 * np.pi / K)).astype(int) % K
    np.testing.assert_allclose(np.bincount(component), N / K, rtol=0.05)
    for k in range(K):
        turn = -2 * np.pi * k / K
        own = codes[component == k] @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        np.testing.assert_allclose(own.mean(0), [2.0, 0.0], atol=0.05)
        np.testing.assert_allclose(own.std(0), [0.5, 0.12], rtol=0.1)


def test_the_swiss_roll_is_a_thin_spiral_of_even_density():
    codes = draw("swiss_roll")
    radius = np.hypot(*codes.T)
    assert np.quantile(radius, 0.999) == pytest.approx(2.0, rel=0.1)
    # In an Archimedean spiral, the radius determines the angle, up to the thickness.
    angle = np.arctan2(codes[:, 1], codes[:, 0])
    off = (angle - 2 * np.pi * radius / 1.0 + np.pi) % (2 * np.pi) - np.pi
    outer = radius > 0.7
    assert np.abs(off[outer]).mean() < 0.5  # unrelated angles would give π/2
    # With even density along the roll, the mass within a radius grows as the square of the radius.
    for part in (0.3, 0.6, 0.9):
        assert np.mean(radius < 2.0 * part) == pytest.approx(part**2, abs=0.03)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_parts_of_the_classes_together_form_the_prior(prior):
    classes = jnp.arange(N) % K
    parts, whole = draw(prior, classes=classes), draw(prior)
    # The nearest other code almost always has the same class: the parts do not mix.
    some = np.random.default_rng(0).permutation(N)[:400]
    distances = np.linalg.norm(parts[some, None] - parts[None], axis=-1)
    distances[np.arange(400), some] = np.inf
    nearest = np.asarray(classes)[distances.argmin(1)]
    assert np.mean(nearest == np.asarray(classes)[some]) > 0.95
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        np.testing.assert_allclose(np.quantile(parts, quantile, 0), np.quantile(whole, quantile, 0), atol=0.12)


@pytest.mark.parametrize("prior", PRIORS)
def test_an_unknown_class_is_drawn_from_the_full_prior(prior):
    classes = jnp.where(jnp.arange(N) % 2 == 0, -1, 3)
    mixed = draw(prior, classes=classes)
    np.testing.assert_array_equal(mixed[::2], draw(prior)[::2])
    np.testing.assert_array_equal(mixed[1::2], draw(prior, classes=jnp.full(N, 3))[1::2])


@pytest.mark.parametrize("prior", PRIORS)
def test_codes_are_finite_at_the_edges_of_the_unit_square(prior):
    edges = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    assert np.isfinite(place_codes(edges, prior, 2.0, K)).all()


@pytest.mark.parametrize(("prior", "size"), [("mixture", 8), ("swiss_roll", 3), ("swiss_roll", 1)])
def test_a_prior_of_the_plane_is_refused_elsewhere(prior, size):
    with pytest.raises(ValueError, match=f"latent_size must be 2 for the prior {prior}, got {size}"):
        sample_prior(KEY, prior, 4, size)
