"""The engine: a conversion is a table, read forwards into our parameters and backwards out of them.

Each row has their name and our path of the same parameter or layer. Everything else follows from the rows and from the
shapes of our parameters: which keys must exist, with which shapes, which are left over, and both directions of the
values.
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
# (our path, its rank) -> (their name for its last parts, einops pattern from theirs to ours or "" for the same)
Layout = Callable[[str, int], tuple[str, str]]


class Rule(NamedTuple):
    """One row: a parameter, or a layer with everything in it, by their name and by our path.

    `{i}` is the number of a layer. `{query,key,value}` in `ours` means several of our parameters that are one of
    theirs; they are the first axis on our side of the pattern.
    """

    theirs: str  # their name
    ours: str  # our path
    how: "str | Table" = ""  # einops pattern from theirs to ours; a table of the parts; "": their library's layout


Table = tuple[Rule, ...]

_MAX_LINES = 200  # of an error
_MAX_NEAR, _MAX_NAME = 500, 100  # names, and characters of each, that are searched for the nearest


class Pair(NamedTuple):
    """One parameter of theirs, and ours that it becomes."""

    theirs: str  # its name
    ours: tuple[str, ...]  # several: stacked along the first axis of our side of the pattern
    pattern: str  # of einops, from theirs to ours


def pairs(
    table: Table,
    leaves: Mapping[str, Shape],
    layout: Layout,
    separator: str = ".",
    keys: Collection[str] = (),
    marked: Mapping[str, Table] | None = None,
) -> list[Pair]:
    """The name and the layout of each of our parameters in their library; the first row that fits wins.

    Args:
        table: the rows.
        leaves: our parameters, shape by path such as "encoder/block_0/norm1/scale".
        layout: names and patterns for rows that have none.
        separator: between the parts of their names.
        keys: their names that exist.
        marked: tables of layers that are recognised by a key in them, for rows that have no pattern.

    Returns:
        Pairs in the order of the rows. Parameters that no row names are in none.
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
    """A name of two parts, of which one may be empty."""
    return left + separator + right if left and right else left or right


def read(
    tensors: Mapping[str, LazyTensor],
    found: list[Pair],
    leaves: Mapping[str, Shape],
    sizes: Mapping[str, int],
    target: str,
) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters by path, one after the other, each a copy.

    Args:
        tensors: theirs by name.
        found: the pairs of all of `leaves`.
        leaves: shapes of ours.
        sizes: axes that neither side's shape determines.
        target: what they are converted into, for the error.

    Raises:
        ValueError: before the first, if a tensor is missing, left over or of another shape: all of them are listed.
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
    """Theirs by name, each computed when it is read."""

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
    """ValueError that lists every tensor that is missing, left over or of another shape, with the nearest name."""
    expected = {pair.theirs: their_shape(pair, leaves, sizes) for pair in found}
    missing, left = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    unnamed = sorted(leaves.keys() - {path for pair in found for path in pair.ours})

    def near(name: str, others: Collection[str]) -> str:
        few = islice((other for other in others if len(other) <= _MAX_NAME >= len(name)), _MAX_NEAR)
        close = nearest(name, few)
        return f" (nearest here: {close[0]})" if close else ""

    ours = {pair.theirs: ", ".join(pair.ours) for pair in found}
    wrong = [key for key in expected if key not in missing and tensors[key].shape != expected[key]]
    lines = chain(
        (f"missing     {key} {expected[key]}, for {ours[key]}{near(key, left)}" for key in expected if key in missing),
        (f"left over   {shorten(key)} {tensors[key].shape}{near(key, missing)}" for key in tensors if key in left),
        (f"wrong shape {key} must be {expected[key]}, got {tensors[key].shape}, for {ours[key]}" for key in wrong),
        (f"not named   {path} {leaves[path]}" for path in unnamed),
    )
    shown = list(islice(lines, _MAX_LINES))
    more = len(missing) + len(left) + len(wrong) + len(unnamed) - len(shown)
    if shown:
        lines = [*shown, f"and {more} more"] if more else shown
        raise ValueError(f"the tensors are not those of {target}:\n  " + "\n  ".join(lines))


def their_shape(pair: Pair, leaves: Mapping[str, Shape], sizes: Mapping[str, int]) -> Shape:
    """The shape that theirs has, given ours.

    Raises:
        ValueError: if the pattern does not fit our shape, or does not determine a size.
    """
    if not pair.pattern:
        return leaves[pair.ours[0]]
    axes = _axes_of_ours(pair, leaves, sizes)
    unknown = {name for group in groups(pair.pattern.split("->")[0]) for name in group} - axes.keys()
    if unknown:
        ours = f"{', '.join(pair.ours)} {leaves[pair.ours[0]]}"
        raise ValueError(
            f'the pattern "{pair.pattern}" does not determine the size of {", ".join(sorted(unknown))} for {ours}'
        )
    return tuple(prod(axes[name] for name in group) for group in groups(pair.pattern.split("->")[0]))


def our_size(pair: Pair, shape: Shape, axis: int) -> int:
    """The size of one axis of ours, 0 if the shape of theirs does not determine it."""
    if not pair.pattern:
        return shape[axis] if axis < len(shape) else 0
    theirs, ours = pair.pattern.split("->")
    sizes = axis_sizes(theirs, shape, {})
    names = groups(ours)[axis + (len(pair.ours) > 1)]
    return prod(sizes.get(name, 0) for name in names)


def axis_sizes(side: str, shape: Shape, known: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the axes in one side of a pattern, from `shape` and known sizes; {} if the ranks differ."""
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
    """The sizes that einops needs to split that side of the pattern."""
    named = {name for group in groups(pair.pattern.split("->")[side]) if len(group) > 1 for name in group}
    return {name: size for name, size in _axes_of_ours(pair, leaves, sizes).items() if name in named}


def groups(side: str) -> list[list[str]]:
    """Axes of one side of a pattern: "(h k) i" is [["h", "k"], ["i"]], and "1" is []."""
    return [[name for name in group.strip("()").split() if name != "1"] for group in re.findall(r"\([^)]*\)|\S+", side)]


def flat(table: Table, separator: str, theirs: str = "", ours: str = "") -> Iterator[Rule]:
    """The rows of a table and of the tables inside it, with full names."""
    for rule in table:
        names = join(separator, theirs, rule.theirs), join("/", ours, rule.ours)
        if isinstance(rule.how, str):
            yield Rule(*names, rule.how)
        else:
            yield from flat(rule.how, separator, *names)


def instances(rule: Rule, leaves: Mapping[str, Shape]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Their name and our paths, once for each layer number that our parameters have."""
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
    """["a/b", "a/c"] of "a/{b,c}"."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", path)
    if not match:
        return [path]
    return [path[: match.start()] + name + path[match.end() :] for name in match[1].split(",")]


def _parents(path: str) -> list[str]:
    """["", "a", "a/b"] of "a/b/c"."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts))]
