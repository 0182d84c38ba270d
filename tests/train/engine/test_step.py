"""The training step of a task with one loss: accumulation, averaging, randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs.base import ClassifierConfig, Mesh, Optim
from configs.lstm import ADAM
from train.config.checks import check_ranges
from train.dryrun.hlo import count
from train.engine.optim import make_optimizer, make_schedule
from train.engine.sharding import batch_sharding, make_mesh
from train.engine.step import init_state, make_train_step, skip_nonfinite
from train.task import NONFINITE

X = jax.random.normal(jax.random.key(0), (12, 3))
Y = X @ jnp.array([1.0, -2.0, 0.5])


def squared_error(params, batch, key):
    error = (batch["x"] @ params["kernel"] - batch["y"]) ** 2
    return error.mean(), {"largest": error.max()}


def run(config, steps, loss=squared_error, optimizer=None, seed=0):
    optimizer = optimizer or optax.sgd(0.1)
    step = jax.jit(make_train_step(loss, optimizer, config, seed))
    states = [init_state({"kernel": jnp.array([0.3, 0.2, -0.1])}, optimizer, config)]
    for _ in range(steps):
        state, metrics = step(states[-1], {"x": X, "y": Y})
        states.append(state)
    return states, metrics


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_an_accumulated_gradient_equals_that_of_the_full_batch(parts):
    whole, metrics = run(Optim(), 3)
    cut, metrics_of_parts = run(Optim(accumulate=parts), 3)
    np.testing.assert_allclose(cut[-1].params["kernel"], whole[-1].params["kernel"], rtol=1e-5)
    np.testing.assert_allclose(metrics_of_parts["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics_of_parts["grad_norm"], metrics["grad_norm"], rtol=1e-5)


def wide_error(params, batch, key):
    """A loss with a hidden layer that is much larger than the inputs and parameters."""
    error = (jnp.tanh(batch["x"] @ params["kernel"]) @ params["out"] - batch["y"]) ** 2
    return error.mean(), {"error": jnp.abs(error).mean()}


def drawn(params, batch, key):
    """A loss whose gradient with respect to an example's own parameter is the random number drawn for the example."""
    return (jax.random.normal(key, batch["y"].shape) * params["own"][batch["index"]]).mean(), {}


def on_devices(devices, micro_batch, loss=wide_error, examples=24):
    """Returns (the compiled step on `devices` devices, its arguments: a state and a batch)."""
    mesh, optimizer, rng = make_mesh(Mesh(devices, 1, 1)), optax.sgd(0.1), np.random.default_rng(0)
    shapes = {"kernel": (3, 500), "out": (500,), "own": (examples,)}
    params = {name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
    batch = {"x": rng.standard_normal((examples, 3), np.float32), "y": rng.standard_normal(examples, np.float32)}
    step = make_train_step(loss, optimizer, Optim(), 0, micro_batch=micro_batch)

    def on_mesh(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, batch)

    state = jax.device_put(init_state(params, optimizer, Optim()), NamedSharding(mesh, PartitionSpec()))
    arguments = state, jax.device_put({**batch, "index": np.arange(examples)}, batch_sharding(mesh))
    return jax.jit(on_mesh).lower(*arguments).compile(), arguments


@pytest.mark.parametrize(("devices", "micro_batch"), [(2, 4), (3, 2), (4, 1)])
def test_micro_batches_give_the_full_batchs_gradient(devices, micro_batch):
    """They need little memory and exchange the gradient once."""
    (whole, arguments), (cut, arguments_of_parts) = on_devices(1, None), on_devices(devices, micro_batch)
    (state, metrics), (state_of_parts, metrics_of_parts) = whole(*arguments), cut(*arguments_of_parts)
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_of_parts[name], value, rtol=1e-5, err_msg=name)
    for name, value in state.params.items():
        np.testing.assert_allclose(state_of_parts.params[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    gradients = state.params["kernel"].nbytes + state.params["out"].nbytes
    assert gradients <= count(cut.as_text(), devices).collectives["all-reduce"].bytes < 1.1 * gradients
    uncut, _ = on_devices(devices, None)
    kept, kept_uncut = (step.memory_analysis().temp_size_in_bytes for step in (cut, uncut))
    assert kept - gradients < (kept_uncut - gradients) / 2


def test_each_example_of_each_micro_batch_has_its_own_randomness():
    step, (state, batch) = on_devices(3, 2, drawn)
    moved = np.asarray(step(state, batch)[0].params["own"]) - np.asarray(state.params["own"])
    assert len(set(np.round(moved, 6))) == 24 and 0.5 < np.std(moved * 24 / 0.1) < 2


def split_in_vain(params, batch, key):
    """A loss that splits its key and draws nothing, as Flax's scan and remat do with the dropout key at any rate."""
    keys = jax.random.split(key, 3)

    @jax.checkpoint
    def layer(x, key):
        return jnp.tanh(x), None

    x, _ = jax.lax.scan(layer, batch["x"] @ params["kernel"], keys)
    return ((x @ params["out"] - batch["y"]) ** 2).mean(), {}


@pytest.mark.parametrize(("loss", "is_cut"), [(wide_error, True), (split_in_vain, True), (drawn, False)])
def test_micro_batches_are_automatic_only_where_the_loss_draws_nothing(loss, is_cut):
    """So a config draws the same numbers on every device. A given size always uses micro-batches."""
    (auto, arguments), (asked, _) = on_devices(2, "auto", loss, 66), on_devices(2, 4, loss, 66)
    assert ("while" in auto.as_text() and "shard_map" in auto.as_text()) == is_cut
    assert "shard_map" in asked.as_text()
    if not is_cut:
        alone, arguments_alone = on_devices(1, "auto", loss, 66)
        (state, _), (expected, _) = auto(*arguments), alone(*arguments_alone)
        np.testing.assert_allclose(state.params["own"], expected.params["own"], rtol=1e-5)


def test_the_average_starts_close_to_the_parameters_and_is_evaluated():
    states, _ = run(Optim(ema=0.9), 40)
    average = states[0].params["kernel"]
    for t, state in enumerate(states[1:]):
        decay = min(0.9, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * state.params["kernel"]
        np.testing.assert_allclose(state.ema["kernel"], average, rtol=1e-5)
    assert states[-1].eval_params is states[-1].ema
    assert run(Optim(), 1)[0][-1].eval_params.keys() == {"kernel"}


def test_randomness_depends_only_on_seed_and_step():
    def noisy(params, batch, key):
        return jax.random.normal(key) * params["kernel"].sum(), {}

    def losses(seed):
        states, _ = run(Optim(), 3, loss=noisy, seed=seed, optimizer=optax.sgd(0.0))
        step = make_train_step(noisy, optax.sgd(0.0), Optim(), seed)
        return [float(step(state, {"x": X, "y": Y})[1]["loss"]) for state in states]

    first = losses(0)
    assert first == losses(0)
    assert len(set(first + losses(1))) == 8


def test_the_learning_rate_warms_up_and_decays_to_its_final_fraction():
    rates = np.array(
        [
            make_schedule(Optim(learning_rate=2.0, warmup_fraction=0.2, final_lr_fraction=0.1), 100)(t)
            for t in range(101)
        ]
    )
    np.testing.assert_allclose(rates[:21], np.linspace(0, 2.0, 21), rtol=1e-5, atol=1e-6)
    assert (np.diff(rates[20:]) < 0).all()
    np.testing.assert_allclose(rates[100], 0.2, rtol=1e-5)
    np.testing.assert_allclose(rates[60], 0.2 + 1.8 / 2, rtol=1e-5)


@pytest.mark.parametrize(("fraction", "steps", "warmup"), [(0.29, 100, 29), (0.58, 50, 29), (0.05, 30, 1)])
def test_a_fraction_of_the_steps_warms_up(fraction, steps, warmup):
    """Rounded down. But 0.29 · 100 is 28.999999999999996 in binary."""
    schedule = make_schedule(Optim(learning_rate=2.0, warmup_fraction=fraction), steps)
    rates = np.array([schedule(step) for step in range(steps + 1)])
    assert rates.argmax() == warmup
    np.testing.assert_allclose(rates[: warmup + 1], np.linspace(0, 2.0, warmup + 1), rtol=1e-5)


def first_moment(optimizer, gradients, params):
    """Returns Adam's first moment of the kernel after one update."""
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    return next(leaf for leaf in jax.tree.leaves(state) if leaf.shape == params["kernel"].shape)


def test_only_kernels_decay_and_large_gradients_are_clipped():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "positions": jnp.ones((1, 2, 3))}
    params |= {"hidden_kernel": jnp.ones((3, 4, 5)), "hidden_bias": jnp.ones((4, 5))}
    still = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(Optim(learning_rate=0.5, warmup_fraction=0.0, weight_decay=0.1), 10)
    updates, _ = optimizer.update(still, optimizer.init(params), params)
    for name, update in updates.items():
        np.testing.assert_allclose(update, -0.05 if name.endswith("kernel") else 0, rtol=1e-5, err_msg=name)

    clip = make_optimizer(Optim(clip=1.0), 10)
    free = make_optimizer(Optim(clip=None), 10)
    long = jax.tree.map(lambda x: 1e3 * x, params)
    moment = first_moment(clip, long, params)
    np.testing.assert_allclose(moment, 0.1 * 1e3 / float(optax.tree.norm(long)), rtol=1e-4)
    moment = first_moment(free, long, params)
    np.testing.assert_allclose(moment, 100.0, rtol=1e-4)


def test_the_courses_optimizer_is_plain_adam():
    check_ranges(ClassifierConfig(optim=ADAM))
    plain, _ = run(ADAM, 20, optimizer=optax.adam(1e-3))
    ours, _ = run(ADAM, 20, optimizer=make_optimizer(ADAM, 20))
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a.params["kernel"], b.params["kernel"], rtol=1e-6)


PARAMS = {"a": jnp.ones((2, 3)), "b": jnp.ones(4), "c": jnp.ones(5)}


def poisoned_loss(params, batch, key):
    """A loss whose gradient in b is NaN if the batch contains a NaN. All other gradients are finite."""
    return (params["a"] ** 2).sum() + (params["b"] * batch["x"]).sum() + (params["c"] ** 3).sum(), {}


@pytest.mark.parametrize(("value", "broken"), [(1.0, []), (jnp.nan, [1]), (jnp.inf, [1]), (3e38, [1])])
def test_a_step_reports_which_gradients_are_not_finite(value, broken):
    optimizer = optax.sgd(0.1)
    step = make_train_step(poisoned_loss, optimizer, Optim(), 0)
    state = init_state(PARAMS, optimizer, Optim())
    _, metrics = step(state, {"x": jnp.array([0.5, value, 0.5, 0.5])})
    assert np.flatnonzero(metrics[NONFINITE]).tolist() == broken  # in the order of the leaves: a, b, c


def test_a_skipped_step_changes_only_the_step_number():
    """Training continues as if that batch did not exist."""
    optimizer, config = optax.adam(0.1), Optim(ema=0.9)
    plain = make_train_step(poisoned_loss, optimizer, config, 0)
    careful, state = skip_nonfinite(plain), init_state(PARAMS, optimizer, config)
    good, bad = ({"x": jnp.array([0.5, x, 0.5, 0.5])} for x in (1.0, jnp.nan))
    after = state
    for batch in (good, bad, good):
        after, _ = careful(after, batch)
    expected, _ = plain(state, good)
    expected, _ = plain(expected.replace(step=expected.step + 1), good)
    assert int(after.step) == 3
    jax.tree.map(np.testing.assert_array_equal, after, expected)
