"""Counts the work of a compiled program on one device, from its HLO text.

XLA's `cost_analysis` counts the body of a loop only once. This module counts it once per iteration.

- FLOPs: matrix products and convolutions, 2 FLOPs per multiply-add. Products with padding do not count. Element-wise
  operations do not count, because they run in parallel with the matrix units.
- Bytes: what each kernel reads from and writes to main memory, including the padding of tiles. A fusion is one kernel.
  On-chip memory (memory space 1 of a TPU) does not count. A slice counts with its own size, and an in-place update with
  the bytes that it writes. Caches are not modeled, so each read counts.
- Collectives, by kind: their number, the bytes of the array, and the bytes that a device sends with the best
  algorithm. The array is the result for an all-gather, and the operand for all other kinds.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# The smallest fraction of the array that each of n devices must send.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
# These are not kernels: they only name, group or pass values.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "async-update", "opt-barrier", "optimization-barrier", "domain",
}  # fmt: skip
# Parts of an operation's name that are not modules.
_CONTROL = {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation"}
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    """Names of the operands; empty for a constant or parameter."""
    literal: str
    """The text in the parentheses."""
    attributes: str
    root: bool

    def called(self, role: str) -> list[str]:
        """Returns the computations in an attribute such as calls=%name or branch_computations={%a, %b}."""
        found = re.search(rf"\b{role}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return _NAME.findall(found[1]) if found else []


Computation = dict[str, Instruction]


@dataclass
class Collectives:
    """The collectives of one kind, on one device."""

    count: float = 0
    bytes: float = 0
    """Size of the arrays."""
    sent: float = 0
    """Smallest number of bytes that the device must send."""


@dataclass
class Counts:
    """The work of a computation."""

    flops: float = 0
    traffic: dict[str, float] = field(default_factory=dict)
    """Bytes by the part of the model that a kernel belongs to (see `part_of`)."""
    collectives: dict[str, Collectives] = field(default_factory=dict)
    unknown_loops: float = 0
    """Number of loops of unknown length. Their bodies count once."""

    @property
    def bytes(self) -> float:
        """The memory traffic of all parts."""
        return sum(self.traffic.values())

    def add(self, other: "Counts", times: int = 1) -> None:
        """Adds the work of `other`, `times` times."""
        self.flops += times * other.flops
        for part, size in other.traffic.items():
            self.add_traffic(part, times * size)
        self.unknown_loops += times * other.unknown_loops
        for kind, part in other.collectives.items():
            total = self.collectives.setdefault(kind, Collectives())
            total.count += times * part.count
            total.bytes += times * part.bytes
            total.sent += times * part.sent

    def add_traffic(self, part: str, size: float) -> None:
        """Adds bytes to a part of the model."""
        self.traffic[part] = self.traffic.get(part, 0.0) + size


def count(text: str, devices: int) -> Counts:
    """Returns the work of a program on each of its `devices`. `text` is `compiled.as_text()`."""
    counter = _Counter(text, devices)
    return counter.of(counter.entry, fused=False)


class _Counter:
    def __init__(self, text: str, devices: int):
        self.computations, self.entry = parse(text)
        self.devices = devices
        self.done: dict[tuple[str, bool], Counts] = {}

    def of(self, name: str, fused: bool) -> Counts:
        """Returns the work of a computation. Values inside a fusion stay in registers, without memory traffic."""
        if (name, fused) not in self.done:
            total, scope = Counts(), self.computations[name]
            started: set[str] = set()
            for instruction in scope.values():
                self._add(total, instruction, scope, fused)
                if not fused:
                    self._add_collectives(total, instruction, scope, name, started)
            self.done[name, fused] = total
        return self.done[name, fused]

    def _add(self, total: Counts, instruction: Instruction, scope: Computation, fused: bool) -> None:
        opcode = instruction.opcode
        if opcode == "while":
            times = self._trips(instruction)
            total.unknown_loops += times is None
            for role in ("body", "condition"):
                total.add(self.of(instruction.called(role)[0], fused), 1 if times is None else times)
        elif opcode == "conditional":
            roles = ("branch_computations", "true_computation", "false_computation")
            branches = [self.of(branch, fused) for role in roles for branch in instruction.called(role)]
            total.add(max(branches, key=lambda branch: (branch.flops, branch.bytes)))
        elif opcode in ("call", "async-start"):
            for inner in instruction.called("to_apply") + instruction.called("calls"):
                total.add(self.of(inner, fused))
        elif opcode == "fusion":
            total.add(self.of(instruction.called("calls")[0], fused=True))
        elif opcode == "dot":
            total.flops += dot_flops(instruction, scope)
        elif opcode == "convolution":
            total.flops += convolution_flops(instruction, scope)
        if not fused and opcode not in _FREE:
            total.add_traffic(part_of(instruction), self._traffic(instruction, scope))

    def _add_collectives(
        self, total: Counts, instruction: Instruction, scope: Computation, name: str, started: set[str]
    ) -> None:
        """Adds the work of a collective. For a fusion, adds the collectives inside it.

        A TPU may split one collective over several fusions, which also compute at the same time. All of them have the
        same channel. The channels in `started` are already counted.
        """
        kind = instruction.opcode.removesuffix("-start")
        if kind in _SENT:
            channel = re.search(r"channel_id=\d+", instruction.attributes)
            if channel is None or channel[0] not in started:
                total.add(self._collective(kind, instruction, scope, name))
            if channel is not None:
                started.add(channel[0])
        elif instruction.opcode == "fusion":
            (inner,) = instruction.called("calls")
            for part in self.computations[inner].values():
                self._add_collectives(total, part, self.computations[inner], inner, started)

    def _trips(self, loop: Instruction) -> int | None:
        """Returns the iterations of a loop: the compiler's count or the constant in its condition; None if unknown."""
        if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
            return int(known[1])
        constants = [x for x in self._all(loop.called("condition")[0]) if x.opcode == "constant"]
        whole = [int(x.literal) for x in constants if x.shape.startswith(("s", "u")) and x.literal.isdigit()]
        return max(whole, default=None)

    def _all(self, name: str) -> Iterator[Instruction]:
        for instruction in self.computations[name].values():
            yield instruction
            for inner in instruction.called("calls") + instruction.called("to_apply"):
                yield from self._all(inner)

    def _collective(self, kind: str, instruction: Instruction, scope: Computation, name: str) -> Counts:
        group = group_size(instruction.attributes, self.devices)
        size = sum(array.bytes for operand in instruction.operands for array in arrays(scope[operand].shape))
        size *= group if kind == "all-gather" else 1
        # On a TPU, a fusion with this name is a reduce-scatter: each device keeps its part of the sum.
        kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
        return Counts(collectives={kind: Collectives(1, size, _SENT[kind](group) * size)})

    def _traffic(self, instruction: Instruction, scope: Computation) -> float:
        """Returns the bytes that a kernel reads from and writes to main memory."""
        if instruction.opcode.endswith("-start") or 'custom_call_target="AllocateBuffer"' in instruction.attributes:
            return 0.0  # A transfer is counted at its end.
        if instruction.opcode.endswith("-done"):
            start = scope[instruction.operands[0]]
            moved = sum(array.bytes for array in arrays(instruction.shape))
            source = sum(main_memory(scope[name].shape) for name in start.operands)
            return min(moved, source) + main_memory(instruction.shape)
        if instruction.opcode == "fusion":
            inside = self.computations[instruction.called("calls")[0]]
            parameters = sorted((x for x in inside.values() if x.opcode == "parameter"), key=lambda x: int(x.literal))
            operands = [scope[name] for name in instruction.operands]
        else:  # Treated as a fusion of this one instruction.
            inside = {name: scope[name]._replace(opcode="parameter") for name in instruction.operands}
            parameters = operands = list(inside.values())
            inside |= {instruction.name: instruction._replace(root=True)}
        read = sum(
            min(bytes_read(parameter, inside, self.computations), main_memory(operand.shape))
            for parameter, operand in zip(parameters, operands, strict=True)
        )
        return read + bytes_written(instruction, inside)


class Array(NamedTuple):
    """An array in a device's memory."""

    dims: tuple[int, ...]
    bytes: float
    """Size, including the padding of its tiles."""
    main: bool
    """True in main memory, False in on-chip memory."""


def arrays(shape: str) -> list[Array]:
    """Returns the arrays of a shape such as f32[2,3]{1,0:T(8,128)S(1)}, or of a tuple of shapes."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        sizes = tuple(int(re.sub(r"\D", "", x)) for x in dims.split(",") if x)
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["0"])[0])
        space = re.search(r"S\((\d+)\)", layout)
        found.append(Array(sizes, padded(sizes, layout) * bits / 8, space is None or space[1] == "0"))
    return found


def main_memory(shape: str) -> float:
    """Returns the bytes of a shape's arrays in main memory."""
    return sum(array.bytes for array in arrays(shape) if array.main)


def padded(sizes: tuple[int, ...], layout: str) -> int:
    """Returns the number of elements of an array, including the padding of its tiles."""
    order, _, rest = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", rest)
    if not tile:
        return math.prod(sizes)
    slowest_first = [sizes[int(i)] for i in reversed(order.split(","))] if order else [1]
    edges = [int(edge) for edge in tile[1].split(",")]
    slowest_first = [1] * (len(edges) - len(slowest_first)) + slowest_first
    if math.prod(slowest_first[:-1]) == 1 and len(edges) == 1:
        return slowest_first[-1]  # The padding of vectors and scalars is negligible.
    tiled = [-(-size // edge) * edge for size, edge in zip(slowest_first[-len(edges) :], edges, strict=True)]
    return math.prod(slowest_first[: -len(edges)]) * math.prod(tiled)


def bytes_read(parameter: Instruction, inside: Computation, computations: dict[str, Computation]) -> float:
    """Returns the bytes that a fusion reads from one of its parameters."""
    total, whole = 0.0, sum(array.bytes for array in arrays(parameter.shape))
    for user in (x for x in inside.values() if parameter.name in x.operands):
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
            total += sum(array.bytes for array in arrays(user.shape))
        elif user.opcode == "tuple" or (user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name):
            continue  # Passed on or updated in place.
        elif user.opcode == "bitcast":
            total += bytes_read(user, inside, computations)
        elif user.opcode == "fusion":  # A fusion inside a fusion is part of the same kernel.
            inner = computations[user.called("calls")[0]]
            total += sum(
                bytes_read(x, inner, computations)
                for x in inner.values()
                if x.opcode == "parameter" and user.operands[int(x.literal)] == parameter.name
            )
        else:
            return whole
    return min(total, whole)


def bytes_written(instruction: Instruction, inside: Computation) -> float:
    """Returns the bytes that a kernel writes to main memory."""
    (root,) = (x for x in inside.values() if x.root)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    outer = arrays(instruction.shape)
    if len(results) != len(outer):  # One instruction with several results.
        return main_memory(instruction.shape)
    total = 0.0
    for result, array in zip(results, outer, strict=True):
        while result.opcode == "bitcast":
            result = inside[result.operands[0]]
        if result.opcode == "parameter":
            size = 0.0
        elif result.opcode == "dynamic-update-slice":
            size = sum(part.bytes for part in arrays(inside[result.operands[1]].shape))
        else:
            size = array.bytes
        total += size if array.main else 0.0
    return total


def part_of(instruction: Instruction) -> str:
    """Returns the path of the module that a kernel belongs to, and its direction: "encoder/block_*/mlp forward".

    The compiler keeps JAX's name of one of the operations in the kernel. A kernel without a name only moves data.
    """
    named = re.search(r'op_name="([^"]*)"', instruction.attributes)
    if named is None:
        return "copies"
    *path, _ = named[1].split("/")
    modules = [re.sub(r"_\d+$", "_*", name) for name in path if re.fullmatch(r"\w+", name) and name not in _CONTROL]
    if "jvp(" not in named[1]:
        return "/".join(modules) or "outside the model"
    direction = "backward" if "transpose(jvp(" in named[1] else "forward"
    return f"{'/'.join(modules) or 'model'} {direction}"


def dot_flops(instruction: Instruction, scope: Computation) -> int:
    """2 × (elements of the result) × (length of the contraction)."""
    left = arrays(scope[instruction.operands[0]].shape)[0].dims
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    length = math.prod(left[int(i)] for i in contracted[1].split(",") if i) if contracted else 1
    return 2 * math.prod(arrays(instruction.shape)[0].dims) * length


def convolution_flops(instruction: Instruction, scope: Computation) -> int:
    """2 × (products of an input element and a kernel element, without padding)."""
    left, kernel = (arrays(scope[name].shape)[0].dims for name in instruction.operands[:2])
    out = arrays(instruction.shape)[0].dims
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"a convolution without dim_labels: {instruction.name}")
    of_left, of_kernel, of_out = labels.groups()
    axes = [c for c in of_left if c.isdigit()]
    given = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    window = dict(part.split("=") for part in given[1].split()) if given else {}

    def per_axis(key: str, default: str) -> list[str]:
        return window[key].split("x") if key in window else [default] * len(axes)

    products = 1
    for i, axis in enumerate(sorted(axes)):
        low, _ = per_axis("pad", "0_0")[i].split("_")
        products *= _products_along_axis(
            size=left[of_left.index(axis)],
            kernel=kernel[of_kernel.index(axis)],
            out=out[of_out.index(axis)],
            stride=int(per_axis("stride", "1")[i]),
            low=int(low),
            input_dilation=int(per_axis("lhs_dilate", "1")[i]),
            kernel_dilation=int(per_axis("rhs_dilate", "1")[i]),
        )
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    batch = left[of_left.index("b")] // (int(groups[1]) if groups else 1)
    # The kernel has the input features of one group only.
    return 2 * products * batch * kernel[of_kernel.index("i")] * out[of_out.index("f")]


@lru_cache
def _products_along_axis(
    size: int, kernel: int, out: int, stride: int, low: int, input_dilation: int, kernel_dilation: int
) -> int:
    """Counts the pairs (output, kernel position) along one axis that read an input element, not padding or a gap."""
    at = np.arange(out)[:, None] * stride - low + np.arange(kernel) * kernel_dilation
    return int(np.sum((at >= 0) & (at <= (size - 1) * input_dilation) & (at % input_dilation == 0)))


def group_size(attributes: str, devices: int) -> int:
    """Returns the number of devices in each group of a collective, for every notation of groups in HLO."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(counted[1])
    # Named axes: the mesh, then its device order if that is not the default, then the axes that a group spans.
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\)\))?\s*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'?([\w]+)'?=(\d+)", mesh[1])}
        return math.prod(sizes[name] for name in re.findall(r"\w+", mesh[2]))
    return devices


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations of an HLO module by name, and the name of its entry computation."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0]
            entry = name if line.startswith("ENTRY ") else entry
            current = computations[name] = {}
        elif line.startswith("  ") and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    literal = rest[start + 1 : stop]
    name = left.removeprefix("ROOT ").lstrip("%")
    return Instruction(
        name, shape, rest[:start], _NAME.findall(literal), literal, rest[stop + 1 :], left.startswith("ROOT ")
    )


def _closing(text: str, start: int) -> int:
    """Returns the index of the closing parenthesis for the opening one at `start`."""
    depth = 0
    for at in re.finditer(r"[()]", text[start:]):
        depth += 1 if at[0] == "(" else -1
        if depth == 0:
            return start + at.start()
    raise ValueError(f"no closing parenthesis in {text[:80]}")
