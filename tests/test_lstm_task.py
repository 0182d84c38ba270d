"""The task of the LSTM: the course's run, and what it shows of the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange
from torch_sequence import TorchLSTMClassifier

from configs.base import Data
from configs.lstm import PRESETS
from train.data import open_source
from train.lstm import belief_grid, gate_grid, make_task


def sample(count):
    source = open_source(Data(), f"test[:{count}]")
    return source, source.gather(np.arange(count))


def test_the_preset_mnist_trains_as_the_courses_program_does():
    torch.manual_seed(0)
    theirs = TorchLSTMClassifier(28, 256, 2, 10)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    source, batch = sample(32)
    images = torch.from_numpy(batch["image"][..., 0] / np.float32(255))
    labels = torch.from_numpy(batch["label"]).long()

    config = PRESETS["mnist"]
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


def test_every_class_is_equally_wide_in_a_map_and_the_image_stands_in_its_middle():
    height, width, classes = 3, 7, 4
    images = np.random.default_rng(0).uniform(size=(2, height, width, 1)).astype(np.float32)
    beliefs = np.random.default_rng(1).uniform(size=(2, height, classes)).astype(np.float32)
    grid = np.asarray(belief_grid(jnp.asarray(images), jnp.asarray(beliefs)))
    assert grid.shape == (2, 2, height, 8)
    np.testing.assert_array_equal(grid[:, 0, :, :7], images[..., 0])
    np.testing.assert_array_equal(grid[:, 0, :, 7], 0)
    np.testing.assert_array_equal(grid[:, 1], np.repeat(beliefs, 2, axis=2))


def test_a_line_of_the_figure_is_what_is_believed_of_the_image_cut_below_it():
    source, batch = sample(3)
    config = PRESETS["tiny"]
    task = make_task(config, source)
    state = task.init()
    cells = jax.jit(task.figures)(state, batch)["beliefs"].cells
    images = jnp.asarray(batch["image"][..., 0]) / 255.0
    assert cells.shape == (3, 2, 28, 30)
    np.testing.assert_allclose(cells[:, 0, :, 1:-1], images, atol=1e-6)
    for row in (0, 11, 27):
        logits, _ = config.model.apply({"params": state.params}, images[:, : row + 1])
        expected = np.repeat(jax.nn.softmax(logits), 3, axis=1)
        np.testing.assert_allclose(cells[:, 1, row], expected, rtol=1e-4, atol=1e-6)


def test_the_gates_drawn_are_those_of_torchs_cell_step_by_step():
    steps, width, hidden, batch = 5, 3, 4, 2
    torch.manual_seed(0)
    cell = torch.nn.LSTMCell(width, hidden)
    x = torch.randn(batch, steps, width)
    h, c, expected, outputs = torch.zeros(batch, hidden), torch.zeros(batch, hidden), [], []
    for t in range(steps):
        gates = x[:, t] @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
        i, f, _, o = gates.unflatten(1, (4, hidden)).sigmoid().unbind(1)
        expected.append(torch.stack([i, f, o], dim=1))
        h, c = cell(x[:, t], (h, c))
        outputs.append(h)
    expected = torch.stack(expected, dim=2).detach().numpy()  # [B, 3, T, H]
    order = expected[:, 1].mean(axis=(0, 1)).argsort()
    cells = {"input": cell.weight_ih, "hidden": cell.weight_hh}
    params = {f"{name}_kernel": rearrange(w.detach().numpy(), "(g h) i -> i g h", g=4) for name, w in cells.items()}
    params |= {"input_bias": cell.bias_ih.detach().numpy().reshape(4, hidden)}
    params |= {"hidden_bias": cell.bias_hh.detach().numpy().reshape(4, hidden)}
    drawn = np.asarray(gate_grid(x.numpy(), params, torch.stack(outputs).detach().numpy()))
    assert drawn.shape == (batch, 3, 3 * steps, 3 * hidden)
    np.testing.assert_allclose(drawn[:, :, ::3, ::3], expected[..., order], atol=1e-6)
    np.testing.assert_array_equal(drawn[:, :, 2::3, 1::3], drawn[:, :, ::3, ::3])
