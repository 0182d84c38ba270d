"""Learning rates by layer, and frozen parameters."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import assert_same_trees, random_variables
from runs import small, with_run

from configs.base import Mesh, Optim
from train.engine.loop import fit
from train.engine.optim import make_optimizer
from train.engine.step import init_state, make_train_step
from train.predict import load
from train.process.errors import UserError
from train.task import NONFINITE, named_leaves
from train.vit import make_task
from w2jax import LSTM, ViT

DECAY = 0.75
MODEL = ViT(5, patch_size=4, embed_dim=6, depth=3, num_heads=2, mlp_dim=7, num_registers=1, embed_norm=True)
IMAGES = jax.random.normal(jax.random.key(1), (8, 8, 12, 1))
PARAMS = random_variables(MODEL, IMAGES)["params"]
GRADIENTS = random_variables(MODEL, IMAGES, seed=1)["params"]
BATCH = {"image": IMAGES, "label": jnp.arange(8) % 5}


def first_update(config, params=PARAMS, gradients=GRADIENTS):
    optimizer = make_optimizer(config, 10)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def stacked(params):
    """The parameters of the same model with `scan_layers`."""
    blocks = [params["encoder"][f"block_{i}"] for i in range(MODEL.depth)]
    return {**params, "encoder": {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}}


def expected_factor(name):
    """BEiT's layer-wise decay, with three times the rate for the head."""
    if name.startswith("encoder/block_"):
        return DECAY ** (3 - int(name[len("encoder/block_")]))
    return {"head": 3.0, "norm": 1.0}.get(name.split("/")[0], DECAY**4)


@pytest.mark.parametrize("is_scanned", [False, True], ids=["listed", "scanned"])
def test_the_update_of_each_parameter_has_the_factor_of_its_layer(is_scanned):
    plain = Optim(warmup_fraction=0.0, weight_decay=0.3)
    decayed = dataclasses.replace(plain, layer_decay=DECAY, head_lr_factor=3.0)
    before = first_update(plain)
    expected = jax.tree.map_with_path(
        lambda path, x: expected_factor(jax.tree_util.keystr(path, simple=True, separator="/")) * x, before
    )
    after = first_update(decayed)
    if is_scanned:
        after, expected = first_update(decayed, stacked(PARAMS), stacked(GRADIENTS)), stacked(expected)
    names = named_leaves(after)
    assert {name.split("/")[0] for name in names} >= {"cls", "registers", "positions", "patch_embed", "embed_norm"}
    for name, value in named_leaves(expected).items():
        assert float(jnp.abs(value).max()) > 0
        np.testing.assert_allclose(names[name], value, rtol=2e-6, err_msg=name)


def test_the_factors_need_the_layers_that_they_scale():
    lstm = random_variables(LSTM(3, 4), jnp.zeros((1, 2, 3)))["params"]
    with pytest.raises(UserError, match=r"^--optim\.layer-decay must be 1 if no .*, got 0\.5\. Set it to 1"):
        first_update(Optim(layer_decay=0.5), lstm, lstm)
    with pytest.raises(UserError, match=r"^--optim\.head-lr-factor must be 1 for a .*, got 2\. Set it to 1"):
        first_update(Optim(head_lr_factor=2.0), lstm, lstm)


def cross_entropy(params, batch, key):
    logits, _ = MODEL.apply({"params": params}, batch["image"])
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1).mean(), {}


def trained(config, params=PARAMS, steps=3):
    """Returns the state after some steps, the last metrics, and the number of operations of a step."""
    optimizer = make_optimizer(config, 10)
    step = make_train_step(cross_entropy, optimizer, config, 0)
    state = init_state(params, optimizer, config)
    compiled = jax.jit(step).lower(state, BATCH).compile()
    for _ in range(steps):
        state, metrics = compiled(state, BATCH)
    return state, metrics, compiled.cost_analysis()["flops"]


PLAIN = Optim(warmup_fraction=0.0, weight_decay=0.5, ema=0.5, clip=0.01)


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["all-but-head"], lambda name: not name.startswith("head/")),
        (["encoder/block_0", "cls"], lambda name: name == "cls" or name.startswith("encoder/block_0/")),
        (["*/norm?/*", "patch_*/"], lambda name: "/norm" in name or name.startswith("patch_embed/")),
    ],
    ids=["all-but-head", "parts", "wildcards"],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_parameters_do_not_change_and_have_no_moments(patterns, frozen, accumulate):
    config = dataclasses.replace(PLAIN, freeze=tuple(patterns), accumulate=accumulate)
    state, metrics, _ = trained(config)
    before, after, average = named_leaves(PARAMS), named_leaves(state.params), named_leaves(state.ema)
    for name in before:
        same = np.array_equal(before[name], after[name])
        assert same == frozen(name) == np.array_equal(before[name], average[name]), name
    moments = [name for name in named_leaves(state.opt_state) if "/mu/" in name or "/nu/" in name]
    assert len(moments) == 2 * sum(not frozen(name) for name in before)
    assert not any(frozen(name.split("u/", 1)[1]) for name in moments)
    assert metrics[NONFINITE].shape == (len(before),)


def test_frozen_parameters_do_not_count_in_the_clipped_norm():
    """The head's first update is that of a training of the head alone."""
    _, metrics, _ = trained(dataclasses.replace(PLAIN, freeze=("all-but-head",)), steps=1)
    gradients = jax.grad(lambda params: cross_entropy(params, BATCH, None)[0])(PARAMS)["head"]
    norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_the_backward_pass_of_frozen_layers_is_not_computed():
    """A backward pass takes about twice the operations of a forward pass."""
    *_, whole = trained(PLAIN)
    *_, probe = trained(dataclasses.replace(PLAIN, freeze=("all-but-head",)))
    *_, last = trained(dataclasses.replace(PLAIN, freeze=("encoder/block_[01]", "patch_embed", "*s", "cls")))
    assert probe < 0.45 * whole and probe < last < 0.75 * whole


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["cls", "encoder/block_7"], "must match parameters of the model, but encoder/block_7 matches none. The param"),
        (["no/such"], "are in cls, embed_norm, encoder/block_0, encoder/block_1, encoder/block_2, head, norm, patch_e"),
        (["all-but-head", "head"], "must leave parameters to train, but all-but-head head freezes all of them. Leave"),
    ],
)
def test_a_useless_pattern_is_refused(patterns, message):
    with pytest.raises(UserError) as error:
        trained(Optim(freeze=tuple(patterns)))
    assert str(error.value).startswith("--optim.freeze ") and message in str(error.value)


def test_a_probe_resumes_bit_for_bit_and_predicts(tmp_path):
    config = with_run(small("", workers=0), tmp_path / "run", steps=4, save_every=2)
    optim = dataclasses.replace(config.optim, freeze=("all-but-head",), ema=0.9, head_lr_factor=2.0, layer_decay=0.9)
    config = dataclasses.replace(config, optim=optim, mesh=Mesh(data=2))
    whole = fit(config, make_task)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    resumed = fit(config, make_task)
    assert_same_trees(resumed, whole)
    assert load(tmp_path / "run")(np.zeros((3, 28, 28, 1), np.uint8)).shape == (3, 10)
