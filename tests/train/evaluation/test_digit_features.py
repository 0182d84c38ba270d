"""The script that trains the digit features: it learns digits, and its file of weights can be read."""

import jax
import numpy as np
import pytest

from benchmarks.makers.digit_features import accuracy, save, train
from configs.base import Data
from train.data import open_source
from train.evaluation.frechet import load_weights


@pytest.mark.slow
def test_training_learns_and_its_weights_are_read_back(tmp_path):
    params = train(open_source(Data(), "train[:1000]"), steps=12)
    file = tmp_path / "weights"
    save(params, file)
    weights = load_weights(file)
    assert jax.tree.structure(weights) == jax.tree.structure(params)
    for read, written in zip(jax.tree.leaves(weights), jax.tree.leaves(params), strict=True):
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, written, rtol=1e-3, atol=1e-6)
    assert accuracy(weights, open_source(Data(), "test[:300]")) > 0.5
