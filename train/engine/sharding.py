"""Where parameters and batches lie: one rule from a parameter's path and shape to a PartitionSpec.

Models know nothing of this. Axes: "data" copies the parameters, "fsdp" cuts large ones, "tensor" cuts heads and widths.
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

# Smaller parameters are copied: to gather one costs more than the memory it saves.
FSDP_MIN_SIZE = 2**14

# The axis, counted from the end, that "tensor" cuts: attention heads, and hidden widths of MLPs and recurrent layers.
# Layers of a chain take turns at cutting what they put out and what they take in, so that every other one is summed.
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

# Layers stacked for a scan, which reads them one by one: their depth is not cut.
STACKED = re.compile(r"(^|/)blocks/")


def make_mesh(config: Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices`, by default all that this run has; slices of TPUs lie along "data".

    Raises:
        UserError: if the sizes do not fit the number of devices, or of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    requested = ", ".join(f"--mesh.{name} {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
        raise UserError(f"mesh sizes are positive, and one of them may be -1 (the devices left), got {requested}")
    fixed = prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = max(len(devices) // fixed, 1)
    count = prod(sizes.values())
    if count > len(devices) or (free and count != len(devices)):
        raise UserError(f"the mesh does not fit the {len(devices)} device(s) here, got {requested}")
    shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(sizes)
    slices = {getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}
    if len(slices) < 2:
        processes = {device.process_index for device in devices}
        if count != len(devices) and len(processes) > 1:
            raise UserError(
                f"{len(processes)} processes need a mesh of all their {len(devices)} devices, got {requested}"
            )
        return jax.make_mesh(shape, tuple(sizes), axis_types=types, devices=devices[:count])
    # The network between slices is slow, and copies of the model exchange least.
    if sizes["data"] % len(slices) or count != len(devices):
        raise UserError(
            f"{len(devices)} devices in {len(slices)} slices need --mesh.data to be a multiple of {len(slices)}, and "
            f"a mesh of all of them, got {requested}"
        )
    within = (sizes["data"] // len(slices), sizes["fsdp"], sizes["tensor"])
    grid = mesh_utils.create_hybrid_device_mesh(within, (len(slices), 1, 1), devices)
    return jax.sharding.Mesh(grid, tuple(sizes), axis_types=types)


def batch_parts(mesh: jax.sharding.Mesh) -> int:
    """Into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Examples lie over "data" and "fsdp" together."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: jax.sharding.Mesh, shapes: PyTree) -> PyTree:
    """A NamedSharding for each leaf; optimizer state follows its parameter, whose path its own path ends with."""
    return jax.tree.map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition_spec(leaf_name(path), leaf.shape, mesh.shape)), shapes
    )


def partition_spec(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """The rule: "tensor" by the table above where it divides, "fsdp" on the largest other axis that it divides.

    Where it divides no other, "fsdp" cuts once more what "tensor" cut. What nothing divides is copied.
    """
    axes: list[str | tuple[str, str] | None] = [None] * len(shape)
    depth = 1 if STACKED.search(name) else 0
    remaining = list(shape)  # of each axis, on one device
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
    """`params` to apply a module with: each layer's are gathered over "fsdp" where it reads them, no earlier.

    So a device holds the whole of one layer at a time, and of its gradient again only a part. Left to itself, XLA would
    rather gather the examples. Takes the mesh from the context (`jax.sharding.use_abstract_mesh`); returns `params` as
    they are without one, or where "fsdp" cuts nothing.
    """
    sizes = jax.sharding.get_abstract_mesh().shape

    def box(path, leaf):
        spec = partition_spec(leaf_name(path), leaf.shape, sizes)
        return _Sharded(leaf, spec) if _without_fsdp(spec) != spec else leaf

    return jax.tree.map_with_path(box, params) if sizes.get("fsdp", 1) > 1 else params


@struct.dataclass
class _Sharded(AxisMetadata):
    """A parameter that Flax unboxes where a module reads it, inside the scan over layers and what is rematerialised."""

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
    """The identity; its result is whole along "fsdp", its gradient cut as `spec` says."""
    return _constrain(x, _without_fsdp(spec))


_gather.defvjp(lambda x, spec: (_gather(x, spec), None), lambda spec, _, gradient: (_constrain(gradient, spec),))


def _constrain(x: Array, spec: PartitionSpec) -> Array:
    return with_sharding_constraint(x, NamedSharding(jax.sharding.get_abstract_mesh(), spec))


def _without_fsdp(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*({"fsdp": None, ("tensor", "fsdp"): "tensor"}.get(axis, axis) for axis in spec))
