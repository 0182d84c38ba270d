"""The task of attention over rows: its pictures of the model."""

import jax
import jax.numpy as jnp
import numpy as np

from configs.mha import PRESETS
from train.data import open_source
from train.mha import make_task, row_attention_grid


def test_a_map_highlights_the_attended_row_on_each_line():
    height, width, heads = 4, 12, 2
    weights = np.full((1, heads, height, height), 1e-3, np.float32)
    for row in range(height):
        weights[0, 0, row, 3 - row] = 0.9
        weights[0, 1, row, min(row + 1, 3)] = 0.5
    images = np.zeros((1, height, width, 3), np.float32)
    grid = np.asarray(row_attention_grid(jnp.asarray(images), jnp.asarray(weights)))
    assert grid.shape == (1, 1 + heads, height, width)
    for head in range(heads):
        expected = weights[0, head] == weights[0, head].max()
        np.testing.assert_array_equal(grid[0, 1 + head] > 0.99, np.repeat(expected, 3, axis=1))


def test_the_figure_is_the_image_and_the_last_blocks_attention_to_rows():
    config = PRESETS["tiny"].config
    source = open_source(config.data, "test[:3]")
    batch = source.gather(np.arange(3))
    task = make_task(config, source)
    state = task.init()
    noise = jax.random.normal(jax.random.key(0), state.params["positions"].shape)
    state = state.replace(params={**state.params, "positions": noise})
    picture = jax.jit(task.figures)(state, batch)["attention"]
    cells = picture.cells
    assert picture.column_labels == ("image", *(f"head {head}" for head in range(1, config.model.num_heads + 1)))
    images = jnp.asarray(batch["image"][..., 0]) / 255.0
    _, attentions = config.model.apply({"params": state.params}, 2.0 * images - 1.0, return_attention=True)
    np.testing.assert_allclose(cells[:, 0], images, atol=1e-6)
    expected = attentions[-1] / attentions[-1].max(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(cells[:, 1:], expected, rtol=1e-4, atol=1e-5)
