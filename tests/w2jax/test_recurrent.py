"""LSTM, GRU and RNN compared with torch, and properties beyond torch: isolation, splitting, second-order gradients."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from models import normal, random_variables, run
from torch_recurrent import our_params, to_torch

from w2jax import GRU, LSTM, RNN
from w2jax.rnn import activation

B, T, I, H, P = 3, 5, 4, 7, 6  # noqa: E741
THEIRS = {LSTM: torch.nn.LSTM, GRU: torch.nn.GRU, RNN: torch.nn.RNN}


def random_states(kind, layers, batch, options):
    size = layers * (2 if options.get("bidirectional") else 1)
    h = normal(1, size, *batch, options.get("proj_size") or H)
    return (h, normal(2, size, *batch, H)) if kind is LSTM else (h,)


def nest(kind, states):
    """Returns states as the call expects them: a pair for the LSTM, one array for the others."""
    return states if kind is LSTM else states[0]


def flat(result):
    out, states = result
    return (out, *states) if isinstance(states, tuple) else (out, states)


CASES = [
    (LSTM, 1, {}, {}),
    (LSTM, 3, {"bidirectional": True}, {"state": True}),
    (LSTM, 2, {"bias": False, "proj_size": P}, {"state": True}),
    (LSTM, 2, {}, {"lengths": [5, 1, 3], "state": True}),
    (LSTM, 2, {"bidirectional": True, "proj_size": P}, {"lengths": [2, 4, 1], "state": True}),
    (LSTM, 2, {"bidirectional": True, "bias": False}, {"lengths": [3, 3, 3], "time_major": True}),
    (LSTM, 2, {"proj_size": P}, {"time_major": True}),
    (LSTM, 2, {"bidirectional": True}, {"unbatched": True, "state": True}),
    (GRU, 1, {"bias": False}, {"state": True}),
    (GRU, 2, {"bidirectional": True}, {"lengths": [2, 5, 1], "state": True}),
    (GRU, 3, {}, {"time_major": True}),
    (RNN, 2, {"bidirectional": True}, {"state": True}),
    (RNN, 1, {"nonlinearity": "relu", "bias": False}, {"state": True}),
    (RNN, 2, {"bidirectional": True, "nonlinearity": "relu"}, {"lengths": [4, 1, 2], "state": True}),
]


def torch_run(module, x, states, lengths, batch_first):
    if lengths is None:
        return flat(module(x, states))
    rnn = torch.nn.utils.rnn
    packed = rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=False)
    out, *states = flat(module(packed, states))
    return (rnn.pad_packed_sequence(out, batch_first=batch_first, total_length=T)[0], *states)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    "kind, layers, options, call", CASES, ids=lambda x: x.__name__ if isinstance(x, type) else str(x)
)
def test_values_and_every_gradient_are_those_of_torch(kind, layers, options, call):
    torch.manual_seed(0)
    time_major, lengths = call.get("time_major", False), call.get("lengths")
    theirs = THEIRS[kind](I, H, layers, batch_first=not time_major, **options)
    params = our_params(theirs)
    batch = () if "unbatched" in call else (B,)
    x = normal(0, *((T, *batch, I) if time_major else (*batch, T, I)))
    states = random_states(kind, layers, batch, options) if "state" in call else ()

    their_x, *their_states = map(to_torch, (x, *states))
    expected = torch_run(theirs, their_x, nest(kind, tuple(their_states)) if states else None, lengths, not time_major)
    weights = [normal(10 + i, *value.shape) for i, value in enumerate(expected)]
    sum((value * to_torch(weight).detach()).sum() for value, weight in zip(expected, weights, strict=True)).backward()

    module = kind(H, layers, time_major=time_major, **options)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    )

    def loss(params, x, *states):
        initial = nest(kind, states) if states else None
        results = flat(module.apply({"params": params}, x, initial, lengths=lengths))
        return sum((value * weight).sum() for value, weight in zip(results, weights, strict=True)), results

    arguments = (params, x, *states)
    gradients, results = jax.jit(jax.grad(loss, tuple(range(len(arguments))), has_aux=True))(*arguments)
    for ours, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, value.detach(), rtol=1e-5, atol=1e-5)
    wanted = (our_params(theirs, gradients=True), *(value.grad for value in (their_x, *their_states)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradients, wanted)


@pytest.mark.slow
def test_fifty_steps_of_adam_stay_with_torch():
    """A small version of the course's classifier: a linear layer on the LSTM's last output."""
    torch.manual_seed(0)
    theirs, head = torch.nn.LSTM(I, H, 2, batch_first=True), torch.nn.Linear(H, 3)
    xs, labels = normal(0, 50, B * 4, T, I), jax.random.randint(jax.random.key(1), (50, B * 4), 0, 3)
    params = {
        "lstm": our_params(theirs),
        "kernel": jnp.asarray(head.weight.detach().numpy().T.copy()),
        "bias": jnp.asarray(head.bias.detach().numpy().copy()),
    }
    optimizer, lstm = optax.adam(1e-2), LSTM(H, 2)

    def loss(params, x, label):
        out, _ = lstm.apply({"params": params["lstm"]}, x)
        logits = out[:, -1] @ params["kernel"] + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    def step(carry, batch):
        params, opt_state = carry
        value, gradients = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, (xs, labels)))((params, optimizer.init(params)))
    adam = torch.optim.Adam([*theirs.parameters(), *head.parameters()], lr=1e-2)
    for x, label, ours in zip(xs, labels, losses, strict=True):
        logits = head(theirs(to_torch(x).detach())[0][:, -1])
        value = torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.array(label)).long())
        adam.zero_grad()
        value.backward()
        adam.step()
        np.testing.assert_allclose(ours, value.item(), rtol=1e-4)


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_parameters_start_uniform_within_torchs_bound(kind):
    hidden = 50
    params = jax.jit(kind(hidden, bidirectional=True).init)(jax.random.key(0), jnp.zeros((1, 2, 30)))["params"]
    bound = hidden**-0.5
    for leaf in jax.tree.leaves(params):
        assert jnp.abs(leaf).max() < bound
        if leaf.size > 1000:
            np.testing.assert_allclose([leaf.mean(), leaf.std()], [0, bound / 3**0.5], atol=0.03 * bound)
    drawn = [leaf.ravel()[0].item() for leaf in jax.tree.leaves(params)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_a_sequence_read_in_two_parts_equals_one_call(kind):
    module, x = kind(H, 2), normal(0, B, T, I)
    variables = random_variables(module, x)
    whole = flat(run(module, variables, x))
    first, states = run(module, variables, x[:, :2])
    second, *ends = flat(run(module, variables, x[:, 2:], states))
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole[0], rtol=1e-5, atol=1e-6)
    for ours, expected in zip(ends, whole[1:], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


BOTH_WAYS = {kind: kind(3, 2, bidirectional=True) for kind in (LSTM, GRU, RNN)}
VARIABLES = {kind: random_variables(module, normal(0, 4, 6, 2)) for kind, module in BOTH_WAYS.items()}


@partial(jax.jit, static_argnums=0)
def read(kind, x, lengths):
    return flat(BOTH_WAYS[kind].apply(VARIABLES[kind], x, lengths=lengths))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
@settings(deadline=None, max_examples=25, derandomize=True)
@given(lengths=st.lists(st.integers(1, 6), min_size=4, max_size=4), seed=st.integers(0, 1000))
def test_each_sequence_gives_the_result_it_gives_alone(kind, lengths, seed):
    x = normal(seed, 4, 6, 2)
    padding = jnp.arange(6)[:, None] >= jnp.array(lengths)[:, None, None]
    out, *ends = read(kind, jnp.where(padding, jnp.nan, x), jnp.array(lengths))
    assert (jnp.where(padding, out, 0) == 0).all()
    for i, length in enumerate(lengths):
        expected, *expected_ends = read(kind, x[i : i + 1, :length], None)
        np.testing.assert_allclose(out[i, :length], expected[0], rtol=1e-4, atol=1e-5)
        for end, value in zip(ends, expected_ends, strict=True):
            np.testing.assert_allclose(end[:, i], value[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_nan_padding_and_other_sequences_never_reach_a_gradient(kind):
    x = normal(0, 4, 6, 2).at[1, 2:].set(jnp.nan)
    lengths = jnp.array([6, 2, 4, 5])

    def second_sequence(variables, x):
        out, *ends = flat(BOTH_WAYS[kind].apply(variables, x, lengths=lengths))
        return (out[1] ** 2).sum() + sum((end[:, 1] ** 2).sum() for end in ends)

    to_variables, to_x = jax.jit(jax.grad(second_sequence, (0, 1)))(VARIABLES[kind], x)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(to_variables))
    assert (to_x[1, :2] != 0).all()
    np.testing.assert_array_equal(to_x.at[1, :2].set(0), 0)


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_without_a_backward_direction_outputs_do_not_depend_on_later_inputs(kind):
    module, x = kind(H, 2), normal(0, B, T, I)
    variables = random_variables(module, x)
    jacobian = jax.jit(jax.jacrev(lambda x: module.apply(variables, x)[0].sum((0, 2))))(x)  # [T, B, T, I]
    for t in range(T):
        np.testing.assert_array_equal(jacobian[t, :, t + 1 :], 0)
        assert (jnp.abs(jacobian[t, :, : t + 1]).sum(-1) > 0).all()


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_dropout_is_applied_between_layers_and_only_in_training(kind):
    x, rngs = normal(0, B, T, I), {"dropout": jax.random.key(1)}

    def output(layers, rate, train, x=x):
        module = kind(H, layers, dropout=rate)
        return module.apply(random_variables(module, x), x, train=train, rngs=rngs)[0]

    np.testing.assert_array_equal(output(1, 1.0, True), output(1, 0.0, False))  # no dropout after the last layer
    np.testing.assert_array_equal(output(2, 1.0, False), output(2, 0.0, False))
    np.testing.assert_array_equal(output(2, 1.0, True), output(2, 1.0, True, -x))  # all dropped: x has no effect
    np.testing.assert_array_equal(output(2, 0.5, True), output(2, 0.5, True))
    assert (output(2, 0.5, True) != output(2, 0.0, True)).any()


def test_a_step_of_the_lstm_has_one_product_forward_and_one_backward():
    """So the input's product is before the scan, and the product for the weights' gradients after the scan."""
    module, x = LSTM(H, 2), normal(0, B, T, I)
    variables = random_variables(module, x)
    jaxpr = jax.make_jaxpr(jax.grad(lambda v: module.apply(v, x)[0].sum()))(variables)

    def walk(jaxpr, inside):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield inside
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    name = id(equation) if equation.primitive.name == "scan" else inside
                    yield from walk(inner, name)

    products = list(walk(jaxpr.jaxpr, None))
    scans = set(products) - {None}
    assert len(scans) == 4  # two layers, forward and backward pass
    assert all(products.count(scan) == 1 for scan in scans)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_devices_that_shard_hidden_units_exchange_only_states(kind):
    """Never weights."""
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,))
    batch, width, hidden = 3, 5, 16
    module, x = kind(hidden), jax.ShapeDtypeStruct((batch, 6, width), jnp.float32)

    def placed(leaf):
        axes = [None] * (leaf.ndim - 1) + ["tensor"]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    variables = jax.tree.map(placed, jax.eval_shape(module.init, jax.random.key(0), x))
    output = jax.jit(lambda variables, x: module.apply(variables, x)[0])
    text = output.lower(variables, x).compile().as_text()
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"= f32\[([\d,]+)\]\S* all-", text)]
    assert sizes and max(sizes) <= batch * hidden  # one state per step; the smallest kernel has 5 · 3 · 16 numbers


@pytest.mark.slow
def test_second_order_gradients_are_derivatives_of_the_first():
    module, x = LSTM(3, 1, proj_size=2), normal(0, 2, 3, 2)
    variables = random_variables(module, x)
    lengths = jnp.array([3, 2])

    def loss(variables, x):
        out, (h, c) = module.apply(variables, x, lengths=lengths)
        return (out**2).sum() + (h * c[..., :2]).sum()

    check_grads(jax.jit(loss), (variables, x), order=2, modes=["rev"], rtol=2e-2, atol=2e-2)
    hessian = jax.jit(jax.hessian(lambda x: loss(variables, x)))(x).reshape(12, 12)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: loss(variables, x), (x,), (x,))


def test_vmap_over_models_and_inputs_equals_a_loop():
    module, xs = LSTM(H, 2), normal(0, 2, B, T, I)
    models = [random_variables(module, xs[0], seed=seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *models)

    def gradient(variables, x):
        return jax.grad(lambda v, x: (module.apply(v, x)[0] ** 2).sum(), (0, 1))(variables, x)

    together = jax.jit(jax.vmap(gradient))(stacked, xs)
    for i, variables in enumerate(models):
        alone = jax.jit(gradient)(variables, xs[i])
        mine = jax.tree.map(lambda x: x[i], together)  # noqa: B023
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), mine, alone)


@pytest.mark.parametrize(
    ("kind", "options"), [(LSTM, {}), (LSTM, {"proj_size": P, "bidirectional": True}), (GRU, {}), (RNN, {})]
)
def test_bfloat16_is_near_float32(kind, options):
    x = normal(0, B, T, I)
    variables = random_variables(kind(H, 2, **options), x)

    def value_and_gradient(dtype):
        def loss(variables):
            out, states = kind(H, 2, dtype=dtype, **options).apply(variables, x)
            assert {leaf.dtype for leaf in jax.tree.leaves((out, states))} == {jnp.dtype(dtype)}
            return (out.astype(jnp.float32) ** 2).mean()

        return jax.jit(jax.value_and_grad(loss))(variables)

    (low, low_gradient), (high, high_gradient) = value_and_gradient("bfloat16"), value_and_gradient("float32")
    np.testing.assert_allclose(low, high, rtol=0.03)
    for a, b in zip(jax.tree.leaves(low_gradient), jax.tree.leaves(high_gradient), strict=True):
        assert a.dtype == jnp.float32
        assert jnp.linalg.norm(a - b) < 0.05 * jnp.linalg.norm(b)


@pytest.mark.parametrize(
    "lengths, message",
    [
        ([5, 0, 3], r"from 1 to .*5.*\[5, 0, 3\]"),
        ([5, 6, 3], r"from 1 to .*5.*\[5, 6, 3\]"),
        ([5, 3], r"shape \(3,\).*\(2,\)"),
        (np.array([5.0, 1.0, 2.0]), "integers.*float"),
    ],
)
def test_impossible_lengths_are_refused(lengths, message):
    module, x = LSTM(H), normal(0, B, T, I)
    with pytest.raises(ValueError, match=message):
        module.apply(random_variables(module, x), x, lengths=lengths)


@pytest.mark.parametrize(
    "module, message",
    [
        (LSTM(0), "hidden_size"),
        (LSTM(H, 0), "num_layers"),
        (LSTM(H, proj_size=H), "proj_size"),
        (GRU(H, 2, dropout=1.5), "dropout"),
    ],
)
def test_impossible_options_are_refused_by_name(module, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), normal(0, B, T, I))


def test_another_nonlinearity_than_torchs_is_refused():
    with pytest.raises(ValueError, match=r"tanh.*relu.*sine"):
        activation("sine")


def test_an_input_or_state_of_another_shape_is_refused():
    module, x = LSTM(H, 2), normal(0, B, T, I)
    variables = random_variables(module, x)
    with pytest.raises(ValueError, match=r"\(2, 3, 7\).*got.*\(1, 3, 7\)"):
        module.apply(variables, x, (normal(0, 1, B, H), normal(0, 1, B, H)))
    with pytest.raises(ValueError, match=r"got the shape \(3, 0, 4\)"):
        module.apply(variables, x[:, :0])


@pytest.mark.slow
def test_reading_in_pieces_gives_the_same_gradient_in_less_memory():
    """It needs an eighth of the memory, as docs/scale.md shows."""
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "in_pieces" in block)
    names: dict = {}
    exec(block, names)

    def gradient(read):
        compiled = jax.jit(jax.grad(lambda variables: jnp.square(read(variables, names["x"])).mean()))
        compiled = compiled.lower(names["variables"]).compile()
        return compiled(names["variables"]), compiled.memory_analysis().temp_size_in_bytes

    whole, large = gradient(lambda variables, x: names["lstm"].apply(variables, x)[0])
    again, small = gradient(names["in_pieces"])
    assert small < large / 8
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * abs(one).max())
        assert abs(one).max() > 1e-6
