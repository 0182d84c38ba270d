"""The devices that a step is compiled for: TPU topologies that need not be there, simulated CPU devices, local GPUs."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from train.process.errors import UserError

GIB = 2**30
FORMS = "v5e:2x2, v6e:4x8 (one chip: 1x1), v4:2x2x1, v5p:4x4x8 (one chip: 1x1x1), cpu:8 (simulated devices), gpu"


class Chip(NamedTuple):
    """One chip's limits. Google Cloud TPU documentation, system architecture, page of each generation; HBM: the part
    that the compiler lets a program use, by its own message about a program that is too large (libtpu 0.0.4x).
    """

    flops: float
    """Peak per second in bfloat16, which float32 products run in by default as well: XLA rounds their operands."""
    hbm: float
    """Bytes."""
    bandwidth: float
    """Bytes per second from and to HBM."""
    interconnect: float
    """Bytes per second that a chip sends over all its links to other chips of its slice."""
    pod: int
    """Chips of the largest slice."""
    dimensions: int
    """Of the grid that the chips stand in."""


CHIPS = {
    "v4": Chip(275e12, 30.75 * GIB, 1200e9, 300e9, 4096, 3),
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 256, 2),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 8960, 3),
    "v6e": Chip(918e12, 31.25 * GIB, 1638e9, 400e9, 256, 2),
}


@dataclass(frozen=True)
class Target:
    """What a step is compiled for."""

    name: str
    devices: Sequence[Any]
    slices: int = 1
    chip: Chip | None = None
    """None: its peak figures are not known here."""


def open_target(name: str, slices: int = 1) -> Target:
    """The devices of a topology such as v5e:2x2.

    Raises:
        UserError: if there is no such topology, or the library of its compiler is missing.
    """
    if slices < 1 or (slices > 1 and name.split(":")[0] not in CHIPS):
        raise UserError(f"--slices: wanted at least 1, and more than 1 of TPUs only, got {slices} of {name}")
    if name == "gpu":
        try:
            return Target(name, jax.devices("gpu"))
        except RuntimeError:
            raise UserError(
                'there is no GPU that JAX can use here; install its support by pip install -e ".[cuda]"'
            ) from None
    if simulated := re.fullmatch(r"cpu:([1-9]\d*)", name):
        return Target(name, _cpus(int(simulated[1])))
    generation, _, grid = name.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", grid):
        raise UserError(f"--topology: wanted one such as {FORMS}, got {name!r}")
    chip, sides = CHIPS[generation], [int(side) for side in grid.split("x")]
    if len(sides) != chip.dimensions:
        raise UserError(
            f"--topology: {generation} has {chip.dimensions} dimensions, got {name!r}; wanted one such as {FORMS}"
        )
    if math.prod(sides) > chip.pod:
        raise UserError(
            f"--topology: a slice of {generation} has at most {chip.pod} chips, got {math.prod(sides)}; "
            "wanted fewer, or several --slices"
        )
    return Target(name, _tpus(generation, grid, sides, slices), slices, chip)


def _cpus(count: int) -> Sequence[Any]:
    if getattr(jax.config, "jax_num_cpu_devices", -1) < count:
        with contextlib.suppress(RuntimeError):  # The devices of this process are chosen already: they have to do.
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology: this process simulates {len(devices)} CPU devices, got cpu:{count}")
    return devices[:count]


def _tpus(generation: str, grid: str, sides: list[int], slices: int) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('the TPU compiler (libtpu) is not installed; install it by pip install -e ".[tpu]"')
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    # A host has 2×2 chips of each plane, or one.
    options["chips_per_host_bounds"] = (1, 1, 1) if any(side % 2 for side in sides[:2]) else (2, 2, 1)
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # Its two cores as one device, as a program on it sees them.
    try:
        with quiet_stderr():
            topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{generation}:{grid}", **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology: {generation}:{grid} is none: {str(error).splitlines()[0]}") from error
    return topology.devices


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drops what C libraries write to stderr: libtpu looks for a TPU, and complains of every way that finds none."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
