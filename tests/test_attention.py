"""Scaled dot-product and multi-head attention: the equation, torch's values, masks proved by gradients."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from models import random_variables, run

from w2jax import MultiHeadAttention, scaled_dot_product_attention

B, H, T, S, K, V = 2, 3, 5, 7, 4, 6


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def qkv():
    return normal(0, B, H, T, K), normal(1, B, H, S, K), normal(2, B, H, S, V)


def some_mask():
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, (B, 1, T, S))
    return mask.at[:, :, :, 2].set(True)


def to_torch(*arrays):
    return [torch.from_numpy(np.asarray(x).copy()) for x in arrays]


@pytest.mark.parametrize("kind", ["plain", "mask", "bias", "causal", "scale"])
def test_values_and_gradients_are_those_of_torch(kind):
    q, k, v = qkv()
    ours = {
        "plain": {},
        "mask": {"mask": some_mask()},
        "bias": {"bias": normal(4, 1, H, T, S)},
        "causal": {"causal": True},
        "scale": {"scale": 0.3},
    }[kind]
    names = {"mask": "attn_mask", "bias": "attn_mask", "causal": "is_causal", "scale": "scale"}
    theirs = {names[n]: to_torch(x)[0] if isinstance(x, jax.Array) else x for n, x in ours.items()}

    inputs = [x.requires_grad_() for x in to_torch(q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs, **theirs)
    weight = normal(5, *expected.shape)
    (expected * to_torch(weight)[0]).sum().backward()

    def loss(q, k, v):
        out, _ = scaled_dot_product_attention(q, k, v, **ours)
        return (out * weight).sum(), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-5, atol=1e-5)
    for ours_, theirs_ in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(ours_, theirs_.grad, rtol=1e-4, atol=1e-5)


def test_weights_are_the_softmax_and_make_the_output():
    q, k, v = qkv()
    out, weights = scaled_dot_product_attention(q, k, v)
    np.testing.assert_allclose(weights, jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / np.sqrt(K)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out, weights @ v, rtol=1e-5, atol=1e-6)
    without, none = scaled_dot_product_attention(q, k, v, return_weights=False)
    assert none is None
    np.testing.assert_array_equal(without, out)


def test_a_causal_output_does_not_depend_on_later_keys():
    q, k, v = qkv()

    def output_at(t, k, v):
        return scaled_dot_product_attention(q, k, v, causal=True)[0][:, :, t].sum()

    for t in range(T):
        to_keys, to_values = jax.grad(output_at, argnums=(1, 2))(t, k, v)
        np.testing.assert_array_equal(to_keys[:, :, t + 1 :], 0)
        np.testing.assert_array_equal(to_values[:, :, t + 1 :], 0)
        assert (to_values[:, :, : t + 1] > 0).all()


@pytest.mark.parametrize("hidden_by", ["mask", "bias"])
def test_a_query_that_may_attend_to_nothing_is_zero_in_value_weights_and_gradient(hidden_by):
    q, k, v = qkv()
    mask = some_mask().at[:, :, 3].set(False)
    bias = jnp.where(mask, 0.5, -jnp.inf)

    def both(q, k, v, bias):
        hiding = {"mask": mask} if hidden_by == "mask" else {"bias": bias}
        return scaled_dot_product_attention(q, k, v, **hiding)

    out, weights = both(q, k, v, bias)
    np.testing.assert_array_equal(out[:, :, 3], 0)
    np.testing.assert_array_equal(weights[:, :, 3], 0)
    gradients = jax.grad(lambda *x: (both(*x)[0] ** 2).sum() + (both(*x)[1] ** 2).sum(), argnums=(0, 1, 2, 3))(
        q, k, v, bias
    )
    assert all(jnp.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[0][:, :, 3], 0)
    assert (jnp.abs(gradients[0][:, :, 2]) > 0).all()


@pytest.mark.parametrize("where", ["key", "value"])
@pytest.mark.parametrize("broken", [jnp.nan, jnp.inf])
def test_a_broken_key_or_value_reaches_only_the_queries_that_attend_to_it(where, broken):
    q, k, v = qkv()
    spoiled = {"key": k, "value": v}
    spoiled[where] = spoiled[where].at[:, :, 4].set(broken)
    out, weights = scaled_dot_product_attention(q, spoiled["key"], spoiled["value"], causal=True)
    clean, clean_weights = scaled_dot_product_attention(q, k, v, causal=True)
    np.testing.assert_array_equal(out[:, :, :4], clean[:, :, :4])
    np.testing.assert_array_equal(weights[:, :, :4], clean_weights[:, :, :4])
    assert jnp.isnan(out[:, :, 4:]).all()
    early = jax.grad(lambda *x: scaled_dot_product_attention(*x, causal=True)[0][:, :, :4].sum(), argnums=(0, 1, 2))
    for gradient, expected in zip(early(q, spoiled["key"], spoiled["value"]), early(q, k, v), strict=True):
        np.testing.assert_array_equal(gradient, expected)


def test_gradients_under_a_mask_are_the_derivatives():
    q, k, v = qkv()
    check_grads(
        lambda *x: scaled_dot_product_attention(*map(jnp.asarray, x), mask=some_mask()),
        (q, k, v),
        order=1,
        modes=["rev"],
        rtol=2e-2,
    )


def test_bfloat16_inputs_are_near_float32_because_the_softmax_is():
    q, k, v = qkv()
    out, weights = scaled_dot_product_attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    expected, _ = scaled_dot_product_attention(q, k, v)
    assert out.dtype == jnp.bfloat16 and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.05)


def test_dropout_keeps_the_mean_and_needs_a_key():
    q, k, v = qkv()
    keys = jax.random.split(jax.random.key(6), 4000)
    dropped = jax.vmap(lambda key: scaled_dot_product_attention(q, k, v, dropout=0.4, dropout_key=key)[0])(keys)
    np.testing.assert_allclose(dropped.mean(0), scaled_dot_product_attention(q, k, v)[0], atol=0.08)
    assert float(dropped.std(0).min()) > 0
    with pytest.raises(ValueError, match="dropout_key"):
        scaled_dot_product_attention(q, k, v, dropout=0.4)


@pytest.mark.parametrize(("q", "k", "v"), [((T, K), (S, K + 1), (S, V)), ((T, K), (S, K), (S + 1, V))])
def test_shapes_that_do_not_fit_are_refused_with_both_shapes(q, k, v):
    unchecked = inspect.unwrap(scaled_dot_product_attention)  # as users call it: pytest's type check would come first
    with pytest.raises(ValueError, match=r"got .*\(\d, \d\) and .*\(\d, \d\)"):
        unchecked(jnp.zeros(q), jnp.zeros(k), jnp.zeros(v))


def torch_attention(variables, embed_dim, heads, scale_key_width=None, kdim=None, vdim=None):
    """torch.nn.MultiheadAttention with our parameters."""
    p = jax.tree.map(np.asarray, variables["params"])
    theirs = torch.nn.MultiheadAttention(embed_dim, heads, batch_first=True, kdim=kdim, vdim=vdim)
    weights = [p[n]["kernel"].reshape(p[n]["kernel"].shape[0], -1).T for n in ("query", "key", "value")]
    biases = [p[n]["bias"].reshape(-1) for n in ("query", "key", "value")]
    state = {"in_proj_bias": np.concatenate(biases), "out_proj.bias": p["out"]["bias"]}
    state["out_proj.weight"] = p["out"]["kernel"].reshape(-1, embed_dim).T
    if kdim is None:
        state["in_proj_weight"] = np.concatenate(weights)
    else:
        state |= {f"{n}_proj_weight": w for n, w in zip("qkv", weights, strict=True)}
    theirs.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in state.items()})
    return theirs


@pytest.mark.parametrize("cross", [False, True])
def test_multi_head_attention_is_torchs(cross):
    width, heads, kdim, vdim = 12, 3, 10, 8
    query = normal(0, B, T, width)
    key, value = (normal(1, B, S, kdim), normal(2, B, S, vdim)) if cross else (None, None)
    mha = MultiHeadAttention(heads)
    variables = random_variables(mha, query, key, value)
    out, weights = run(mha, variables, query, key, value, return_weights=True)

    theirs = torch_attention(variables, width, heads, kdim=kdim if cross else None, vdim=vdim if cross else None)
    inputs = to_torch(query, key, value) if cross else to_torch(query) * 3
    expected, expected_weights = theirs(*inputs, average_attn_weights=False)
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weights, expected_weights.detach(), rtol=1e-5, atol=1e-5)
    silent, none = run(mha, variables, query, key, value)
    assert none is None
    np.testing.assert_array_equal(silent, out)


def test_grouped_heads_equal_full_heads_with_repeated_parameters():
    query = normal(0, B, T, 12)
    grouped, full = MultiHeadAttention(6, num_kv_heads=2), MultiHeadAttention(6)
    variables = random_variables(grouped, query)
    params = dict(variables["params"])
    for name in ("key", "value"):
        params[name] = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=-2), params[name])
    np.testing.assert_allclose(
        run(grouped, variables, query)[0], run(full, {"params": params}, query)[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("options", [{"embed_dim": 10}, {"qk_dim": 10}, {"v_dim": 10}, {"num_kv_heads": 3}])
def test_widths_that_heads_do_not_divide_are_refused_by_name(options):
    mha = MultiHeadAttention(4, **({"embed_dim": 12} | options))
    with pytest.raises(ValueError, match=f"{next(iter(options))}.*divisible|divisible.*{next(iter(options))}"):
        mha.init(jax.random.key(0), normal(0, B, T, 12))


def test_separate_widths_for_queries_and_values_give_the_asked_output_width():
    query = normal(0, B, T, 9)
    mha = MultiHeadAttention(2, embed_dim=6, qk_dim=8, v_dim=10)
    variables = random_variables(mha, query)
    assert variables["params"]["query"]["kernel"].shape == (9, 2, 4)
    assert variables["params"]["out"]["kernel"].shape == (2, 5, 6)
    assert run(mha, variables, query)[0].shape == (B, T, 6)
