"""Chunked attention equals ordinary attention for any shapes and masks, in memory that is linear in the length."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from models import normal

from w2jax import scaled_dot_product_attention

B, H, T, S, K, V = 2, 3, 5, 7, 4, 6
few = partial(settings, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("w2jax.kernels.attention.QUERY_BLOCK", 2)
    monkeypatch.setattr("w2jax.kernels.attention.KEY_BLOCK", 3)


def attend(implementation, q, k, v, **options):
    return scaled_dot_product_attention(q, k, v, **options, return_weights=False, implementation=implementation)[0]


def with_gradients(implementation, causal, q, k, v, bias, mask, lengths):
    def output(q, k, v, bias):
        return attend(implementation, q, k, v, mask=mask, bias=bias, causal=causal, key_lengths=lengths)

    out, pull = jax.vjp(output, q, k, v, bias)
    return out, pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape))


compiled = jax.jit(with_gradients, static_argnums=(0, 1))


@pytest.mark.slow
@few(max_examples=25)
@given(st.sampled_from([False, True, "bottom_right"]), st.integers(0, 2**20), st.data())
def test_any_mask_gives_the_values_and_gradients_of_all_logits_at_once(causal, seed, data):
    """For any lengths."""
    lengths = jnp.array(data.draw(st.lists(st.integers(0, S + 1), min_size=B, max_size=B)))[:, None]
    density = data.draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    mask = jax.random.bernoulli(jax.random.key(seed), density, (B, 1, T, S))
    bias = jnp.where(normal(seed + 4, 1, H, T, S) > 1.5, -jnp.inf, 3 * normal(seed + 5, 1, H, T, S))
    inputs = normal(seed + 1, B, H, T, K), normal(seed + 2, B, H, S, K), normal(seed + 3, B, H, S, V)
    chunked, at_once = (compiled(name, causal, *inputs, bias, mask, lengths) for name in ("chunked", "xla"))
    jax.tree.map(close, chunked, at_once)

    # Changing the values at masked positions gives the same bits.
    hidden = ~(mask & (jnp.arange(S) < lengths[..., None, None])).any((1, 2))[:, None, :, None]
    q, k, v = inputs
    changed = compiled("chunked", causal, q, jnp.where(hidden, jnp.nan, k), v + 9 * hidden, bias, mask, lengths)
    jax.tree.map(np.testing.assert_array_equal, changed, chunked)

    # With values of 1, the output is the sum of the weights: 1, or 0 for a fully masked query.
    sums = compiled("chunked", causal, q, k, jnp.ones_like(v), bias, mask, lengths)[0]
    seen = scaled_dot_product_attention(q, k, v, mask, bias, causal, key_lengths=lengths)[1].any(-1, keepdims=True)
    close(sums, jnp.broadcast_to(seen, sums.shape))


@few(max_examples=8)
@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([(), (3,), (2, 3)]), st.booleans())
def test_chunks_of_any_lengths_give_the_output_of_all_logits_at_once(queries, keys, batch, causal):
    """With any leading axes."""
    q, k, v = normal(1, *batch, queries, K), normal(2, *batch, keys, K), normal(3, *batch, keys, V)
    options = {"causal": "bottom_right" if causal else False}
    outputs = [jax.jit(partial(attend, name, **options))(q, k, v) for name in ("chunked", "xla")]
    close(*outputs)


@pytest.mark.parametrize(
    ("q", "k", "v", "mask", "bias"),
    [
        ((B, 2, 3, T, K), (B, 2, 1, S, K), (B, 2, 1, S, V), (B, 1, 1, 1, S), (2, 3, T, 1)),
        ((H, T, K), (B, 1, S, K), (B, 1, S, V), (T, 1), (S,)),
        ((T, K), (S, K), (S, V), (B, T, S), (1, S)),
    ],
)
def test_broadcasting_works_in_values_and_gradients(q, k, v, mask, bias):
    inputs = [normal(i, *shape) for i, shape in enumerate((q, k, v, bias))]
    mask = jax.random.bernoulli(jax.random.key(9), 0.7, mask)
    chunked, at_once = (compiled(name, False, *inputs, mask, None) for name in ("chunked", "xla"))
    jax.tree.map(close, chunked, at_once)
    assert [g.shape for g in chunked[1]] == [q, k, v, bias]


def test_second_derivatives_are_those_of_all_logits_at_once():
    q, k, v = normal(1, T, K), normal(2, S, K), normal(3, S, V)

    def hessian_times(name):
        gradients = jax.grad(lambda *x: jnp.sin(attend(name, *x, causal=True)).sum(), argnums=(0, 1, 2))
        return jax.jit(lambda *x: jax.vjp(gradients, *x)[1]((q + 1, k - 1, v * 2)))(q, k, v)

    jax.tree.map(close, hessian_times("chunked"), hessian_times("xla"))


def test_large_logits_neither_overflow_nor_underflow():
    q, k, v = 100 * normal(1, T, K), 100 * normal(2, S, K), normal(3, S, V)
    at_once = attend("xla", q, k, v)
    assert jnp.isfinite(at_once).all()
    close(jax.jit(partial(attend, "chunked"))(q, k, v), at_once)


def test_memory_grows_linearly_with_the_length(monkeypatch):
    """Ordinary attention needs memory quadratic in the length."""
    monkeypatch.setattr("w2jax.kernels.attention.QUERY_BLOCK", 64)
    monkeypatch.setattr("w2jax.kernels.attention.KEY_BLOCK", 64)

    def temporaries(implementation, length):
        shapes = [jax.ShapeDtypeStruct((2, length, 16), jnp.float32)] * 3
        bias = jax.ShapeDtypeStruct((length,), jnp.float32)

        def loss(q, k, v, bias):
            return (attend(implementation, q, k, v, causal=True, bias=bias) ** 2).sum()

        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*shapes, bias).compile()
        return step.memory_analysis().temp_size_in_bytes

    assert temporaries("chunked", 4096) < 6 * temporaries("chunked", 1024)
    assert temporaries("xla", 4096) > 12 * temporaries("xla", 1024)
    one_input = 2 * 4096 * 16 * 4  # bytes; 6.5 of these are needed, or 12 if a loop stored its blocks for backward
    assert temporaries("chunked", 4096) < 9 * one_input


def cudnn_on_cpu(monkeypatch):
    """Replaces the cuDNN kernel by XLA, to test layout, masks and errors without a GPU."""
    real = jax.nn.dot_product_attention

    def stand_in(*inputs, implementation, **options):
        assert implementation == "cudnn"
        return real(*inputs, **options, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("grouped", [False, True])
def test_cudnn_gets_its_layout_and_its_result_follows_our_rules(grouped, monkeypatch):
    cudnn_on_cpu(monkeypatch)
    groups, lengths = ((2,), jnp.array([[[0]], [[5]]])) if grouped else ((), jnp.array([[0], [5]]))
    ones = (1,) * len(groups)
    q = normal(1, B, H, *groups, 6, 8).astype(jnp.bfloat16)
    k, v = (normal(i, B, H, *ones, 10, 8).astype(jnp.bfloat16) for i in (2, 3))
    mask = jax.random.bernoulli(jax.random.key(4), 0.6, (H, *groups, 6, 10)).at[..., 2, :].set(False)
    v = v.at[..., 7, :].set(jnp.nan).at[..., 3, :].set(jnp.inf)
    for options in ({}, {"mask": mask}, {"causal": True}, {"key_lengths": lengths}, {"mask": mask[0, ..., :1, :]}):
        ours, expected = (attend(name, q, k, v, **options, scale=0.2) for name in ("cudnn", "xla"))
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(jnp.isfinite(ours), jnp.isfinite(expected))
        finite = jnp.isfinite(expected)
        np.testing.assert_allclose(
            jnp.where(finite, ours, 0).astype(jnp.float32),
            jnp.where(finite, expected, 0).astype(jnp.float32),
            atol=0.03,
        )


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ({"return_weights": True}, {}, "the weights"),
        ({"dropout": 0.1, "dropout_key": jax.random.key(0)}, {}, "dropout"),
        ({"bias": jnp.zeros((6, 10))}, {}, "a bias"),
        ({"causal": "bottom_right"}, {}, "bottom_right"),
        (
            {"mask": jnp.ones((6, 1), bool)},
            {"k": (B, H, 9, 8), "v": (B, H, 9, 8)},
            "odd number of queries or keys, got 6 and 9",
        ),
        ({"key_lengths": jnp.array([1, 2, 3])}, {}, "key_lengths"),
        ({}, {"v": (B, H, 10, 16)}, r"shapes .*value \(2, 3, 10, 16\)"),
        ({}, {"q": (B, 6, 8)}, r"shapes .*query \(2, 6, 8\)"),
        ({}, {"q": (B, H, 6, 12), "k": (B, H, 10, 12), "v": (B, H, 10, 12)}, "head width 12"),
        ({}, {"dtype": jnp.float32}, "float32"),
        ({}, {"backend": "cpu"}, "'cpu'"),
    ],
)
def test_options_that_cudnn_does_not_support_are_named(options, changed, message, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: changed.get("backend", "gpu"))
    shapes = {"q": (B, H, 6, 8), "k": (B, H, 10, 8), "v": (B, H, 10, 8)} | changed
    inputs = (jnp.ones(shapes[name], changed.get("dtype", jnp.bfloat16)) for name in "qkv")
    with pytest.raises(ValueError, match=f"'cudnn' does not support .*{message}"):
        scaled_dot_product_attention(*inputs, **{"return_weights": False} | options, implementation="cudnn")
