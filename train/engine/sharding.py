"""Decides how parameters and batches are sharded, with one function from a parameter's path and shape.

The models contain no sharding code. The mesh has three axes:

- "data" replicates the parameters.
- "fsdp" shards large parameters.
- "tensor" shards attention heads and hidden widths.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
from flax import struct
from flax.core.meta import AxisMetadata
from jax.experimental import mesh_utils
from jax.lax import with_sharding_constraint
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from configs.base import Mesh
from train.process.errors import UserError
from train.task import leaf_name

# Parameters with fewer elements are replicated, because gathering them costs more than the memory that is saved.
FSDP_MIN_SIZE = 2**14

# The axis that "tensor" shards, counted from the end: attention heads, and hidden widths of MLPs and recurrent layers.
# In a chain of layers, the output is sharded in one layer and the input in the next. So only every second layer needs a
# sum over devices.
TENSOR_AXES = [
    (re.compile(r"attention/(query|key|value)/(kernel|bias)$"), -2),
    (re.compile(r"attention/out/kernel$"), -3),
    (re.compile(r"mlp/fc1/(kernel|bias)$"), -1),
    (re.compile(r"mlp/fc2/kernel$"), -2),
    (re.compile(r"(forward|backward)_\d+/(input|hidden)_(kernel|bias)$"), -1),
    (re.compile(r"(forward|backward)_\d+/projection_kernel$"), -2),
    (re.compile(r"(encoder|decoder|discriminator)/hidden_\d*[02468]/(kernel|bias)$"), -1),
    (re.compile(r"(encoder|decoder|discriminator)/hidden_\d*[13579]/kernel$"), -2),
]

# Layers stacked for a scan. The scan reads them one by one, so the depth axis is not sharded.
STACKED = re.compile(r"(^|/)blocks/")


def make_mesh(config: Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """Builds the mesh over `devices`, by default all devices of this run. TPU slices are placed along "data".

    Raises:
        UserError: if the sizes do not match the number of devices or slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    requested = ", ".join(f"--mesh.{name} {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
        raise UserError(
            f"mesh sizes must be positive, and one may be -1 (all remaining devices), got {requested}. "
            "Set each of them to a number of devices"
        )
    fixed = prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = max(len(devices) // fixed, 1)
    count = prod(sizes.values())
    if count > len(devices) or (free and count != len(devices)):
        rule = "divide" if free else "be at most"
        raise UserError(
            f"the product of the mesh sizes must {rule} the number of devices, {len(devices)}, got {requested}. "
            "Set smaller sizes, or use more devices. A CPU is split into devices by --mesh.cpu-devices"
        )
    shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(sizes)
    slices = {getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}
    if len(slices) < 2:
        processes = {device.process_index for device in devices}
        if count != len(devices) and len(processes) > 1:
            raise UserError(
                f"the mesh must use all {len(devices)} devices of the {len(processes)} processes, got {requested}. "
                "Set one of the sizes to -1"
            )
        return jax.make_mesh(shape, tuple(sizes), axis_types=types, devices=devices[:count])
    # The network between slices is slow, and data parallelism communicates least.
    if sizes["data"] % len(slices) or count != len(devices):
        raise UserError(
            f"--mesh.data must be a multiple of {len(slices)}, the number of slices, and the mesh must use all "
            f"{len(devices)} devices, got {requested}"
        )
    within = (sizes["data"] // len(slices), sizes["fsdp"], sizes["tensor"])
    grid = mesh_utils.create_hybrid_device_mesh(within, (len(slices), 1, 1), devices)
    return jax.sharding.Mesh(grid, tuple(sizes), axis_types=types)


def batch_parts(mesh: jax.sharding.Mesh) -> int:
    """Returns the number of shards of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of a batch: examples are split over the axes "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: jax.sharding.Mesh, shapes: PyTree) -> PyTree:
    """Returns a NamedSharding for each leaf.

    The path of an optimizer leaf ends with the path of its parameter, so both get the same sharding.
    """
    return jax.tree.map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition_spec(leaf_name(path), leaf.shape, mesh.shape)), shapes
    )


def partition_spec(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Returns the PartitionSpec of a parameter.

    - "tensor" shards the axis given in `TENSOR_AXES`, if its size is divisible.
    - "fsdp" shards the largest other axis whose size is divisible. Without such an axis, "fsdp" also shards the axis
      of "tensor", if divisible.
    - A parameter with no divisible axis is replicated.
    """
    axes: list[str | tuple[str, str] | None] = [None] * len(shape)
    depth = 1 if STACKED.search(name) else 0
    remaining = list(shape)  # size of each axis on one device
    for pattern, axis in TENSOR_AXES:
        if pattern.search(name) and sizes["tensor"] > 1 and shape[axis] % sizes["tensor"] == 0:
            axes[axis], remaining[axis] = "tensor", shape[axis] // sizes["tensor"]
    if sizes["fsdp"] > 1 and prod(shape[depth:]) >= FSDP_MIN_SIZE:
        divisible = [i for i in range(depth, len(shape)) if remaining[i] % sizes["fsdp"] == 0]
        if divisible:
            axis = max(divisible, key=lambda i: (axes[i] is None, remaining[i]))
            axes[axis] = "fsdp" if axes[axis] is None else ("tensor", "fsdp")
    return PartitionSpec(*axes)


def gathered_by_layer(params: PyTree) -> PyTree:
    """Returns `params` such that each layer's parameters are gathered over "fsdp" only when the layer reads them.

    So a device stores the full parameters of one layer at a time, and only a shard of the gradient. Without this, XLA
    would gather the examples instead. The mesh comes from the context (`jax.sharding.use_abstract_mesh`). `params` are
    unchanged if there is no mesh, or "fsdp" shards nothing.
    """
    sizes = jax.sharding.get_abstract_mesh().shape

    def box(path, leaf):
        spec = partition_spec(leaf_name(path), leaf.shape, sizes)
        return _Sharded(leaf, spec) if _without_fsdp(spec) != spec else leaf

    return jax.tree.map_with_path(box, params) if sizes.get("fsdp", 1) > 1 else params


@struct.dataclass
class _Sharded(AxisMetadata):
    """A parameter that Flax unboxes when a module reads it, inside the scan over layers and inside `remat`."""

    value: Array
    spec: PartitionSpec = struct.field(pytree_node=False)

    def unbox(self):
        return _gather(self.value, self.spec)

    def replace_boxed(self, val):
        return _Sharded(val, self.spec)

    def add_axis(self, index, params):
        return _Sharded(self.value, PartitionSpec(*self.spec[:index], None, *self.spec[index:]))

    def remove_axis(self, index, params):
        return _Sharded(self.value, PartitionSpec(*self.spec[:index], *self.spec[index + 1 :]))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x: Array, spec: PartitionSpec) -> Array:
    """Returns `x` gathered over "fsdp". The values are unchanged, and the gradient is sharded as in `spec`."""
    return _constrain(x, _without_fsdp(spec))


_gather.defvjp(lambda x, spec: (_gather(x, spec), None), lambda spec, _, gradient: (_constrain(gradient, spec),))


def _constrain(x: Array, spec: PartitionSpec) -> Array:
    return with_sharding_constraint(x, NamedSharding(jax.sharding.get_abstract_mesh(), spec))


def _without_fsdp(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*({"fsdp": None, ("tensor", "fsdp"): "tensor"}.get(axis, axis) for axis in spec))
