"""The conversion engine: a table of rules that converts tensors to w2jax parameters and back.

Each rule has the name of a parameter or layer in the other library ("theirs") and its path in w2jax ("ours"). From the
rules and the shapes of our parameters, the engine derives the names and shapes of all tensors, the unexpected tensors,
and the conversion of the values in both directions.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain, islice
from math import prod
from typing import NamedTuple

import numpy as np
from einops import rearrange

from w2jax.convert.lazy_tensor import LazyTensor
from w2jax.text import nearest, shorten

Shape = tuple[int, ...]
# (our path, number of axes) -> (their name, einops pattern from their layout to ours, or "" for the same layout)
Layout = Callable[[str, int], tuple[str, str]]


class Rule(NamedTuple):
    """A rule of a conversion table: the name of a parameter or layer in another library, and its path in w2jax.

    `{i}` is the number of a layer. `{query,key,value}` in `ours` means that one tensor of the other library contains
    several of our parameters. In the pattern, they are the first axis on our side.
    """

    theirs: str  # Name of the parameter or layer in the other library.
    ours: str  # Path of the parameter or layer in w2jax.
    how: "str | Table" = ""  # einops pattern from theirs to ours, or a table for the parts; "": the format's layout


Table = tuple[Rule, ...]

_MAX_LINES = 200  # lines of an error message
_MAX_NEAR, _MAX_NAME = 500, 100  # limits of the search for a similar name: number of names, characters per name


class Pair(NamedTuple):
    """One tensor of the other library, and the w2jax parameters that it contains."""

    theirs: str  # Name of the tensor.
    ours: tuple[str, ...]  # Paths of our parameters; several are stacked along the first axis on our side.
    pattern: str  # einops pattern from theirs to ours; "": the same layout


def pairs(
    table: Table,
    leaves: Mapping[str, Shape],
    layout: Layout,
    separator: str = ".",
    keys: Collection[str] = (),
    marked: Mapping[str, Table] | None = None,
) -> list[Pair]:
    """Find the name and the layout of each of our parameters in the other library. The first matching rule is used.

    Args:
        table: the rules.
        leaves: shapes of our parameters, by path such as "encoder/block_0/norm1/scale".
        layout: names and patterns for rules without a pattern.
        separator: separator between the parts of their names.
        keys: existing names of the other library.
        marked: tables for layers that are recognized by one of their keys, for rules without a pattern.

    Returns:
        Pairs in the order of the rules. Parameters without a matching rule are not in any pair.
    """
    found: dict[str, Pair] = {}
    taken = set()
    inside: dict[str, dict[str, str]] = {}  # the parameters in each layer: path, and path relative to the layer
    for path in leaves:
        for top in (*_parents(path), path):
            inside.setdefault(top, {})[path] = path[len(top) :].strip("/")

    def add(pair: Pair) -> None:
        known = all(path in leaves and path not in found for path in pair.ours)
        if known and pair.theirs not in taken and len({leaves[path] for path in pair.ours}) == 1:
            taken.add(pair.theirs)
            found.update(dict.fromkeys(pair.ours, pair))

    for rule in flat(table, separator):
        for theirs, ours in instances(rule, leaves):
            if rule.how:
                add(Pair(theirs, ours, str(rule.how)))
                continue
            (top,) = ours
            below = inside.get(top, {})
            for marker, inner in (marked or {}).items():
                for parent in dict.fromkeys(parent for path in below.values() for parent in _parents(path)):
                    name = join(separator, theirs, parent.replace("/", separator))
                    if join(separator, name, marker) in keys:
                        for pair in pairs((Rule(name, join("/", top, parent), inner),), leaves, layout, separator):
                            add(pair)
            for path, rest in below.items():
                rank = len(leaves[path])
                name = layout(rest, rank)[0].replace(".", separator) if rest else ""
                add(Pair(join(separator, theirs, name), (path,), layout(path, rank)[1]))
    return list(dict.fromkeys(found.values()))


def join(separator: str, left: str, right: str) -> str:
    """Join two parts of a name, of which one may be empty."""
    return left + separator + right if left and right else left or right


def read(
    tensors: Mapping[str, LazyTensor],
    found: list[Pair],
    leaves: Mapping[str, Shape],
    sizes: Mapping[str, int],
    target: str,
) -> Iterator[tuple[str, np.ndarray]]:
    """Convert tensors to our parameters, one at a time: yield (path, copy of the values).

    Args:
        tensors: their tensors, by name.
        found: pairs for all of `leaves`.
        leaves: shapes of our parameters.
        sizes: sizes of axes that neither shape determines.
        target: description of the module, for the error message.

    Raises:
        ValueError: a tensor is missing, unexpected or has a wrong shape. All of them are listed, before any is read.
    """
    check(tensors, found, leaves, sizes, target)

    def values() -> Iterator[tuple[str, np.ndarray]]:
        for pair in found:
            array = tensors[pair.theirs].read()
            if pair.pattern:
                array = rearrange(array, pair.pattern, **_needed(pair, 0, leaves, sizes))
            for path, value in zip(pair.ours, array if len(pair.ours) > 1 else [array], strict=True):
                yield path, np.array(value, order="C")

    return values()


def write(
    arrays: Mapping[str, LazyTensor], found: list[Pair], leaves: Mapping[str, Shape], sizes: Mapping[str, int]
) -> dict[str, LazyTensor]:
    """Convert our parameters to their tensors, by name. Each tensor is computed when it is read."""

    def tensor(pair: Pair) -> LazyTensor:
        dtype = np.result_type(*(arrays[path].dtype for path in pair.ours))

        def value() -> np.ndarray:
            ours = [arrays[path].read().astype(dtype, copy=False) for path in pair.ours]
            array = np.stack(ours) if len(ours) > 1 else ours[0]
            if not pair.pattern:
                return array
            theirs, our_side = pair.pattern.split("->")
            return rearrange(array, f"{our_side}->{theirs}", **_needed(pair, 1, leaves, sizes))

        return LazyTensor(their_shape(pair, leaves, sizes), dtype, value)

    return {pair.theirs: tensor(pair) for pair in found}


def check(
    tensors: Mapping[str, LazyTensor],
    found: list[Pair],
    leaves: Mapping[str, Shape],
    sizes: Mapping[str, int],
    target: str,
) -> None:
    """Raise a ValueError that lists every missing or unexpected tensor and every wrong shape, with similar names."""
    expected = {pair.theirs: their_shape(pair, leaves, sizes) for pair in found}
    missing, left = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    unnamed = sorted(leaves.keys() - {path for pair in found for path in pair.ours})

    def near(name: str, others: Collection[str]) -> str:
        few = islice((other for other in others if len(other) <= _MAX_NAME >= len(name)), _MAX_NEAR)
        close = nearest(name, few)
        return f" (similar: {close[0]})" if close else ""

    ours = {pair.theirs: ", ".join(pair.ours) for pair in found}
    wrong = [key for key in expected if key not in missing and tensors[key].shape != expected[key]]
    lines = chain(
        (f"missing     {key} {expected[key]}, for {ours[key]}{near(key, left)}" for key in expected if key in missing),
        (f"unexpected  {shorten(key)} {tensors[key].shape}{near(key, missing)}" for key in tensors if key in left),
        (f"wrong shape {key} must be {expected[key]}, got {tensors[key].shape}, for {ours[key]}" for key in wrong),
        (f"no rule for {path} {leaves[path]}" for path in unnamed),
    )
    shown = list(islice(lines, _MAX_LINES))
    more = len(missing) + len(left) + len(wrong) + len(unnamed) - len(shown)
    if shown:
        lines = [*shown, f"and {more} more"] if more else shown
        raise ValueError(f"the tensors do not match the parameters of {target}:\n  " + "\n  ".join(lines))


def their_shape(pair: Pair, leaves: Mapping[str, Shape], sizes: Mapping[str, int]) -> Shape:
    """Compute the shape of their tensor from the shape of our parameter.

    Raises:
        ValueError: the pattern does not fit our shape, or does not determine a size.
    """
    if not pair.pattern:
        return leaves[pair.ours[0]]
    axes = _axes_of_ours(pair, leaves, sizes)
    unknown = {name for group in groups(pair.pattern.split("->")[0]) for name in group} - axes.keys()
    if unknown:
        ours = f"{', '.join(pair.ours)} {leaves[pair.ours[0]]}"
        raise ValueError(
            f'the pattern "{pair.pattern}" must determine the sizes of all axes for {ours}, '
            f"but {', '.join(sorted(unknown))} is unknown"
        )
    return tuple(prod(axes[name] for name in group) for group in groups(pair.pattern.split("->")[0]))


def our_size(pair: Pair, shape: Shape, axis: int) -> int:
    """Compute the size of one axis of our parameter from the shape of their tensor; 0 if it is not determined."""
    if not pair.pattern:
        return shape[axis] if axis < len(shape) else 0
    theirs, ours = pair.pattern.split("->")
    sizes = axis_sizes(theirs, shape, {})
    names = groups(ours)[axis + (len(pair.ours) > 1)]
    return prod(sizes.get(name, 0) for name in names)


def axis_sizes(side: str, shape: Shape, known: Mapping[str, int]) -> dict[str, int]:
    """Compute the sizes of the axes on one side of a pattern; {} if `shape` has another number of axes."""
    parts = groups(side)
    sizes: dict[str, int] = {}
    if len(parts) != len(shape):
        return sizes
    for group, size in zip(parts, shape, strict=True):
        unknown = [name for name in group if name not in known]
        sizes |= {name: known[name] for name in group if name in known}
        if len(unknown) == 1:
            sizes[unknown[0]] = size // max(prod(known[name] for name in group if name in known), 1)
    return sizes


def _axes_of_ours(pair: Pair, leaves: Mapping[str, Shape], sizes: Mapping[str, int]) -> dict[str, int]:
    shape = leaves[pair.ours[0]]
    return axis_sizes(pair.pattern.split("->")[1], (len(pair.ours), *shape) if len(pair.ours) > 1 else shape, sizes)


def _needed(pair: Pair, side: int, leaves: Mapping[str, Shape], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes that einops needs to split the groups on one side of the pattern (0: theirs, 1: ours)."""
    named = {name for group in groups(pair.pattern.split("->")[side]) if len(group) > 1 for name in group}
    return {name: size for name, size in _axes_of_ours(pair, leaves, sizes).items() if name in named}


def groups(side: str) -> list[list[str]]:
    """Return the axis names of one side of a pattern: "(h k) i" is [["h", "k"], ["i"]], and "1" is [[]]."""
    return [[name for name in group.strip("()").split() if name != "1"] for group in re.findall(r"\([^)]*\)|\S+", side)]


def flat(table: Table, separator: str, theirs: str = "", ours: str = "") -> Iterator[Rule]:
    """Yield the rules of a table and of its inner tables, with full names."""
    for rule in table:
        names = join(separator, theirs, rule.theirs), join("/", ours, rule.ours)
        if isinstance(rule.how, str):
            yield Rule(*names, rule.how)
        else:
            yield from flat(rule.how, separator, *names)


def instances(rule: Rule, leaves: Mapping[str, Shape]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (their name, our paths) for each layer number in our parameters."""
    alternatives = _alternatives(rule.ours)
    expression = re.escape(alternatives[0]).replace(re.escape("{i}"), r"(?P<i>\d+)", 1)
    matcher = re.compile(expression + r"(?:/.*)?" if alternatives[0] else r".*")
    numbers = {}
    for path in leaves:
        if match := matcher.fullmatch(path):
            numbers[match.groupdict().get("i")] = None
    for number in numbers:
        names = [name.replace("{i}", number or "") for name in (rule.theirs, *alternatives)]
        yield names[0], tuple(names[1:])


def _alternatives(path: str) -> list[str]:
    """Expand braces: return ["a/b", "a/c"] for "a/{b,c}"."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", path)
    if not match:
        return [path]
    return [path[: match.start()] + name + path[match.end() :] for name in match[1].split(",")]


def _parents(path: str) -> list[str]:
    """Return all parents of a path: ["", "a", "a/b"] for "a/b/c"."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts))]
