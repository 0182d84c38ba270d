"""The devices that a step is compiled for: TPU topologies (no TPU needed), simulated CPU devices, or local GPUs."""

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
FORMS = (
    "v5e:2x2, v6e:4x8 (one chip: 1x1), v4:2x2x1, v5p:4x4x8, v7x:2x2x1 (one chip: 1x1x1), cpu:8 (simulated devices), gpu"
)


class Chip(NamedTuple):
    """The limits of a JAX device, from the system architecture pages of Google Cloud's TPU documentation.

    A device is a chip. Only on v7x it is half a chip, because JAX has a device for each of the two chiplets.
    """

    flops: float
    """Peak FLOP/s in bfloat16. Float32 products reach it too: by default XLA rounds their operands to bfloat16."""
    hbm: float
    """Bytes that the compiler allows a program, from its out-of-memory message (libtpu 0.0.4x)."""
    bandwidth: float
    """Bytes per second to and from HBM."""
    interconnect: float
    """Bytes per second that the device can send over all its links to other chips of the slice."""
    pod: int
    """Number of chips in the largest slice."""
    dimensions: int
    """Dimensions of the grid of chips."""


CHIPS = {
    "v4": Chip(275e12, 30.75 * GIB, 1200e9, 300e9, 4096, 3),
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 256, 2),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 8960, 3),
    "v6e": Chip(918e12, 31.25 * GIB, 1638e9, 400e9, 256, 2),
    "v7x": Chip(2307e12 / 2, 94.75 * GIB, 7380e9 / 2, 600e9 / 2, 9216, 3),
}
COMPILER_NAMES = {"v7x": "tpu7x"}  # where the compiler's name of a generation differs from ours


@dataclass(frozen=True)
class Target:
    """The devices that a step is compiled for."""

    name: str
    devices: Sequence[Any]
    slices: int = 1
    chip: Chip | None = None
    """None if the device is not a TPU: its peak figures are unknown."""


def open_target(name: str, slices: int = 1) -> Target:
    """Returns the devices of a topology such as v5e:2x2.

    Raises:
        UserError: if the topology does not exist, or its compiler is not installed.
    """
    if slices < 1 or (slices > 1 and name.split(":")[0] not in CHIPS):
        raise UserError(f"--slices must be at least 1 for a TPU, and 1 for other devices, got {slices} for {name}")
    if name == "gpu":
        try:
            return Target(name, jax.devices("gpu"))
        except RuntimeError:
            raise UserError(
                '--topology gpu needs a GPU, but JAX finds none. Install GPU support: pip install -e ".[cuda]"'
            ) from None
    if simulated := re.fullmatch(r"cpu:([1-9]\d*)", name):
        return Target(name, _cpus(int(simulated[1])))
    generation, _, grid = name.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", grid):
        raise UserError(f"--topology must have a form such as {FORMS}, got {name!r}")
    chip, sides = CHIPS[generation], [int(side) for side in grid.split("x")]
    if len(sides) != chip.dimensions:
        raise UserError(
            f"--topology must have {chip.dimensions} dimensions for {generation}, got {name!r}. Try one of {FORMS}"
        )
    if math.prod(sides) > chip.pod:
        raise UserError(
            f"--topology must have at most {chip.pod} chips in a slice of {generation}, got {math.prod(sides)}. "
            "Use fewer chips, or several --slices"
        )
    return Target(name, _tpus(generation, grid, sides, slices), slices, chip)


def _cpus(count: int) -> Sequence[Any]:
    if getattr(jax.config, "jax_num_cpu_devices", -1) < count:
        with contextlib.suppress(RuntimeError):  # JAX has already started. Its devices stay unchanged.
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology must be at most cpu:{len(devices)} in this process, got cpu:{count}")
    return devices[:count]


def _tpus(generation: str, grid: str, sides: list[int], slices: int) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {generation}:{grid} needs the TPU compiler (libtpu), which is not installed. "
            'Run: pip install -e ".[tpu]"'
        )
    from jax.experimental import topologies

    name = f"{COMPILER_NAMES.get(generation, generation)}:{grid}"
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    # A host has one chip, or 2×2 chips of a plane.
    options["chips_per_host_bounds"] = (1, 1, 1) if any(side % 2 for side in sides[:2]) else (2, 2, 1)
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # The two cores of a chip count as one device.
    # libtpu lets only one process use the TPUs of a machine. The compiler uses none, so several may run at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        with quiet_stderr():
            topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology: {generation}:{grid} is not a valid TPU topology ({str(error).splitlines()[0]})"
        ) from error
    return topology.devices


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discards what C libraries write to stderr. libtpu prints a message for each failed way to find a TPU."""
    saved_stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved_stderr, 2)
        os.close(saved_stderr)
