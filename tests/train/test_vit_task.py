"""The task of the ViT: its pictures of the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import random_variables
from pictures import with_fitting_labels

from configs.vit import PRESETS
from train import vit
from train.data import open_source
from train.data.source import InMemorySource
from train.task import State
from train.vit import (
    attention_grid,
    attention_maps,
    make_task,
    patch_filters,
    position_similarity,
    red_overlay,
    rollout,
)
from w2jax import ViT


@pytest.mark.parametrize(("class_token", "patch"), [(True, (4, 4)), (False, (4, 5))])
def test_a_map_highlights_the_attended_patch(class_token, patch):
    height, width, heads = 2, 3, 5
    tokens = height * width + class_token
    weights = np.full((1, heads, tokens, tokens), 1e-3, np.float32)
    for head in range(heads):
        weights[0, head, 0 if class_token else slice(None), class_token + head] = 0.9  # head h attends to patch h
    images = np.zeros((1, height * patch[0], width * patch[1], 3), np.float32)
    maps = np.asarray(attention_maps(jnp.asarray(images), jnp.asarray(weights), patch, class_token))
    assert maps.shape == (1, heads, height * patch[0], width * patch[1])
    for head in range(heads):
        row, column = divmod(head, width)
        bright = maps[0, head] > 0.99
        expected = np.zeros_like(bright)
        rows, columns = (slice(i * side, (i + 1) * side) for i, side in zip((row, column), patch, strict=True))
        expected[rows, columns] = True
        np.testing.assert_array_equal(bright, expected)


def test_a_map_is_zero_where_the_model_drops_partial_patches():
    weights = jnp.ones((1, 3, 2, 2))
    maps = np.asarray(attention_maps(jnp.zeros((1, 7, 9, 3)), weights, 4, False))
    assert maps.shape == (1, 3, 7, 9)
    assert maps[:, :, :4, :8].min() == 1 and not maps[:, :, 4:].any() and not maps[:, :, :, 8:].any()


def test_images_are_red_where_a_head_attends_and_keep_their_colors_elsewhere():
    images = np.random.default_rng(0).uniform(size=(2, 4, 6, 3)).astype(np.float32)
    weights = np.zeros((2, 1, 6, 6), np.float32)
    weights[..., 4] = 1.0  # All heads attend to the patch in row 1, column 1.
    grid = np.asarray(attention_grid(jnp.asarray(images), jnp.asarray(weights), 2, False))
    np.testing.assert_array_equal(grid[:, 0], images)
    looked = np.zeros((4, 6), bool)
    looked[2:, 2:4] = True
    np.testing.assert_allclose(grid[:, 1][:, ~looked], images[:, ~looked], atol=1e-6)
    expected = 0.35 * images[:, looked] + 0.65 * np.array([1.0, 0.24, 0.12])
    np.testing.assert_allclose(grid[:, 1][:, looked], expected, atol=1e-6)
    np.testing.assert_array_equal(red_overlay(images[..., :1], np.zeros((2, 4, 6))), images[..., [0, 0, 0]])


def test_fewer_large_images_are_shown_so_that_the_page_stays_small(monkeypatch):
    model = PRESETS["tiny"].config.model
    source = open_source(PRESETS["tiny"].config.data, "test[:5]")
    task, batch = make_task(PRESETS["tiny"].config, source), jax.device_put(source.gather(np.arange(5)))
    state = State(jnp.zeros((), jnp.int32), random_variables(model, jnp.zeros((1, 28, 28, 1)))["params"], None)
    for allowed, shown in ((3 * (1 + model.num_heads) * 28 * 28, 3), (1, 1)):
        monkeypatch.setattr(vit, "PIXELS", allowed)
        pictures = jax.eval_shape(lambda *given: task.figures(*given), state, batch)  # new function: traced again
        assert len(pictures["attention"].cells) == shown


def test_the_rollout_follows_a_token_through_the_blocks():
    """In each block, half of the token stays at its position."""
    first, second = np.zeros((2, 1, 2, 4, 4), np.float32)
    first[:, :] = np.eye(4)[[0, 1, 3, 3]]  # token 2 attends to token 3
    second[:, 0], second[:, 1] = np.eye(4)[[2, 1, 2, 3]], np.eye(4)[[0, 1, 2, 3]]  # head 0: token 0 attends to 2
    seen = rollout([jnp.asarray(first), jnp.asarray(second)])
    # Three quarters of token 0 stay. A quarter comes from token 2, half of which is token 3 by then.
    np.testing.assert_allclose(seen[0, 0], [0.75, 0, 0.125, 0.125], atol=1e-6)
    np.testing.assert_allclose(seen.sum(axis=-1), 1, rtol=1e-6)


def test_the_rollout_is_the_gradient_of_a_vit_that_only_mixes_tokens():
    weights = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 2, 4, 5)).astype(np.float32)  # 3 blocks, 4 heads

    def mixed(tokens):
        for block in weights:
            tokens = 0.5 * tokens + 0.5 * jnp.einsum("bhts,bs->bt", block, tokens) / 4
        return tokens

    jacobian = jax.jacobian(mixed)(jnp.zeros((2, 5)))
    np.testing.assert_allclose(rollout([*weights])[1], jacobian[1, :, 1], atol=1e-6)


def test_the_filters_are_the_principal_components_of_the_embedding():
    rng = np.random.default_rng(0)
    strong, weak = np.linalg.qr(rng.normal(size=(3 * 3 * 2, 2)))[0].T
    kernel = np.outer(strong, 5 * rng.normal(size=40)) + np.outer(weak, rng.normal(size=40))  # [P P C, D]
    shown = np.asarray(patch_filters(jnp.asarray(kernel, jnp.float32), 3))
    assert shown.shape == (2, 8, 3, 3)
    assert shown.min() == 0 and shown.max() == 1
    for place, filter_ in enumerate((strong, weak)):
        gray = filter_.reshape(3, 3, 2).mean(axis=-1)
        assert abs(np.corrcoef(shown[0, place].ravel(), gray.ravel())[0, 1]) > 0.999


def test_a_map_of_positions_is_at_its_patch_and_brightest_there():
    positions = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    positions[5] = -positions[0]
    shown = np.asarray(position_similarity(jnp.asarray(positions), 2))
    assert shown.shape == (2, 3, 2, 3)
    for patch in range(6):
        own = shown[patch // 3, patch % 3]
        assert own.argmax() == patch and own.max() == pytest.approx(1, abs=1e-5)
    assert shown[0, 0, 1, 2] == pytest.approx(0, abs=1e-5)


def test_of_many_patches_evenly_spaced_ones_have_a_map():
    positions = np.random.default_rng(0).normal(size=(9 * 14, 8)).astype(np.float32)
    shown = np.asarray(position_similarity(jnp.asarray(positions), 9))
    assert shown.shape == (5, 5, 9, 14)
    for i, row in enumerate((0, 2, 4, 6, 8)):
        for j, column in enumerate((0, 3, 6, 10, 13)):
            assert np.unravel_index(shown[i, j].argmax(), (9, 14)) == (row, column)


@pytest.mark.parametrize(
    ("scan", "positions", "patch"), [(False, "learned", (4, 3)), (True, "learned", 4), (False, "sincos2d", 4)]
)
def test_every_vit_has_its_pictures(scan, positions, patch):
    model = ViT(
        3, patch_size=patch, embed_dim=8, depth=2, num_heads=2, mlp_dim=8, positions=positions, scan_layers=scan
    )
    config = dataclasses.replace(PRESETS["tiny"].config, model=model)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), np.uint8)
    source = InMemorySource("colors", "train", images.shape[1:], 3, [], images, np.arange(5) % 3)
    task = make_task(config, source)
    params = random_variables(model, jnp.zeros((1, 8, 12, 3)))["params"]
    state = State(jnp.zeros((), jnp.int32), params, None)
    pictures = with_fitting_labels(jax.jit(task.figures)(state, source.gather(np.arange(5))))
    columns, sides = (4, (4, 3)) if patch == (4, 3) else (3, (4, 4))
    shapes = {"attention": (5, 3, 8, 12, 3), "attention_rollout": (2, 5, 8, 12, 3), "patch_filters": (1, 8, *sides)}
    if positions == "learned":
        shapes["position_similarity"] = (2, columns, 2, columns)
    assert {name: picture.cells.shape for name, picture in pictures.items()} == shapes
    assert all(np.isfinite(picture.cells).all() for picture in pictures.values())
    assert pictures["attention"].column_labels == ("image", "head 1", "head 2")
    assert pictures["attention_rollout"].row_labels == ("image", "blocks 1–2")
    assert "block 2 of 2" in pictures["attention"].caption
    np.testing.assert_allclose(pictures["attention_rollout"].cells[0], images / 255, atol=1e-5)


def test_the_reports_rollout_starts_at_what_the_classifier_reads():
    """The image is black, so the color shows the shares that the task gives, divided by the largest one."""
    model = ViT(3, patch_size=4, embed_dim=8, depth=2, num_heads=2, mlp_dim=8, pool="map", num_registers=1)
    config = dataclasses.replace(PRESETS["tiny"].config, model=model)
    images = np.zeros((5, 8, 12, 3), np.uint8)
    source = InMemorySource("colors", "train", images.shape[1:], 3, [], images, np.arange(5) % 3)
    task = make_task(config, source)
    state = State(jnp.zeros((), jnp.int32), random_variables(model, jnp.zeros((1, 8, 12, 3)))["params"], None)
    drawn = jax.jit(task.figures)(state, source.gather(np.arange(5)))["attention_rollout"].cells[1]
    shares = np.asarray(jax.jit(task.rollout.shares)(state, images))
    expected = (shares / shares.max(axis=(1, 2), keepdims=True)).repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(drawn[..., 0], 0.65 * expected, atol=1e-5)
    assert np.ptp(expected) > 0.01
