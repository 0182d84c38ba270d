"""Micro-batches give the gradient of the whole batch, in a program's own jit, on all CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from w2jax.micro_batches import in_micro_batches, number_of_parts

RNG = np.random.default_rng(0)
PARAMS = {"kernel": jnp.asarray(RNG.standard_normal((3, 5), np.float32))}
BATCH = {name: RNG.standard_normal((24, *shape), np.float32) for name, shape in (("x", (3,)), ("y", (5,)))}


def loss(params, batch):
    error = jnp.tanh(batch["x"] @ params["kernel"]) - batch["y"]
    return jnp.square(error).mean(), {"error": jnp.abs(error).mean()}


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]), ("data",))


@pytest.mark.parametrize(("devices", "size"), [(1, 4), (2, 3), (3, 8), (4, 100)])
def test_the_gradient_is_that_of_the_whole_batch(devices, size):
    gradient = jax.value_and_grad(loss, has_aux=True)
    result = jax.jit(in_micro_batches(gradient, size, mesh_of(devices)))(PARAMS, BATCH)
    for ours, expected in zip(jax.tree.leaves(result), jax.tree.leaves(gradient(PARAMS, BATCH)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_all_devices_are_used_without_a_mesh():
    devices = set()

    def where(params, batch):
        jax.debug.callback(lambda index: devices.add(int(index)), jax.lax.axis_index("data"))
        return {"mean": batch["x"].mean(), "examples": jnp.float32(len(batch["x"]))}

    assert len(jax.devices()) == 8
    result = jax.jit(in_micro_batches(where, 1))(PARAMS, BATCH)
    jax.effects_barrier()
    np.testing.assert_allclose(result["mean"], BATCH["x"].mean(), rtol=1e-5)
    assert devices == set(range(8)) and result["examples"] == 1


def test_each_micro_batch_has_a_key_of_its_own():
    def drawn(params, batch, key):
        numbers = jax.random.normal(key, (len(batch["x"]),))
        return {"first": numbers.mean(), "square": jnp.square(numbers).mean()}

    result = jax.jit(in_micro_batches(drawn, 2, mesh_of(3)))(PARAMS, BATCH, jax.random.key(0))
    # With the same key everywhere, the mean of all 24 numbers would be the mean of the first two.
    first = drawn(PARAMS, {"x": BATCH["x"][:2]}, jax.random.split(jax.random.key(0), 12)[0])
    assert abs(float(result["first"])) < 0.7 and float(result["first"]) != pytest.approx(float(first["first"]))
    assert 0.4 < float(result["square"]) < 2.5


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"^the number of examples must be divisible by 5, the number of device"):
        in_micro_batches(loss, 2, mesh_of(5))(PARAMS, BATCH)


@pytest.mark.parametrize(
    ("examples", "size", "parts"),
    [(64, 16, 4), (50, 16, 2), (7, 2, 7), (10, 100, 1), (12, 5, 2), (10**9, 16, 62_500_000)],
)
def test_the_parts_have_about_the_wanted_size(examples, size, parts):
    assert number_of_parts(examples, size) == parts
