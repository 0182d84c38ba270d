"""The task of the ViT: what it feeds the model, and what it shows of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import Augment
from configs.vit import PRESETS
from train.data import open_source
from train.data.source import Memory
from train.vit import attention_grid, make_task

CONFIG = PRESETS["tiny"]


@pytest.fixture(scope="module")
def source():
    return open_source(CONFIG.data, "test[:16]")


@pytest.fixture(scope="module")
def batch(source):
    return {k: jnp.asarray(x) for k, x in source.gather(np.arange(16)).items()}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_the_images_it_is_made_for(name):
    config = PRESETS[name]
    shape = (32, 32, 3) if config.data.name.startswith("cifar") else (28, 28, 1)
    nothing = np.zeros(0)
    source = Memory(config.data.name, "train", shape, config.model.num_classes, [], nothing, nothing)
    task, size = make_task(config, source), config.run.batch_size
    state = jax.eval_shape(task.init)
    batch = {
        "image": jax.ShapeDtypeStruct((size, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    after, metrics = jax.eval_shape(task.step, state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {value.shape for value in metrics.values()} == {()}


def outcome(config, source, batch):
    """The first step's loss, and the evaluation before it, of a model whose head is not zero."""
    task = make_task(config, source)
    state = jax.jit(task.init)()
    head = {"kernel": jax.random.normal(jax.random.key(0), (32, 10)), "bias": jnp.zeros(10)}
    state = state.replace(params={**state.params, "head": head})
    return float(jax.jit(task.step)(state, batch)[1]["loss"]), jax.jit(task.evaluate)(state, batch)


def test_augmentation_and_smoothing_change_training_and_never_evaluation(source, batch):
    loss, values = outcome(CONFIG, source, batch)
    np.testing.assert_allclose(loss, values["loss"].mean(), rtol=1e-5)
    for change in ({"augment": Augment(shift=3)}, {"label_smoothing": 0.2}):
        changed, same = outcome(dataclasses.replace(CONFIG, **change), source, batch)
        assert abs(changed - loss) > 1e-3
        np.testing.assert_allclose(same["loss"], values["loss"], rtol=1e-5)


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
