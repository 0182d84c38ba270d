"""The task of the ViT: what it shows of the model."""

import jax.numpy as jnp
import numpy as np
import pytest

from train.vit import attention_grid


@pytest.mark.parametrize("class_token", [True, False])
def test_the_attention_grid_lights_the_patch_that_is_looked_at(class_token):
    height, width, patch, heads = 2, 3, 4, 5
    tokens = height * width + class_token
    weights = np.full((1, heads, tokens, tokens), 1e-3, np.float32)
    for head in range(heads):
        weights[0, head, 0 if class_token else slice(None), class_token + head] = 0.9  # head h looks at patch h
    images = np.zeros((1, height * patch, width * patch, 3), np.float32)
    grid = np.asarray(attention_grid(jnp.asarray(images), jnp.asarray(weights), patch, class_token))
    assert grid.shape == (1, 1 + heads, height * patch, width * patch)
    for head in range(heads):
        row, column = divmod(head, width)
        bright = grid[0, 1 + head] > 0.99
        expected = np.zeros_like(bright)
        expected[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = True
        np.testing.assert_array_equal(bright, expected)
