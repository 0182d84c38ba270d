"""What the image classification tasks share: presets, and augmentation in training but not in evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec
from tasks import CLASSIFIERS, make_task, preset, presets

from configs.base import Augment, Mesh
from train.classify import weighted
from train.data import abstract_source, open_source
from train.data.source import InMemorySource
from train.engine.sharding import batch_sharding, make_mesh
from train.task import NONFINITE

# The picture that shows each image next to the model's map, and whether the picture is in color.
FIGURES = {"lstm": ("beliefs", False), "mha": ("attention", False), "vit": ("attention", True)}


@pytest.mark.parametrize(
    ("name", "of"),
    [
        pytest.param(name, of, marks=[] if of == "tiny" else pytest.mark.slow)
        for name in CLASSIFIERS
        for of in presets(name)
        if of not in ("finetune", "probe")  # They are made for the images of the weights.
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
def test_color_images_of_any_shape_are_classified_and_drawn(name):
    height, width, classes = (14, 21, 3)
    config = preset(name)
    config = dataclasses.replace(config, model=config.model.clone(num_classes=classes))
    images = np.random.default_rng(0).integers(0, 256, (5, height, width, 3), np.uint8)
    source = InMemorySource("colors", "train", images.shape[1:], classes, [], images, np.arange(5) % classes)
    task, batch = make_task(name, config, source), source.gather(np.arange(5))
    state = jax.jit(task.init)()
    pictures = jax.jit(task.figures)(state, batch)
    for picture in pictures.values():
        assert picture.cells.min() >= 0 and picture.cells.max() <= 1 + 1e-6
    if name in FIGURES:
        figure, in_color = FIGURES[name]
        cells = pictures[figure].cells
        assert cells.shape[0] == 5 and cells.shape[2:4] == (height, width)
        np.testing.assert_allclose(cells[:, 0], (images if in_color else images.mean(axis=-1)) / 255.0, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("is_mixed", [False, True], ids=["labels", "mixup"])
def test_weighted_classes_give_the_loss_of_torch(smoothing, is_mixed):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((7, 4), np.float32), rng.integers(0, 4, 7)
    weights, targets = np.array([0.5, 3.0, 1.0, 2.0], np.float32), np.eye(4, dtype=np.float32)[labels]
    if is_mixed:
        targets = 0.7 * targets + 0.3 * np.roll(targets, 1, axis=0)
    smoothed = optax.smooth_labels(jnp.asarray(targets), smoothing)
    ours = optax.softmax_cross_entropy(logits, weighted(smoothed, jnp.asarray(targets), jnp.asarray(weights))).mean()
    loss = torch.nn.CrossEntropyLoss(torch.from_numpy(weights), label_smoothing=smoothing)
    theirs = loss(torch.from_numpy(logits), torch.from_numpy(targets if is_mixed else labels))
    if is_mixed:  # torch divides by the number of examples, and we by the sum of their weights.
        theirs = theirs * len(labels) / (targets @ weights).sum()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_balanced_classes_train_with_their_weights_in_micro_batches_and_on_one_device(parts):
    """The step's loss is that of torch for the counts of the training split, however the batch is divided."""
    labels = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 35]).astype(np.int32)
    images = np.random.default_rng(0).integers(0, 256, (80, 28, 28, 1), np.uint8)
    source = InMemorySource("uneven", "train", (28, 28, 1), 10, [], images, labels)
    config = dataclasses.replace(preset("vit"), class_weights="balanced", mesh=Mesh(parts, 1, 1, cpu_micro_batch=2))
    task = make_task("vit", config, source)
    chosen = np.arange(3, 80, 5)[:8]
    batch = {name: jnp.asarray(x) for name, x in source.gather(chosen).items()}
    state, mesh = jax.jit(task.init)(), make_mesh(config.mesh)
    head = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), state.params["head"])
    state = state.replace(params={**state.params, "head": head})

    def step(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return task.step(state, batch)

    placed = jax.device_put(state, NamedSharding(mesh, PartitionSpec())), jax.device_put(batch, batch_sharding(mesh))
    metrics = jax.jit(step)(*placed)[1]
    probabilities = np.asarray(jax.jit(task.probabilities)(state, batch))
    loss = torch.nn.NLLLoss(torch.tensor(80 / (10 * np.bincount(labels)), dtype=torch.float32))
    expected = loss(torch.from_numpy(np.log(probabilities)), torch.from_numpy(labels[chosen]).long())
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_the_five_most_probable_classes_count_as_top5():
    tiny = preset("vit")
    source = open_source(tiny.data, "test[:32]")
    batch = {k: jnp.asarray(x) for k, x in source.gather(np.arange(32)).items()}
    task = make_task("vit", tiny, source)
    state = jax.jit(task.init)()
    head = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), state.params["head"])
    state = state.replace(params={**state.params, "head": head})
    probabilities = np.asarray(task.probabilities(state, batch))
    own = probabilities[np.arange(32), np.asarray(batch["label"])]
    expected = (probabilities > own[:, None]).sum(axis=1) < 5
    assert 0 < expected.sum() < 32
    np.testing.assert_array_equal(task.evaluate(state, batch)["top5_accuracy"], expected)
