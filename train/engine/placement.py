"""What `--mesh.show` prints: where each parameter lies on the mesh, and how much memory the state takes there."""

from dataclasses import dataclass
from math import prod

import jax
from jax.sharding import PartitionSpec
from rich import box
from rich.console import Console
from rich.table import Table

from train.task import State, named_leaves


@dataclass(frozen=True)
class Placement:
    """A parameter on the mesh; layers that are stacked for a scan are one."""

    name: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes_here: int
    """Of the parameter, on one device."""
    state_bytes_here: int
    """Of the parameter and all that follows it (moments of optimizers, average), on one device."""
    state_bytes: int
    """The same over the whole parameter, as one device alone would hold it."""


def placements(shapes: State) -> tuple[list[Placement], Placement]:
    """(every parameter, all else in the state as one line), from shapes that have shardings."""
    leaves = named_leaves(shapes)
    owned: dict[str, list[jax.ShapeDtypeStruct]] = {
        name.removeprefix("params/"): [] for name in leaves if name.startswith("params/")
    }
    others = []
    for name, leaf in leaves.items():
        parts = name.split("/")
        endings = ("/".join(parts[i:]) for i in range(1, len(parts)))
        # What has the name of a parameter but another shape, such as a factored moment, is not its like.
        owner = next((e for e in endings if e in owned and leaves[f"params/{e}"].shape == leaf.shape), None)
        (others if owner is None else owned[owner]).append(leaf)
    rows = []
    for name, group in owned.items():
        leaf = leaves[f"params/{name}"]
        rows.append(Placement(name, leaf.shape, leaf.sharding.spec, _bytes_here([leaf]), *_sizes(group)))
    return rows, Placement("counters, statistics", (), PartitionSpec(), 0, *_sizes(others))


def show_placement(shapes: State) -> None:
    """Prints a row a parameter, and the totals: what one device holds, and what it would hold alone."""
    rows, rest = placements(shapes)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("parameter", overflow="fold", min_width=36)
    table.add_column("shape/cut by", no_wrap=True)
    for title in ("on a device", "with optimizer"):
        table.add_column(title, justify="right")
    for row in rows:
        sizes = (format_bytes(row.bytes_here), format_bytes(row.state_bytes_here))
        table.add_row(row.name, in_words(row.shape, row.spec), *sizes)
    table.add_row(rest.name, "", "", format_bytes(rest.state_bytes_here), end_section=True)
    every = [*rows, rest]
    parameters = sum(prod(row.shape) for row in rows)
    here, alone = sum(row.state_bytes_here for row in every), sum(row.state_bytes for row in every)
    table.add_row(
        f"{parameters:,} parameters", "", "", format_bytes(sum(r.bytes_here for r in rows)), format_bytes(here)
    )
    table.add_row("on one device alone", "", "", format_bytes(alone))
    Console(soft_wrap=True).print(table)


def in_words(shape: tuple[int, ...], spec: PartitionSpec) -> str:
    """A shape with the mesh axes that cut it: "192/fsdp×3/tensor×64"."""
    cuts = [axis if isinstance(axis, tuple) else (axis,) for axis in (*spec, *[None] * (len(shape) - len(spec)))]
    return "×".join("/".join([str(size), *filter(None, cut)]) for size, cut in zip(shape, cuts, strict=True))


def format_bytes(count: int) -> str:
    """Three digits or four, with a unit: 1536 -> "1.50 KiB"."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{count} B" if size == count else f"{size:.{max(0, 3 - len(str(int(size))))}f} {units[0]}"


def _sizes(leaves) -> tuple[int, int]:
    """(bytes on one device, bytes in all)."""
    return _bytes_here(leaves), sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _bytes_here(leaves) -> int:
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
