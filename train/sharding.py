"""Where parameters and batches lie: one rule from a parameter's path and shape to a PartitionSpec.

Models know nothing of this. Axes: "data" copies the parameters, "fsdp" cuts large ones, "tensor" cuts heads and widths.
"""

import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from configs.base import Mesh
from train.errors import UserError

# Smaller parameters are copied: to gather one costs more than the memory it saves.
FSDP_MIN_SIZE = 2**14

# The axis, counted from the end, that "tensor" cuts: attention heads, and hidden widths of MLPs and LSTMs.
TENSOR_AXES = [
    (re.compile(r"attention/(query|key|value)/(kernel|bias)$"), -2),
    (re.compile(r"attention/out/kernel$"), -3),
    (re.compile(r"mlp/fc1/(kernel|bias)$"), -1),
    (re.compile(r"mlp/fc2/kernel$"), -2),
    (re.compile(r"(forward|backward)_\d+/(input|hidden)_(kernel|bias)$"), -1),
    (re.compile(r"(forward|backward)_\d+/projection_kernel$"), -2),
    (re.compile(r"(encoder|decoder|discriminator)/hidden_0/(kernel|bias)$"), -1),
    (re.compile(r"(encoder|decoder|discriminator)/hidden_1/kernel$"), -2),
]


def make_mesh(config: Mesh) -> jax.sharding.Mesh:
    """The mesh over this run's devices.

    Raises:
        UserError: if the sizes do not fit the number of devices.
    """
    devices = jax.devices()
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    wanted = ", ".join(f"--mesh.{name} {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
        raise UserError(f"mesh sizes are positive, and one of them may be -1 (the devices left), got {wanted}")
    given = int(np.prod([size for size in sizes.values() if size != -1]))
    if free:
        sizes[free[0]] = max(len(devices) // given, 1)
    count = int(np.prod(list(sizes.values())))
    if count > len(devices) or (free and count != len(devices)):
        raise UserError(f"the mesh does not fit the {len(devices)} device(s) here, got {wanted}")
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices[:count]
    )


def batch_parts(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Examples lie over "data" and "fsdp" together."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: jax.sharding.Mesh, shapes: PyTree) -> PyTree:
    """A NamedSharding for each leaf; optimizer state follows its parameter, whose path its own path ends with."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh.shape))

    return jax.tree.map_with_path(place, shapes)


def partition_spec(name: str, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """The rule: "tensor" by the table above where it divides, "fsdp" on the largest other axis that it divides."""
    axes: list[str | None] = [None] * len(shape)
    for pattern, axis in TENSOR_AXES:
        if pattern.search(name) and sizes["tensor"] > 1 and shape[axis] % sizes["tensor"] == 0:
            axes[axis] = "tensor"
    if sizes["fsdp"] > 1 and np.prod(shape) >= FSDP_MIN_SIZE:
        divisible = [i for i, size in enumerate(shape) if axes[i] is None and size % sizes["fsdp"] == 0]
        if divisible:
            axes[max(divisible, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)
