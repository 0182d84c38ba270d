"""Micro-batches for training on a CPU: each device computes a part of the batch, a few examples at a time.

On one CPU device, many operations use only one core, and the activations of a whole batch do not fit in a core's cache.
With one JAX device for each core and micro-batches, a step of a small model takes as little as half the time
(benchmarks/README.md).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

# A function of parameters, a batch and perhaps a key. It returns means over the examples of the batch.
Function = Callable[..., Any]

MICRO_BATCH = 16


def in_micro_batches(function: Function, size: int = MICRO_BATCH, mesh: Mesh | AbstractMesh | None = None) -> Function:
    """Return a function that computes `function` in micro-batches on all CPU devices.

    First split the CPU into devices. Then wrap the gradient, inside `jax.jit` or before it:

        jax.config.update("jax_num_cpu_devices", 2)  # before JAX computes anything
        value, gradients = in_micro_batches(jax.value_and_grad(loss))(params, (images, labels))

    The result is that of `function` up to rounding if each output is a plain mean over the examples: no batch norm, and
    no random key, because each micro-batch has other random numbers.

    Args:
        function: `function(params, batch)` returns arrays that are means over the examples of the batch, such as
            `jax.value_and_grad` of a mean loss. `batch` is a tree of arrays whose first axis is the examples.
            It may have a random key as third argument. Each micro-batch gets its own key, split from it.
        size: approximate number of examples in a micro-batch.
        mesh: mesh with an axis "data", over which the batch is split. None: all CPU devices. On one CPU device, and on
            a GPU or TPU, `function` runs on the whole batch.

    Returns:
        A function of the same arguments. It raises ValueError if the batch size is not a multiple of the number of
        devices.
    """

    def of_batch(params: Any, batch: Any, *key: jax.Array) -> Any:
        if mesh is None and (jax.default_backend() != "cpu" or jax.device_count() == 1):
            return function(params, batch, *key)
        devices = Mesh(np.array(jax.devices()), ("data",)) if mesh is None else mesh
        examples, left = divmod(len(jax.tree.leaves(batch)[0]), devices.size)
        if left:
            raise ValueError(
                f"the number of examples must be divisible by {devices.size}, the number of devices, got "
                f"{examples * devices.size + left}. Choose another batch size or number of devices"
            )
        count = number_of_parts(examples, size)
        replicated, sharded = PartitionSpec(), PartitionSpec("data")

        # With check_vma, JAX would sum over the devices for each gradient of replicated parameters.
        @partial(
            jax.shard_map, mesh=devices, in_specs=(replicated, sharded, sharded), out_specs=replicated, check_vma=False
        )
        def on_each_device(params, batch, keys):
            parts = jax.tree.map(lambda x: rearrange(x, "(p b) ... -> p b ...", p=count), batch)
            return jax.lax.pmean(mean_over_parts(function, params, parts, *keys), "data")

        return on_each_device(params, batch, [jax.random.split(each, devices.size * count) for each in key])

    return of_batch


def number_of_parts(examples: int, size: int) -> int:
    """Return the number of equal parts of `examples` examples whose size is closest to `size`."""
    small = [count for count in range(1, math.isqrt(examples) + 1) if examples % count == 0]
    divisors = sorted({*small, *(examples // count for count in small)})
    return min(divisors, key=lambda count: abs(math.log(examples / count / size)))


def mean_over_parts(function: Function, params: Any, parts: Any, *keys: jax.Array) -> Any:
    """Return the mean of `function` over equal parts of a batch [P, …], computed one after another."""
    function = jax.jit(function, inline=True)  # One trace serves `eval_shape` and `scan`.
    each = (parts, *keys)
    shapes = jax.eval_shape(function, params, *jax.tree.map(lambda x: x[0], each))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(params, *part)), None

    total, _ = jax.lax.scan(add, zeros, each)
    return jax.tree.map(lambda x: x / len(jax.tree.leaves(parts)[0]), total)
