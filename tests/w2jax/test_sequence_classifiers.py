"""Classifiers of sequences: torch's numbers, order given only by positions, and causality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import random_variables, run
from torch_recurrent import to_torch
from torch_sequence import TorchLSTMClassifier

from w2jax import ViT
from w2jax.sequence_classifiers import AttentionClassifier, LSTMClassifier

B, T, WIDTH, V = 3, 6, 5, 4
ATTENTION = AttentionClassifier(V, embed_dim=12, depth=2, num_heads=3, mlp_dim=20)


def sequences():
    return jax.random.normal(jax.random.key(0), (B, T, WIDTH))


def test_attention_over_steps_equals_a_vit_on_images_of_one_pixel_width():
    params = random_variables(ATTENTION, sequences())["params"]
    vit = ViT(V, patch_size=1, embed_dim=12, depth=2, num_heads=3, mlp_dim=20, pool="gap", class_token=False)
    theirs = {name: x for name, x in params.items() if name != "embed"} | {
        "patch_embed": {"projection": params["embed"]}
    }
    logits, attentions = run(ATTENTION, {"params": params}, sequences(), return_attention=True)
    expected, expected_attentions = run(vit, {"params": theirs}, sequences()[:, :, None], return_attention=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert len(attentions) == 2
    for ours, other in zip(attentions, expected_attentions, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


def test_the_order_of_steps_matters_to_attention_only_through_positions():
    params = dict(random_variables(ATTENTION, sequences())["params"])
    order = np.array([2, 0, 1, 5, 4, 3])
    logits, attentions = run(ATTENTION, {"params": params}, sequences())
    assert attentions is None
    assert not np.allclose(run(ATTENTION, {"params": params}, sequences()[:, order])[0], logits, atol=1e-3)
    without = {"params": params | {"positions": jnp.zeros_like(params["positions"])}}
    shuffled, _ = run(ATTENTION, without, sequences()[:, order])
    np.testing.assert_allclose(shuffled, run(ATTENTION, without, sequences())[0], rtol=1e-4, atol=1e-5)
    moved = {"params": params | {"positions": params["positions"][:, order]}}
    np.testing.assert_allclose(run(ATTENTION, moved, sequences()[:, order])[0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("proj_size", [0, 3])
def test_an_lstm_classifier_is_torchs_lstm_and_a_linear_layer(proj_size):
    torch.manual_seed(0)
    theirs = TorchLSTMClassifier(WIDTH, 7, 2, V, proj_size)
    x = to_torch(sequences())
    expected = theirs(x)
    (expected**2).sum().backward()

    model = LSTMClassifier(V, hidden_size=7, num_layers=2, proj_size=proj_size)

    def loss(params, x):
        logits, steps = model.apply({"params": params}, x)
        assert steps is None
        return (logits**2).sum(), logits

    gradients, logits = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(theirs.our_params(), sequences())
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-5, atol=1e-6)
    wanted = theirs.our_params(gradients=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients[0], wanted)
    np.testing.assert_allclose(gradients[1], x.grad, rtol=1e-4, atol=1e-6)


def test_the_logits_of_a_row_depend_on_all_rows_so_far_and_no_later_one():
    model = LSTMClassifier(V, hidden_size=7, num_layers=2)
    variables = random_variables(model, sequences())

    def answers(x):
        return model.apply(variables, x, return_steps=True)[1].sum(axis=(0, 2))

    influence = jnp.abs(jax.jit(jax.jacrev(answers))(sequences())).sum(axis=(1, 3))  # [T outputs, T rows]
    np.testing.assert_array_equal(influence > 0, np.tril(np.ones((T, T), bool)))
    logits, steps = run(model, variables, sequences(), return_steps=True)
    np.testing.assert_array_equal(logits, steps[:, -1])
    np.testing.assert_allclose(run(model, variables, sequences())[0], logits, rtol=1e-6, atol=1e-6)
    prefix, _ = run(model, variables, sequences()[:, :4])
    np.testing.assert_allclose(prefix, steps[:, 3], rtol=1e-5, atol=1e-6)


def test_an_lstm_classifier_starts_from_torchs_distribution():
    params = LSTMClassifier(V, hidden_size=64).init(jax.random.key(0), sequences())["params"]
    for leaf in jax.tree.leaves(params):
        largest = np.abs(leaf).max()
        assert 0.125 * (1 - 1 / leaf.size**0.5) < largest <= 0.125  # bound 1/√64, slightly above the largest
        assert leaf.min() < 0 < leaf.max()


@pytest.mark.parametrize(
    "model",
    [
        ATTENTION.clone(dropout=0.5),
        ATTENTION.clone(attention_dropout=0.5),
        ATTENTION.clone(drop_path=0.5),
        LSTMClassifier(V, hidden_size=7, num_layers=2, dropout=0.5),
    ],
    ids=["dropout", "attention_dropout", "drop_path", "lstm"],
)
def test_every_dropout_changes_training_and_never_evaluation(model):
    variables = random_variables(model, sequences())
    rates = [name for name in ("dropout", "attention_dropout", "drop_path") if getattr(model, name, 0)]
    expected, _ = run(model.clone(**dict.fromkeys(rates, 0.0)), variables, sequences())
    np.testing.assert_array_equal(run(model, variables, sequences())[0], expected)
    dropped = [run(model, variables, sequences(), train=True, rngs={"dropout": jax.random.key(s)})[0] for s in (0, 1)]
    for a, b in ((dropped[0], expected), (dropped[0], dropped[1])):
        assert not np.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("model", [ATTENTION, LSTMClassifier(V, hidden_size=7)], ids=["attention", "lstm"])
def test_bfloat16_keeps_parameters_and_logits_in_float32(model):
    """The results are close to those of float32."""
    half = model.clone(dtype="bfloat16")
    variables = half.init(jax.random.key(0), sequences())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    variables = random_variables(model, sequences())
    expected, _ = run(model, variables, sequences())
    logits, _ = run(half, variables, sequences())
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.05 * float(jnp.abs(expected).max()))
    assert not np.array_equal(logits, expected)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "drop_path"])
@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_outside_0_to_1_is_refused(name, rate):
    with pytest.raises(ValueError, match=f"{name} must be at least 0 and below 1, got {rate}"):
        ATTENTION.clone(**{name: rate}).init(jax.random.key(0), sequences())
