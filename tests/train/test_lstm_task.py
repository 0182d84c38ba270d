"""The task of the LSTM: the course's training, and its pictures of the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from pictures import with_fitting_labels
from torch_sequence import TorchLSTMClassifier

from configs.base import Data
from configs.lstm import PRESETS
from train.data import open_source
from train.lstm import beside_its_rows, gates, make_task, spread


def sample(count):
    source = open_source(Data(), f"test[:{count}]")
    return source, source.gather(np.arange(count))


@pytest.mark.slow
def test_the_preset_mnist_trains_as_the_courses_program_does():
    torch.manual_seed(0)
    theirs = TorchLSTMClassifier(28, 256, 2, 10)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    source, batch = sample(32)
    images = torch.from_numpy(batch["image"][..., 0] / np.float32(255))
    labels = torch.from_numpy(batch["label"]).long()

    config = PRESETS["mnist"].config
    task = make_task(dataclasses.replace(config, run=dataclasses.replace(config.run, steps=4)), source)
    state, step = task.init().replace(params=theirs.our_params()), jax.jit(task.step)
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(theirs(images), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, theirs.our_params())


def test_every_value_of_a_row_is_equally_wide():
    """The image is in the middle of the row."""
    height, width, values = 3, 7, 4
    images = np.random.default_rng(0).uniform(size=(2, height, width, 1)).astype(np.float32)
    maps = np.random.default_rng(1).uniform(size=(2, 5, height, values)).astype(np.float32)
    grid = np.asarray(beside_its_rows(jnp.asarray(images), jnp.asarray(maps)))
    assert grid.shape == (2, 6, height, 8)
    np.testing.assert_array_equal(grid[:, 0, :, :7], images[..., 0])
    np.testing.assert_array_equal(grid[:, 0, :, 7], 0)
    np.testing.assert_array_equal(grid[:, 1:], np.repeat(maps, 2, axis=3))


def test_of_many_units_some_are_shown_from_the_most_forgetful_to_the_least():
    opened = np.random.default_rng(0).uniform(size=(2, 3, 5, 9)).astype(np.float32)
    order = opened[:, 1].mean(axis=(0, 1)).argsort()
    np.testing.assert_array_equal(spread(jnp.asarray(opened), 3), opened[..., order[[0, 4, 8]]])
    np.testing.assert_array_equal(spread(jnp.asarray(opened), 20), opened[..., order])


def test_a_row_of_the_figure_is_the_prediction_after_the_rows_above_it():
    source, batch = sample(3)
    config = PRESETS["tiny"].config
    task = make_task(config, source)
    state = task.init()
    pictures = with_fitting_labels(jax.jit(task.figures)(state, batch))
    assert pictures["gates"].column_labels == ("image", "input gate", "forget gate", "output gate")
    assert pictures["gates"].cells.shape == (3, 4, 28, 32)  # the image and three gates; 32 units
    cells = pictures["beliefs"].cells
    images = jnp.asarray(batch["image"][..., 0]) / 255.0
    assert cells.shape == (3, 2, 28, 30)
    np.testing.assert_allclose(cells[:, 0, :, 1:-1], images, atol=1e-6)
    for row in (0, 11, 27):
        logits, _ = config.model.apply({"params": state.params}, images[:, : row + 1])
        expected = np.repeat(jax.nn.softmax(logits), 3, axis=1)
        np.testing.assert_allclose(cells[:, 1, row], expected, rtol=1e-4, atol=1e-6)


def test_the_gates_are_those_of_torchs_cell_step_by_step():
    steps, width, hidden, batch = 5, 3, 4, 2
    torch.manual_seed(0)
    cell = torch.nn.LSTMCell(width, hidden)
    x = torch.randn(batch, steps, width)
    h, c, expected, outputs = torch.zeros(batch, hidden), torch.zeros(batch, hidden), [], []
    for t in range(steps):
        logits = x[:, t] @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
        i, f, _, o = logits.unflatten(1, (4, hidden)).sigmoid().unbind(1)
        expected.append(torch.stack([i, f, o], dim=1))
        h, c = cell(x[:, t], (h, c))
        outputs.append(h)
    expected = torch.stack(expected, dim=2).detach().numpy()  # [B, 3, T, H]
    cells = {"input": cell.weight_ih, "hidden": cell.weight_hh}
    params = {f"{name}_kernel": rearrange(w.detach().numpy(), "(g h) i -> i g h", g=4) for name, w in cells.items()}
    params |= {"input_bias": cell.bias_ih.detach().numpy().reshape(4, hidden)}
    params |= {"hidden_bias": cell.bias_hh.detach().numpy().reshape(4, hidden)}
    found = gates(x.numpy(), params, torch.stack(outputs).detach().numpy())
    np.testing.assert_allclose(found, expected, atol=1e-6)
