"""The encoder: its equation, scanned and unrolled layers, and its random parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from models import random_variables, run

from w2jax.blocks import DropPath, EncoderBlock, LayerScale, Mlp
from w2jax.transformer import TransformerEncoder

B, N, D, H, F = 2, 5, 12, 3, 20


def tokens(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, N, D))


def stacked(params, depth):
    """Returns the parameters of an unrolled encoder in the layout of a scanned one."""
    return {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *(params[f"block_{i}"] for i in range(depth)))}


@pytest.mark.parametrize("option", [None, "residual_from_norm", "res_post_norm", "sub_norm"])
def test_a_block_is_the_equation_of_its_paper(option):
    block = EncoderBlock(H, F, **({option: True} if option else {}))
    z = tokens()
    variables = random_variables(block, z)
    p = variables["params"]

    def norm(z, p):
        mean, var = z.mean(-1, keepdims=True), z.var(-1, keepdims=True)
        return (z - mean) / jnp.sqrt(var + 1e-6) * p["scale"] + p["bias"]

    def attention(z):
        q, k, v = (jnp.einsum("bnd,dhk->bhnk", z, p["attention"][n]["kernel"]) for n in ("query", "key", "value"))
        q, k, v = (x + p["attention"][n]["bias"][:, None] for x, n in ((q, "query"), (k, "key"), (v, "value")))
        mixed = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / np.sqrt(D / H)) @ v
        mixed = jnp.swapaxes(mixed, 1, 2).reshape(z.shape)
        mixed = norm(mixed, p["attention"]["norm"]) if option == "sub_norm" else mixed
        return mixed @ p["attention"]["out"]["kernel"].reshape(D, D) + p["attention"]["out"]["bias"]

    def mlp(z):
        z = jax.nn.gelu(z @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"], approximate=False)
        z = norm(z, p["mlp"]["norm"]) if option == "sub_norm" else z
        return z @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"]

    if option == "res_post_norm":
        expected = norm(attention(z), p["norm1"]) + z
        expected = norm(mlp(expected), p["norm2"]) + expected
    else:
        normed = norm(z, p["norm1"])
        expected = attention(normed) + (normed if option == "residual_from_norm" else z)
        expected = mlp(norm(expected, p["norm2"])) + expected
    out, weights = run(block, variables, z)
    assert weights is None
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_a_residual_from_the_norm_needs_a_norm_before_it():
    block = EncoderBlock(H, F, pre_norm=False, residual_from_norm=True)
    with pytest.raises(ValueError, match="pre_norm must be True if residual_from_norm is True"):
        jax.eval_shape(block.init, jax.random.key(0), tokens())


@pytest.mark.parametrize("option", [{"pre_norm": False}, {"residual_from_norm": True}, {"layer_scale": 0.5}])
def test_norms_on_the_outputs_exclude_other_positions_of_norms(option):
    block = EncoderBlock(H, F, res_post_norm=True, **option)
    with pytest.raises(ValueError, match="res_post_norm needs pre_norm True, residual_from_norm False and layer_scale"):
        jax.eval_shape(block.init, jax.random.key(0), tokens())


@pytest.mark.parametrize(
    ("activation", "torchs"),
    [("gelu", torch.nn.GELU()), ("gelu_tanh", torch.nn.GELU(approximate="tanh")), ("relu", torch.nn.ReLU())],
)
def test_the_mlp_is_torchs_with_every_activation(activation, torchs):
    mlp, x = Mlp(F, activation=activation), 3 * tokens()
    variables = random_variables(mlp, x)
    theirs = torch.nn.Sequential(torch.nn.Linear(D, F), torchs, torch.nn.Linear(F, D))
    p = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), variables["params"])
    theirs.load_state_dict(
        {
            "0.weight": p["fc1"]["kernel"].T,
            "0.bias": p["fc1"]["bias"],
            "2.weight": p["fc2"]["kernel"].T,
            "2.bias": p["fc2"]["bias"],
        }
    )
    expected = theirs(torch.from_numpy(np.array(x))).detach()
    np.testing.assert_allclose(run(mlp, variables, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("remat", "options"), [(False, {"layer_scale": 0.5}), (True, {"res_post_norm": True, "rms_norm": True})]
)
def test_scanned_layers_equal_unrolled_ones(remat, options):
    """In values, attention weights and gradients."""
    depth = 3
    block = EncoderBlock(H, F, **options)
    unrolled, scanned = TransformerEncoder(block, depth), TransformerEncoder(block, depth, remat=remat, scan=True)
    params = random_variables(unrolled, tokens())["params"]
    assert jax.tree.map(jnp.shape, stacked(params, depth)) == jax.tree.map(
        jnp.shape, jax.eval_shape(scanned.init, jax.random.key(2), tokens())["params"]
    )

    def loss(encoder, params):
        out, attentions = encoder.apply({"params": params}, tokens(), return_attention=True)
        return (out**2).sum() + (attentions[1] ** 2).sum(), (out, attentions)

    gradients, (out, attentions) = jax.jit(jax.grad(lambda p: loss(unrolled, p), has_aux=True))(params)
    gradients_, (out_, attentions_) = jax.jit(jax.grad(lambda p: loss(scanned, p), has_aux=True))(
        stacked(params, depth)
    )
    np.testing.assert_allclose(out_, out, rtol=1e-5, atol=1e-5)
    assert len(attentions_) == len(attentions) == depth
    for a, b in zip(attentions_, attentions, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(gradients_), jax.tree.leaves(stacked(gradients, depth)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_rematerialised_layers_give_the_same_gradient_in_less_memory():
    def saved(remat):
        encoder = TransformerEncoder(EncoderBlock(H, F), 3, remat=remat)
        params = random_variables(encoder, tokens())

        def loss(params):
            return (encoder.apply(params, tokens())[0] ** 2).sum()

        _, backward = jax.vjp(loss, params)
        return jax.grad(loss)(params), sum(x.size for x in jax.tree.leaves(backward))

    (plain, plain_size), (rematted, remat_size) = saved(False), saved(True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rematted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-5)  # Gradients are up to 50.
    assert remat_size < plain_size / 2


def test_drop_path_drops_complete_examples_and_keeps_the_mean():
    """Its rate rises with the depth."""
    x = jnp.ones((4000, 2, 3))
    dropped = DropPath().apply({}, x, jnp.float32(0.25), rngs={"dropout": jax.random.key(0)})
    kept = dropped[:, 0, 0] > 0
    np.testing.assert_allclose(dropped, jnp.where(kept[:, None, None], 1 / 0.75, 0) * x, rtol=1e-6)
    np.testing.assert_allclose(kept.mean(), 0.75, atol=0.03)

    class RateBlock(EncoderBlock):
        """A block that adds its rate to the output."""

        @nn.compact
        def __call__(self, x, drop_path, *_):
            return x.at[:, 0, 0].add(drop_path).at[:, 0, 1].max(drop_path), None

    for scan in (False, True):
        encoder = TransformerEncoder(RateBlock(H, F), 4, drop_path=0.3, scan=scan)
        out, _ = run(encoder, {}, jnp.zeros((B, N, D)), train=True)
        np.testing.assert_allclose(out[0, 0, :2], [0.0 + 0.1 + 0.2 + 0.3, 0.3], rtol=1e-6)


@pytest.mark.parametrize("options", [{"layer_scale": 0.5}, {"res_post_norm": True}])
def test_a_block_whose_branches_are_dropped_is_the_identity(options):
    """Also the biases of norms on the outputs are dropped."""
    block, z = EncoderBlock(H, F, **options), jnp.tile(tokens(), (20, 1, 1))
    variables, rngs = random_variables(block, z), {"dropout": jax.random.key(0)}
    out, _ = run(block, variables, z, jnp.float32(0.6), train=True, rngs=rngs)
    same = (out == z).all(axis=(1, 2))
    assert 5 <= same.sum() <= 30  # 0.36 of 40 are expected
    assert (out != z).any(axis=2)[~same].all()


def test_random_layers_do_nothing_in_evaluation():
    """In training, each layer draws its own random numbers."""
    encoder = TransformerEncoder(EncoderBlock(H, F, dropout=0.3, attention_dropout=0.2), 2, drop_path=0.2)
    variables = random_variables(encoder, tokens())
    still = run(TransformerEncoder(EncoderBlock(H, F), 2), variables, tokens())[0]
    np.testing.assert_array_equal(run(encoder, variables, tokens())[0], still)
    draws = [run(encoder, variables, tokens(), train=True, rngs={"dropout": jax.random.key(s)})[0] for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.allclose(draws[0], draws[2])


def test_layer_scale_multiplies_each_channel_by_its_own_factor():
    x = tokens()
    variables = random_variables(LayerScale(1e-3), x)
    np.testing.assert_allclose(run(LayerScale(1e-3), variables, x), x * variables["params"]["gamma"], rtol=1e-6)
    block = EncoderBlock(H, F, layer_scale=0.0)
    np.testing.assert_array_equal(run(block, jax.jit(block.init)(jax.random.key(0), x), x)[0], x)
