"""What the image classification tasks share: presets, and augmentation in training but not in evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import CLASSIFIERS, make_task, preset, presets

from configs.base import Augment
from train.data import abstract_source, open_source
from train.data.source import InMemorySource
from train.task import NONFINITE

# The picture that shows each image next to the model's map, and whether the picture is in colour.
FIGURES = {"lstm": ("beliefs", False), "mha": ("attention", False), "vit": ("attention", True)}


@pytest.mark.parametrize(
    ("name", "of"),
    [
        pytest.param(name, of, marks=[] if of == "tiny" else pytest.mark.slow)
        for name in CLASSIFIERS
        for of in presets(name)
    ],
)
def test_every_preset_fits_the_images_it_is_made_for(name, of):
    config = preset(name, of)
    source = abstract_source(config.data, config.data.train_split)
    task, size = make_task(name, config, source), config.run.batch_size
    state = jax.eval_shape(task.init)
    batch = {
        "image": jax.ShapeDtypeStruct((size, *source.image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    after, metrics = jax.eval_shape(task.step, state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics.pop(NONFINITE).shape == (len(jax.tree.leaves(state.params)),)
    assert {value.shape for value in metrics.values()} == {()}


def test_augmentation_and_smoothing_change_training_and_never_evaluation():
    tiny = preset("lstm")  # the task that compiles fastest; the tested code is the same for all
    source = open_source(tiny.data, "test[:16]")
    batch = {k: jnp.asarray(x) for k, x in source.gather(np.arange(16)).items()}

    def outcome(**change):
        """Returns the first step's loss, and the evaluation before it, of a model whose head is not zero."""
        task = make_task("lstm", dataclasses.replace(tiny, **change), source)
        state = jax.jit(task.init)()
        head = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), state.params["head"])
        state = state.replace(params={**state.params, "head": head})
        return float(jax.jit(task.step)(state, batch)[1]["loss"]), jax.jit(task.evaluate)(state, batch)

    loss, values = outcome()
    np.testing.assert_allclose(loss, values["loss"].mean(), rtol=1e-5)
    for change in ({"augment": Augment(shift=3)}, {"label_smoothing": 0.2}):
        changed, same = outcome(**change)
        assert abs(changed - loss) > 1e-3
        np.testing.assert_allclose(same["loss"], values["loss"], rtol=1e-5)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_colour_images_of_any_shape_are_classified_and_drawn(name):
    height, width, classes = (14, 21, 3)
    config = preset(name)
    config = dataclasses.replace(config, model=config.model.clone(num_classes=classes))
    images = np.random.default_rng(0).integers(0, 256, (5, height, width, 3), np.uint8)
    source = InMemorySource("colours", "train", images.shape[1:], classes, [], images, np.arange(5) % classes)
    task, batch = make_task(name, config, source), source.gather(np.arange(5))
    state = jax.jit(task.init)()
    pictures = jax.jit(task.figures)(state, batch)
    for picture in pictures.values():
        assert picture.cells.min() >= 0 and picture.cells.max() <= 1 + 1e-6
    if name in FIGURES:
        figure, in_colour = FIGURES[name]
        cells = pictures[figure].cells
        assert cells.shape[0] == 5 and cells.shape[2:4] == (height, width)
        np.testing.assert_allclose(cells[:, 0], (images if in_colour else images.mean(axis=-1)) / 255.0, atol=1e-5)
