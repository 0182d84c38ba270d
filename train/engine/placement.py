"""Prints the table of `--mesh.show`: how each parameter is sharded, and the memory of the state on a device."""

from dataclasses import dataclass
from math import prod

import jax
from jax.sharding import PartitionSpec
from rich import box
from rich.console import Console
from rich.table import Table

from train.task import State, named_leaves
from w2jax.text import format_bytes


@dataclass(frozen=True)
class Placement:
    """How one parameter is sharded on the mesh. Layers that are stacked for a scan count as one parameter."""

    name: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    device_bytes: int
    """Size of the parameter on one device."""
    device_state_bytes: int
    """Size on one device of the parameter, its optimizer moments and its moving average."""
    total_state_bytes: int
    """`device_state_bytes` on a mesh of one device."""


def placements(shapes: State) -> tuple[list[Placement], Placement]:
    """Returns (a row for each parameter, one row for the rest of the state), from shapes with shardings."""
    leaves = named_leaves(shapes)
    leaves_of: dict[str, list[jax.ShapeDtypeStruct]] = {
        name.removeprefix("params/"): [] for name in leaves if name.startswith("params/")
    }
    others = []
    for name, leaf in leaves.items():
        parts = name.split("/")
        endings = ("/".join(parts[i:]) for i in range(1, len(parts)))
        # A leaf with a parameter's name but a different shape, such as a factored moment, has its own sharding.
        owner = next((e for e in endings if e in leaves_of and leaves[f"params/{e}"].shape == leaf.shape), None)
        (others if owner is None else leaves_of[owner]).append(leaf)
    rows = []
    for name, group in leaves_of.items():
        leaf = leaves[f"params/{name}"]
        rows.append(Placement(name, leaf.shape, leaf.sharding.spec, _device_bytes([leaf]), *_sizes(group)))
    return rows, Placement("counters, statistics", (), PartitionSpec(), 0, *_sizes(others))


def show_placement(shapes: State) -> None:
    """Prints a row for each parameter, and the total memory on one device, with and without sharding."""
    rows, rest = placements(shapes)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("parameter", overflow="fold", min_width=36)
    table.add_column("shape/axes", no_wrap=True)
    for title in ("per device", "with optimizer"):
        table.add_column(title, justify="right")
    for row in rows:
        sizes = (format_bytes(row.device_bytes), format_bytes(row.device_state_bytes))
        table.add_row(row.name, shape_with_axes(row.shape, row.spec), *sizes)
    table.add_row(rest.name, "", "", format_bytes(rest.device_state_bytes), end_section=True)
    all_rows = [*rows, rest]
    parameters = sum(prod(row.shape) for row in rows)
    sharded, unsharded = sum(row.device_state_bytes for row in all_rows), sum(row.total_state_bytes for row in all_rows)
    table.add_row(
        f"{parameters:,} parameters", "", "", format_bytes(sum(r.device_bytes for r in rows)), format_bytes(sharded)
    )
    table.add_row("without sharding", "", "", format_bytes(unsharded))
    Console(soft_wrap=True).print(table)


def shape_with_axes(shape: tuple[int, ...], spec: PartitionSpec) -> str:
    """Formats a shape with the mesh axes that shard each dimension, such as "192/fsdp×3/tensor×64"."""
    axes = [axis if isinstance(axis, tuple) else (axis,) for axis in (*spec, *[None] * (len(shape) - len(spec)))]
    return "×".join("/".join([str(size), *filter(None, names)]) for size, names in zip(shape, axes, strict=True))


def _sizes(leaves) -> tuple[int, int]:
    """Returns (bytes on one device of this mesh, bytes without sharding)."""
    return _device_bytes(leaves), sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _device_bytes(leaves) -> int:
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
