"""Scaled dot-product and multi-head attention: the equation, torch's values, and masks tested with gradients."""

import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax import export
from jax.test_util import check_grads
from models import normal, random_variables, run
from torch.nn.attention.bias import causal_lower_right

from w2jax import MultiHeadAttention, scaled_dot_product_attention

B, H, T, S, K, V = 2, 3, 5, 7, 4, 6


def qkv():
    return normal(0, B, H, T, K), normal(1, B, H, S, K), normal(2, B, H, S, V)


def some_mask():
    mask = jax.random.bernoulli(jax.random.key(3), 0.6, (B, 1, T, S))
    return mask.at[:, :, :, 2].set(True)


def to_torch(*arrays):
    return [torch.from_numpy(np.asarray(x).copy()) for x in arrays]


@pytest.fixture(params=["xla", "chunked"])
def attend(request, monkeypatch):
    """Attention that returns only its output. "chunked" uses block sizes that divide neither T nor S."""
    monkeypatch.setattr("w2jax.kernels.attention.QUERY_BLOCK", 2)
    monkeypatch.setattr("w2jax.kernels.attention.KEY_BLOCK", 3)

    def output(*inputs, **options):
        return scaled_dot_product_attention(*inputs, **options, return_weights=False, implementation=request.param)[0]

    return output


@pytest.mark.parametrize("kind", ["plain", "mask", "bias", "causal", "bottom_right", "key_lengths", "scale"])
def test_values_and_gradients_are_those_of_torch(kind, attend):
    q, k, v = qkv()
    ours = {
        "plain": {},
        "mask": {"mask": some_mask()},
        "bias": {"bias": normal(4, 1, H, T, S)},
        "causal": {"causal": True},
        "bottom_right": {"causal": "bottom_right"},
        "key_lengths": {"key_lengths": jnp.array([[4], [S + 1]])},  # S + 1 exceeds the number of keys and masks nothing
        "scale": {"scale": 0.3},
    }[kind]
    theirs = {
        "plain": {},
        "mask": {"attn_mask": to_torch(some_mask())[0]},
        "bias": {"attn_mask": to_torch(normal(4, 1, H, T, S))[0]},
        "causal": {"is_causal": True},
        "bottom_right": {"attn_mask": causal_lower_right(T, S)},
        "key_lengths": {"attn_mask": torch.arange(S) < torch.tensor([4, S + 1])[:, None, None, None]},
        "scale": {"scale": 0.3},
    }[kind]

    inputs = [x.requires_grad_() for x in to_torch(q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs, **theirs)
    weight = normal(5, *expected.shape)
    (expected * to_torch(weight)[0]).sum().backward()

    def loss(q, k, v):
        out = attend(q, k, v, **ours)
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


@pytest.mark.parametrize(
    ("causal", "queries", "keys", "lengths"),
    [
        (True, T, S, None),
        ("bottom_right", S, T, None),
        ("bottom_right", T, S, [6, 3]),
    ],
)
def test_a_causal_output_depends_on_every_earlier_key_and_no_later_one(causal, queries, keys, lengths, attend):
    q, k, v = normal(0, B, queries, K), normal(1, B, keys, K), normal(2, B, keys, V)
    lengths = None if lengths is None else jnp.array(lengths)

    def outputs(k, v):
        out = attend(q, k, v, causal=causal, key_lengths=lengths).sum(-1)
        return out, out

    (to_keys, to_values), out = jax.jit(jax.jacrev(outputs, argnums=(0, 1), has_aux=True))(k, v)  # [B, T, B, S, width]
    for b in range(B):
        last = keys if lengths is None else int(lengths[b])
        for t in range(queries):
            seen = t + 1 + (last - queries if causal == "bottom_right" else 0)
            seen = max(0, min(seen, last))
            np.testing.assert_array_equal(to_keys[b, t, b, seen:], 0)
            np.testing.assert_array_equal(to_values[b, t, b, seen:], 0)
            assert (to_values[b, t, b, :seen] > 0).all()
            assert seen > 0 or out[b, t] == 0


@pytest.mark.parametrize("hidden_by", ["mask", "bias"])
def test_a_query_that_may_attend_to_nothing_is_zero_in_value_and_gradient(hidden_by, attend):
    q, k, v = qkv()
    mask = some_mask().at[:, :, 3].set(False)
    bias = jnp.where(mask, 0.5, -jnp.inf)

    def output(q, k, v, bias):
        return attend(q, k, v, **({"mask": mask} if hidden_by == "mask" else {"bias": bias}))

    out, pull = jax.vjp(jax.jit(output), q, k, v, bias)
    np.testing.assert_array_equal(out[:, :, 3], 0)
    gradients = pull(jnp.ones_like(out))
    assert all(jnp.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[0][:, :, 3], 0)
    assert (jnp.abs(gradients[0][:, :, 2]) > 0).all()
    only_hidden = pull(jnp.zeros_like(out).at[:, :, 3].set(1.0))
    assert all((g == 0).all() for g in only_hidden)


@pytest.mark.parametrize("hidden_by", ["mask", "bias"])
def test_a_query_that_may_attend_to_nothing_has_weights_of_zero(hidden_by):
    q, k, v = qkv()
    mask = some_mask().at[:, :, 3].set(False)
    bias = jnp.where(mask, 0.5, -jnp.inf)

    @jax.jit
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


def test_a_nonfinite_key_or_value_only_affects_queries_that_attend_to_it(attend):
    def output(q, k, v, lengths):
        return attend(q, k, v, causal=True, key_lengths=lengths)

    @jax.jit
    def output_and_gradients_of_the_first_queries(*inputs):
        out, pull = jax.vjp(output, *inputs)
        return out, pull(jnp.ones_like(out).at[:, :, 4:].set(0))[:3]

    q, k, v = qkv()
    lengths = jnp.array([[5], [4]])  # the second example attends to no NaN or infinite key
    clean, clean_gradients = output_and_gradients_of_the_first_queries(q, k, v, lengths)
    for broken in (jnp.nan, jnp.inf):
        spoiled_key, spoiled_value = (x.at[:, :, 4].set(broken) for x in (k, v))
        for inputs in ((q, spoiled_key, v), (q, k, spoiled_value)):
            out, gradients = output_and_gradients_of_the_first_queries(*inputs, lengths)
            np.testing.assert_array_equal(out[:, :, :4], clean[:, :, :4])
            np.testing.assert_array_equal(out[1], clean[1])
            assert jnp.isnan(out[0, :, 4:]).all()
            jax.tree.map(np.testing.assert_array_equal, gradients, clean_gradients)


def test_an_unmasked_nonfinite_key_affects_every_output(attend):
    q, k, v = qkv()
    assert jnp.isnan(jax.jit(attend)(q, k.at[:, :, 4].set(jnp.nan), v)).all()


def test_a_nan_key_only_affects_the_queries_that_attend_to_it():
    q, k, v = qkv()
    _, weights = scaled_dot_product_attention(q, k.at[:, :, 4].set(jnp.nan), v, causal=True)
    _, clean = scaled_dot_product_attention(q, k, v, causal=True)
    np.testing.assert_array_equal(weights[:, :, :4], clean[:, :, :4])
    assert jnp.isnan(weights[:, :, 4:]).all()


def test_gradients_under_a_mask_are_the_derivatives(attend):
    q, k, v = qkv()
    bias = normal(4, 1, H, 1, S)

    @jax.jit
    def masked(q, k, v, bias):
        return attend(q, k, v, mask=some_mask(), bias=bias)

    check_grads(lambda *x: masked(*map(jnp.asarray, x)), (q, k, v, bias), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_second_order_gradients_are_the_derivatives_of_the_first():
    """Also, vmap equals a loop."""
    q, k, v = (x[0, 0] for x in qkv())

    def loss(*inputs):
        return jnp.sin(scaled_dot_product_attention(*inputs)[0]).sum()

    check_grads(jax.jit(loss), (q, k, v), order=2, modes=["fwd", "rev"], rtol=1e-2, atol=1e-2)
    hessian = jax.jit(jax.hessian(lambda k: loss(q, k, v)))(k).reshape(S * K, S * K)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-4, atol=1e-5)
    assert jnp.abs(hessian).max() > 1e-2
    together = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2))))(*(x[:, 0] for x in qkv()))
    alone = [jax.jit(jax.grad(loss, (0, 1, 2)))(*(x[i, 0] for x in qkv())) for i in range(B)]
    for mine, *others in zip(together, *alone, strict=True):
        np.testing.assert_allclose(mine, jnp.stack(others), rtol=1e-4, atol=1e-6)


def test_gradients_of_bfloat16_inputs_are_near_those_of_float32():
    def gradients(dtype):
        inputs = (x.astype(dtype) for x in qkv())
        grads = jax.jit(jax.grad(lambda *x: (scaled_dot_product_attention(*x)[0] ** 2).sum(), (0, 1, 2)))(*inputs)
        assert all(g.dtype == dtype for g in grads)
        return grads

    for near, exact in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        np.testing.assert_allclose(near.astype(jnp.float32), exact, atol=0.02 * float(jnp.abs(exact).max()))


def test_bfloat16_inputs_are_near_float32_because_of_a_float32_softmax(attend):
    q, k, v = qkv()
    steps = jnp.arange(S) / 4  # logits 128, 128.25, …: bfloat16 would round them to whole numbers
    near = jnp.stack([jnp.full(S, 8.0), steps], -1).astype(jnp.bfloat16)
    weights = attend(jnp.array([[16.0, 1.0]], jnp.bfloat16), near, jnp.eye(S, dtype=jnp.bfloat16), scale=1.0)
    np.testing.assert_allclose(weights[0].astype(jnp.float32), jax.nn.softmax(steps), rtol=0.01)
    short = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert short.dtype == jnp.bfloat16
    np.testing.assert_allclose(short.astype(jnp.float32), attend(q, k, v), atol=0.05)
    out, weights = scaled_dot_product_attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    expected, _ = scaled_dot_product_attention(q, k, v)
    assert out.dtype == jnp.bfloat16 and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.05)


def test_dropout_keeps_the_mean_depends_on_its_key_and_needs_one(attend):
    q, k, v = qkv()
    keys = jax.random.split(jax.random.key(6), 4000)

    @jax.jit
    def drop(key):
        return attend(q, k, v, dropout=0.4, dropout_key=key)

    dropped = jax.vmap(drop)(keys)
    np.testing.assert_allclose(dropped.mean(0), attend(q, k, v), atol=0.08)
    assert float(dropped.std(0).min()) > 0
    np.testing.assert_array_equal(drop(keys[0]), drop(keys[0]))
    assert (drop(keys[0]) != drop(keys[1])).any()
    with pytest.raises(ValueError, match="dropout_key"):
        attend(q, k, v, dropout=0.4)


def test_dropout_drops_its_fraction_of_the_weights_independently(attend):
    # Equal logits and one-hot values make the output equal to the weights: 0, or 1/length divided by (1 − rate).
    queries, keys, rate = 61, 53, 0.3
    q, k, v = jnp.zeros((queries, K)), jnp.zeros((keys, K)), jnp.eye(keys)
    weights = attend(q, k, v, dropout=rate, dropout_key=jax.random.key(7))
    kept = weights > 0
    np.testing.assert_allclose(weights[kept], 1 / keys / (1 - rate), rtol=1e-5)
    np.testing.assert_allclose(kept.mean(), 1 - rate, atol=0.03)
    assert len(np.unique(np.asarray(kept), axis=0)) == queries
    assert len(np.unique(np.asarray(kept), axis=1).T) == keys


def test_gradients_under_dropout_are_those_for_the_drawn_mask(attend):
    @jax.jit
    def drop(q, k, v):
        return attend(q, k, v, dropout=0.4, dropout_key=jax.random.key(8))

    check_grads(lambda *x: drop(*map(jnp.asarray, x)), qkv(), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("heads", [(), (5,)])
def test_the_courses_shapes_and_mask(heads, attend):
    """Batch 3, d_K 128, d_V 256, n_Q 30, n_K = n_V = 50. Where the mask is 0, the course sets the logit to −10⁹."""
    q, k, v = normal(0, 3, *heads, 30, 128), normal(1, 3, *heads, 50, 128), normal(2, 3, *heads, 50, 256)
    mask = jax.random.bernoulli(jax.random.key(3), 0.7, (3, *(1 for _ in heads), 30, 50)).at[..., 0].set(True)
    theirs = [x.requires_grad_() for x in to_torch(q, k, v)]
    logits = theirs[0] @ theirs[1].transpose(-1, -2) / np.sqrt(128)
    expected_weights = logits.masked_fill(to_torch(mask)[0] == 0, -1e9).softmax(-1)
    expected = expected_weights @ theirs[2]
    expected.sum().backward()

    out, weights = scaled_dot_product_attention(q, k, v, mask)
    assert out.shape == (3, *heads, 30, 256) and weights.shape == (3, *heads, 30, 50)
    np.testing.assert_allclose(weights, expected_weights.detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-4, atol=1e-5)
    gradients = jax.jit(jax.grad(lambda *x: attend(*x, mask).sum(), argnums=(0, 1, 2)))(q, k, v)
    for ours, their in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(ours, their.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "flash"}, "'auto', 'xla', 'chunked', 'cudnn'.*'flash'"),
        ({"causal": "left"}, "'top_left' or 'bottom_right', got 'left'"),
        ({"implementation": "chunked"}, "return_weights=False"),
        ({"mask": jnp.ones((3, S), bool)}, r"mask must broadcast to \[..., 5, 7\]"),
        ({"bias": jnp.ones(T)}, r"bias must broadcast to \[..., 5, 7\]"),
    ],
)
def test_unsupported_options_are_refused_with_an_alternative(options, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(scaled_dot_product_attention)(*qkv(), **options)


def test_auto_computes_in_chunks_only_for_large_logits(monkeypatch):
    """And only if the weights are not returned."""

    def loops(limit, return_weights):
        monkeypatch.setattr("w2jax.attention.CHUNK_ABOVE_BYTES", limit)
        attention = partial(scaled_dot_product_attention, return_weights=return_weights)
        return "scan" in str(jax.make_jaxpr(attention)(*qkv()))

    logits = 4 * B * H * T * S
    assert not loops(logits, False)
    assert loops(logits - 1, False)
    assert not loops(logits - 1, True)


@pytest.mark.parametrize(
    ("open_sizes", "loops"), [({"b": B}, False), ({"b": B}, True), ({"b": B, "t": T, "s": S}, False)]
)
def test_auto_counts_symbolic_sizes_of_an_export_as_one(open_sizes, loops, monkeypatch):
    known = 4 * B * H * T * S // math.prod(open_sizes.values())
    monkeypatch.setattr("w2jax.attention.CHUNK_ABOVE_BYTES", known - loops)
    attention = jax.jit(lambda *inputs: scaled_dot_product_attention(*inputs, return_weights=False)[0])
    names = {size: name for name, size in open_sizes.items()}
    shapes = [", ".join(names.get(size, str(size)) for size in x.shape) for x in qkv()]
    exported = export.export(attention)(*export.symbolic_args_specs(qkv(), shapes))
    assert ("stablehlo.while" in exported.mlir_module()) == loops
    expected = scaled_dot_product_attention(*qkv())[0]
    np.testing.assert_allclose(exported.call(*qkv()), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("q", "k", "v"), [((T, K), (S, K + 1), (S, V)), ((T, K), (S, K), (S + 1, V))])
def test_shapes_that_do_not_fit_are_refused_with_both_shapes(q, k, v):
    unchecked = inspect.unwrap(scaled_dot_product_attention)  # as users call it, without the type check of the tests
    with pytest.raises(ValueError, match=r"got .*\(\d, \d\) and .*\(\d, \d\)"):
        unchecked(jnp.zeros(q), jnp.zeros(k), jnp.zeros(v))


def torch_parameters(params, separate):
    """Returns our parameters, or gradients, with the names and layout of torch.nn.MultiheadAttention."""
    kernels = [params[n]["kernel"].reshape(params[n]["kernel"].shape[0], -1).T for n in ("query", "key", "value")]
    out = params["out"]["kernel"]
    theirs = {"out_proj.weight": out.reshape(-1, out.shape[-1]).T}
    if separate:
        theirs |= {f"{n}_proj_weight": w for n, w in zip("qkv", kernels, strict=True)}
    else:
        theirs["in_proj_weight"] = np.concatenate(kernels)
    if "bias" in params["out"]:
        theirs["in_proj_bias"] = np.concatenate([params[n]["bias"].reshape(-1) for n in ("query", "key", "value")])
        theirs["out_proj.bias"] = params["out"]["bias"]
    return {name: to_torch(x)[0] for name, x in theirs.items()}


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
@pytest.mark.parametrize(("cross", "use_bias"), [(False, True), (True, True), (True, False)])
def test_multi_head_attention_has_torchs_values_and_gradients(cross, use_bias, implementation, monkeypatch):
    monkeypatch.setattr("w2jax.kernels.attention.QUERY_BLOCK", 2)
    monkeypatch.setattr("w2jax.kernels.attention.KEY_BLOCK", 3)
    width, heads, kdim, vdim = 12, 3, 10, 8
    query = normal(0, B, T, width)
    key, value = (normal(1, B, S, kdim), normal(2, B, S, vdim)) if cross else (None, None)
    length = S if cross else T
    mask = some_mask()[0, 0, :, :length]  # torch's attn_mask and key_padding_mask are True where a key is masked
    lengths = np.array([length - 1, 4])
    mha = MultiHeadAttention(heads, use_bias=use_bias, implementation=implementation)
    params = random_variables(mha, query, key, value)["params"]
    weight = normal(5, B, T, width)

    @jax.jit
    def value_and_gradients(params, query):
        def loss(params, query):
            out, weights = mha.apply(
                {"params": params},
                query,
                key,
                value,
                mask=mask,
                key_lengths=jnp.array(lengths),
                return_weights=implementation == "xla",
            )
            return (out * weight).sum(), (out, weights)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, query)

    (to_params, to_query), (out, weights) = value_and_gradients(params, query)

    theirs = torch.nn.MultiheadAttention(
        width, heads, bias=use_bias, batch_first=True, kdim=kdim if cross else None, vdim=vdim if cross else None
    )
    theirs.load_state_dict(torch_parameters(params, cross))
    inputs = [x.requires_grad_() for x in (to_torch(query, key, value) if cross else to_torch(query))]
    expected, expected_weights = theirs(
        *(inputs if cross else inputs * 3),
        attn_mask=~to_torch(mask)[0],
        key_padding_mask=torch.arange(length) >= torch.tensor(lengths)[:, None],
        average_attn_weights=False,
    )
    (expected * to_torch(weight)[0]).sum().backward()
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_query, inputs[0].grad, rtol=1e-4, atol=1e-5)
    gradients = torch_parameters(to_params, cross)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(gradients[name], parameter.grad, rtol=1e-4, atol=2e-5, err_msg=name)
    if implementation == "xla":
        np.testing.assert_allclose(weights, expected_weights.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_fifty_steps_of_adam_stay_with_torch():
    width, heads, steps = 12, 3, 50
    mha, optimizer = MultiHeadAttention(heads), optax.adam(1e-2)
    queries, targets = normal(0, steps, B, T, width), normal(1, steps, B, T, width)
    start = random_variables(mha, queries[0])["params"]

    def step(carry, batch):
        def loss(params):
            out, _ = mha.apply({"params": params}, batch[0], causal=True)
            return ((out - batch[1]) ** 2).mean()

        params, opt_state = carry
        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    carry = start, optimizer.init(start)
    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, (queries, targets)))(carry)
    assert losses[-1] < 0.7 * losses[0]  # the loss falls, so the parameters change

    theirs = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    theirs.load_state_dict(torch_parameters(start, separate=False))
    adam, hidden = torch.optim.Adam(theirs.parameters(), lr=1e-2), torch.ones(T, T).triu(1).bool()
    for query, target, ours in zip(*to_torch(queries, targets), losses, strict=True):
        loss = ((theirs(query, query, query, attn_mask=hidden)[0] - target) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        np.testing.assert_allclose(ours, loss.item(), rtol=1e-4)


def test_the_courses_scale_uses_the_width_over_all_heads():
    query, width, heads = normal(0, B, T, 12), 12, 3
    course, torchs = (MultiHeadAttention(heads, scale=scale) for scale in (width**-0.5, None))
    variables = random_variables(course, query)
    weights = run(course, variables, query, return_weights=True)[1]
    p = variables["params"]
    q, k = (jnp.einsum("btd,dhk->bhtk", query, p[n]["kernel"]) + p[n]["bias"][:, None] for n in ("query", "key"))
    expected = jax.nn.softmax(jnp.einsum("bhtk,bhsk->bhts", q, k) / np.sqrt(width))
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)
    assert jnp.abs(weights - run(torchs, variables, query, return_weights=True)[1]).max() > 0.01


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_grouped_heads_equal_full_heads_with_repeated_parameters(implementation):
    query, masks = normal(0, B, T, 12), {"mask": some_mask()[..., :T], "bias": normal(4, 6, T, T)}
    grouped, full = MultiHeadAttention(6, num_kv_heads=2, implementation=implementation), MultiHeadAttention(6)
    variables = random_variables(grouped, query)
    params = dict(variables["params"])
    for name in ("key", "value"):
        params[name] = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=-2), params[name])
    weights = implementation == "xla"
    ours = run(grouped, variables, query, return_weights=weights, **masks)
    expected = run(full, {"params": params}, query, return_weights=weights, **masks)
    assert not weights or ours[1].shape == (B, 6, T, T)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, expected)
    with pytest.raises(ValueError, match=r"size 6 \(heads\)"):
        grouped.apply(variables, query, bias=normal(4, 2, T, T))


@pytest.mark.parametrize("options", [{"embed_dim": 10}, {"qk_dim": 10}, {"v_dim": 10}, {"num_kv_heads": 3}])
def test_widths_that_the_heads_do_not_divide_are_named(options):
    mha = MultiHeadAttention(4, **({"embed_dim": 12} | options))
    with pytest.raises(ValueError, match=f"{next(iter(options))}.*divisible|divisible.*{next(iter(options))}"):
        mha.init(jax.random.key(0), normal(0, B, T, 12))


def test_separate_widths_of_queries_and_values_give_the_output_width():
    query = normal(0, B, T, 9)
    mha = MultiHeadAttention(2, embed_dim=6, qk_dim=8, v_dim=10)
    variables = random_variables(mha, query)
    assert variables["params"]["query"]["kernel"].shape == (9, 2, 4)
    assert variables["params"]["out"]["kernel"].shape == (2, 5, 6)
    assert run(mha, variables, query)[0].shape == (B, T, 6)


def test_projections_to_heads_are_initialized_by_glorot_over_all_heads():
    """Uniformly."""
    attention = MultiHeadAttention(num_heads=3, qk_dim=60, v_dim=36)
    params = attention.init(jax.random.key(0), jnp.zeros((2, 5, 24)))["params"]
    for name, width in (("query", 60), ("key", 60), ("value", 36)):
        kernel, bound = np.asarray(params[name]["kernel"]), (6 / (24 + width)) ** 0.5
        assert kernel.shape == (24, 3, width // 3)
        assert 0.98 * bound < abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
        assert not params[name]["bias"].any()
