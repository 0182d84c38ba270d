"""The key/value cache: decoding in pieces equals the full causal pass. Wrong calls raise, or give NaN inside jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import normal, random_variables

from w2jax import MultiHeadAttention

B, L, D, S, M = 2, 7, 12, 5, 10  # batch, positions, model width, length of the memory, width of the memory


def with_cache(mha, *inputs):
    """Returns (parameters, empty cache)."""
    cache = mha.init(jax.random.key(0), *inputs, decode="append")["cache"]
    return random_variables(mha, *inputs)["params"], cache


@pytest.mark.parametrize("pieces", [[1] * L, [3, 1, 2, 1], [L]])
@pytest.mark.parametrize(
    "mha",
    [
        MultiHeadAttention(3),
        MultiHeadAttention(6, num_kv_heads=2, qk_norm=True, v_dim=18),
        MultiHeadAttention(3, implementation="chunked"),
    ],
    ids=["plain", "grouped", "chunked"],
)
def test_decoding_in_pieces_equals_the_full_causal_pass(mha, pieces, monkeypatch):
    monkeypatch.setattr("w2jax.kernels.attention.QUERY_BLOCK", 2)
    monkeypatch.setattr("w2jax.kernels.attention.KEY_BLOCK", 3)
    x = normal(1, B, L, D)
    params, cache = with_cache(mha, x)
    assert cache["index"] == 0 and all((cache[name] == 0).all() for name in ("key", "value"))
    expected, _ = jax.jit(lambda p, x: mha.apply({"params": p}, x, causal=True))(params, x)

    @jax.jit
    def step(cache, piece):
        variables = {"params": params, "cache": cache}
        (out, _), updated = mha.apply(variables, piece, causal=True, decode="append", mutable=["cache"])
        return updated["cache"], out

    outputs = []
    for piece in jnp.split(x, np.cumsum(pieces)[:-1], axis=1):
        cache, out = step(cache, piece)
        outputs.append(out)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), expected, rtol=1e-5, atol=1e-5)
    assert cache["index"] == L
    assert cache["key"].shape == (B, mha.num_kv_heads or mha.num_heads, L, D // mha.num_heads)


def test_without_causal_a_piece_attends_to_itself_and_the_cached_keys():
    """It never attends to unwritten entries of the cache."""
    mha, x = MultiHeadAttention(3), normal(1, B, L, D)
    params, cache = with_cache(mha, x)
    for start, stop in ((0, 4), (4, 6)):
        variables = {"params": params, "cache": cache}
        (out, weights), updated = mha.apply(
            variables, x[:, start:stop], decode="append", mutable=["cache"], return_weights=True
        )
        cache = updated["cache"]
        expected, expected_weights = mha.apply({"params": params}, x[:, start:stop], x[:, :stop], return_weights=True)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(weights[..., :stop], expected_weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(weights[..., stop:], 0)


def test_reuse_is_cross_attention_without_projecting_the_memory_again():
    mha, query = MultiHeadAttention(3, embed_dim=D), normal(1, B, 2, D)
    memory, value = normal(2, B, S, M), normal(3, B, S, D)
    mask = jnp.arange(S) < jnp.array([S, 3])[:, None, None, None]
    params, cache = with_cache(mha, query, memory, value)
    expected, _ = mha.apply({"params": params}, query, memory, value, mask=mask)
    (first, _), updated = mha.apply(
        {"params": params, "cache": cache}, query, memory, value, mask=mask, decode="append", mutable=["cache"]
    )
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-5)
    only_query = {name: params[name] for name in ("query", "out")}  # the other parameters are not needed
    (again, _), unchanged = mha.apply(
        {"params": only_query, **updated}, query, mask=mask, decode="reuse", mutable=["cache"]
    )
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, unchanged["cache"], updated["cache"])


def test_dropout_while_decoding_drops_only_when_training():
    mha, x = MultiHeadAttention(3, dropout=0.5), normal(1, B, L, D)
    params, cache = with_cache(mha, x)

    def out(train, seed):
        return mha.apply(
            {"params": params, "cache": cache},
            x,
            train=train,
            decode="append",
            mutable=["cache"],
            rngs={"dropout": jax.random.key(seed)},
        )[0][0]

    np.testing.assert_array_equal(out(False, 1), out(False, 2))
    assert (out(True, 1) != out(True, 2)).any()


def test_an_overflowing_cache_raises_or_gives_nan_inside_jit():
    mha, x = MultiHeadAttention(3), normal(1, B, L, D)
    params, cache = with_cache(mha, x)

    def append(cache, piece):
        variables = {"params": params, "cache": cache}
        (out, _), updated = mha.apply(variables, piece, decode="append", mutable=["cache"])
        return updated["cache"], out

    cache, out = jax.jit(append)(cache, x[:, :5])
    assert jnp.isfinite(out).all()
    with pytest.raises(ValueError, match=r"at least 8 positions \(5 written, 3 new\), got 7"):
        append(cache, x[:, :3])
    cache, out = jax.jit(append)(cache, x[:, :3])
    assert jnp.isnan(out).all()
    reused, _ = mha.apply({"params": params, "cache": cache}, x[:, :3], decode="reuse")
    assert jnp.isnan(reused).all()
    with pytest.raises(ValueError, match="8 new"):
        jax.jit(append)(cache, normal(2, B, 8, D))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "append", "causal": "top_left"}, "top_left"),
        ({"decode": "append", "key_lengths": jnp.array([1, 1])}, "key_lengths"),
        ({"decode": "reuse", "key": jnp.ones((B, L, D))}, "key and value must be None"),
        ({"decode": "reuse", "value": jnp.ones((B, L, D))}, "key and value must be None"),
        ({"decode": "reuse"}, r"init with decode='append'.*mutable=\['cache'\]"),
        ({"decode": "append", "mutable": ["cache"]}, r"init with decode='append'.*mutable=\['cache'\]"),
    ],
)
def test_options_incompatible_with_decoding_are_refused(options, message):
    mha, x = MultiHeadAttention(3), normal(1, B, L, D)
    with pytest.raises(ValueError, match=message):
        mha.apply({"params": random_variables(mha, x)["params"]}, x, **options)


def test_a_wrong_cache_is_refused():
    mha, x = MultiHeadAttention(3), normal(1, B, L, D)
    params, cache = with_cache(mha, x)
    variables = {"params": params, "cache": cache}
    with pytest.raises(ValueError, match="mutable"):
        mha.apply(variables, x, decode="append")
    with pytest.raises(ValueError, match="batch size must be 2, as in the cache, got 1"):
        mha.apply(variables, x[:1], decode="append", mutable=["cache"])
    with pytest.raises(ValueError, match="init with decode='append'"):
        mha.init(jax.random.key(0), x, decode="reuse")
