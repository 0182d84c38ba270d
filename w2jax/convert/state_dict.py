"""Between our variables and named tensors of another library, in memory."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import chain
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from w2jax.convert import vit_tables as vit
from w2jax.convert.layouts import Format, torch_layout
from w2jax.convert.lazy_tensor import LazyTensor, from_arrays
from w2jax.convert.rules import Pair, Rule, Shape, Table, flat, groups, instances, our_size, read, write
from w2jax.convert.schema import Leaf, Size, assemble, example_inputs, module_leaves, take_apart
from w2jax.convert.torch_modules import torch_formats
from w2jax.vit import ViT

Rename = Mapping[str, str | tuple[str, str | Table]]
Head = Literal["drop", "reinit"] | None


def from_torch(
    module: nn.Module, state_dict: Mapping[str, Any], rename: Rename | None = None, head: Head = None
) -> dict[str, Any]:
    """Variables of `module` from the parameters of another library's model.

    Args:
        module: one of ours. A ViT takes the names of timm, Hugging Face, torchvision and Google; LSTM, GRU, RNN,
            MultiHeadAttention and Transformer those of torch.nn; AAEEncoder, AAEDecoder and AAEDiscriminator those of a
            `torch.nn.Sequential`. Every module takes its own paths too, as "head.weight" for the path "head/kernel".
        state_dict: torch tensors, numpy or jax arrays by name. Their dtypes are kept.
        rename: the user's own names. A key is a parameter's or a layer's name in `state_dict`, with `{i}` for the
            number of a layer; its value is our path, such as "encoder/block_{i}/norm1", or that and how one becomes
            the other: an einops pattern from theirs to ours. Without a pattern things lie as torch.nn has them. The
            first row that names a parameter counts, so a part of a layer comes before the layer.
        head: what becomes of the classifier: None, it must fit; "drop", theirs is left out, for a module with
            `num_classes=0`; "reinit", ours is new, as `init` makes it.

    Returns:
        {"params": …}, and {"batch_stats": …} where the module has them.

    Raises:
        ValueError: if a tensor is missing, left over, or of another shape, all of them listed up to 200; if one is
            float64 and JAX would round it; or if a name of `rename` is none of ours.
    """
    return read_variables(module, from_arrays(state_dict), rename, head)


def to_torch(
    module: nn.Module, variables: Mapping[str, Any], format: str | None = None, rename: Rename | None = None
) -> dict[str, np.ndarray]:
    """The parameters of `module` under another library's names, as numpy arrays: `from_torch` backwards.

    Args:
        module: one of ours.
        variables: its variables.
        format: of a ViT "timm" (when None), "huggingface", "torchvision", "google", or one of their variants (see
            `w2jax.convert.vit_tables.FORMATS`); "torch" of any module.
        rename: as in `from_torch`. An attention layer has a name each for query, key and value, unless a row with
            `{query,key,value}` says that they are one.

    Raises:
        ValueError: if there is no such format, it cannot express the module, or the variables are not the module's.
    """
    tensors = write_tensors(module, variables, format, rename)
    return {name: np.array(tensor.read(), order="C") for name, tensor in tensors.items()}


def read_variables(
    module: nn.Module, tensors: Mapping[str, LazyTensor], rename: Rename | None = None, head: Head = None
) -> dict[str, Any]:
    """`from_torch` of tensors that are read one after the other."""
    module, table = _without_parents(module), _rows(module, rename)
    form, found = _closest(_formats(module, tensors), module, tensors, table)
    by_path = {path: pair for pair in found for path in pair.ours}

    def size(path: str, axis: int, otherwise: int) -> int:
        pair = by_path.get(path)
        tensor = None if pair is None else tensors.get(pair.theirs)
        # Nothing can be traced from a broken tensor's 0; that it is broken is said with all else.
        return otherwise if pair is None or tensor is None else our_size(pair, tensor.shape, axis) or otherwise

    leaves = module_leaves(module, size)
    values: Iterable[tuple[str, np.ndarray]] = ()
    wanted = leaves
    if head is not None:
        wanted = {path: leaf for path, leaf in leaves.items() if not path.startswith("head/")}
        tensors = _without_head(module, tensors, form, table)
    if head == "drop" and wanted.keys() != leaves.keys():
        raise ValueError('head="drop" is for a module with num_classes=0; "reinit" makes a new head')
    if head == "reinit":
        values = _new_head(module, leaves, size)
    found = form.pairs(_shapes(wanted), tensors.keys(), table)
    for pair in found:
        if pair.theirs in tensors:
            _check_dtype(pair, tensors[pair.theirs], leaves[pair.ours[0]])
    what = f'a {type(module).__name__} in the format "{form.name}"'
    read_values = read(tensors, found, _shapes(wanted), _sizes(module), what)
    return assemble(leaves, chain(read_values, values))


def write_tensors(
    module: nn.Module, variables: Mapping[str, Any], format: str | None = None, rename: Rename | None = None
) -> dict[str, LazyTensor]:
    """`to_torch`, each tensor computed when it is read."""
    module, table = _without_parents(module), _rows(module, rename)
    variables = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    leaves = variable_leaves(module, variables)
    arrays = take_apart(leaves, variables, f"this {type(module).__name__}")
    form, found = _expressing(_formats(module, ()), module, _shapes(leaves), format, table)
    tensors = write(arrays, found, _shapes(leaves), _sizes(module))
    if form.layout is torch_layout:
        tensors = {name: _as_torch_counts(tensor) for name, tensor in tensors.items()}
    return tensors


def variable_leaves(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, Leaf]:
    """The leaves of a module for inputs as its variables are made for."""

    def size(path: str, axis: int, otherwise: int) -> int:
        node: Any = variables.get("params", {})
        for name in path.split("/"):
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
        return otherwise if isinstance(node, Mapping) else node.shape[axis]

    return module_leaves(module, size)


def _formats(module: nn.Module, keys: Iterable[str]) -> tuple[Format, ...]:
    return vit.FORMATS if isinstance(module, ViT) else torch_formats(module, list(keys))


def _shapes(leaves: Mapping[str, Leaf]) -> dict[str, Shape]:
    return {path: leaf.shape for path, leaf in leaves.items()}


def _sizes(module: nn.Module) -> dict[str, int]:
    return {"p1": module.patch_size, "p2": module.patch_size} if isinstance(module, ViT) else {}


def _without_parents(module: nn.Module) -> nn.Module:
    """The module as its own root, so that it may be a part of another."""
    return module.clone(parent=None)


def _rows(module: nn.Module, rename: Rename | None) -> Table:
    """The rows of `rename`; ValueError if one names nothing of ours."""
    rows = [
        Rule(theirs, ours) if isinstance(ours, str) else Rule(theirs, ours[0], ours[1])
        for theirs, ours in (rename or {}).items()
    ]
    if not rows:
        return ()
    shapes = _shapes(module_leaves(module))
    for rule in flat(tuple(rows), "."):
        sides = [sorted(name for group in groups(side) for name in group) for side in str(rule.how).split("->")]
        if rule.how and (len(sides) != 2 or sides[0] != sides[1]):
            raise ValueError(
                f'rename gives "{rule.theirs}" the pattern "{rule.how}": wanted the same axes on both sides of ->'
            )
        if not any(instances(rule, shapes)):
            close = get_close_matches(rule.ours, shapes, n=1, cutoff=0.3)
            near = f"; the nearest is {close[0]}" if close else ""
            raise ValueError(
                f'rename gives "{rule.theirs}" the path "{rule.ours}", which is none of {type(module).__name__}{near}'
            )
    return tuple(rows)


def _closest(
    formats: Iterable[Format], module: nn.Module, tensors: Mapping[str, LazyTensor], table: Table
) -> tuple[Format, list[Pair]]:
    """The format, and its pairs, that has names for most of the tensors."""
    shapes = _shapes(module_leaves(module))
    candidates = [(form, form.pairs(shapes, tensors.keys(), table)) for form in formats]
    return max(candidates, key=lambda candidate: sum(pair.theirs in tensors for pair in candidate[1]))


def _expressing(
    formats: Iterable[Format], module: nn.Module, shapes: Mapping[str, Shape], name: str | None, table: Table
) -> tuple[Format, list[Pair]]:
    """The first format of that name or family that can express the module."""
    formats = list(formats)
    name = name or formats[0].name
    candidates = [form for form in formats if name in (form.name, form.family)]
    if not candidates:
        known = ", ".join(dict.fromkeys(form.name for form in formats))
        raise ValueError(f'{type(module).__name__} has no format "{name}"; it has {known}')
    reasons = []
    for form in candidates:
        found = form.pairs(shapes, (), table)
        named = {path for pair in found for path in pair.ours}
        without = [path for path in shapes if path not in named]
        options = vit.unexpressed(form, module) if isinstance(module, ViT) else []
        if not without and not options:
            return form, found
        layers = dict.fromkeys(re.sub(r"_\d+/", "_{i}/", path) for path in without)
        reasons.append([*options, *layers])
    lacking = ", ".join(min(reasons, key=len))
    raise ValueError(f'the format "{name}" has no place for {lacking} of this {type(module).__name__}')


def _without_head(
    module: nn.Module, tensors: Mapping[str, LazyTensor], form: Format, table: Table
) -> dict[str, LazyTensor]:
    """The tensors without those of a classifier; ValueError if there is none to leave out."""
    if not hasattr(module, "num_classes"):
        raise ValueError(f"head is for modules with num_classes, {type(module).__name__} has none")
    shapes = _shapes(module_leaves(module.clone(num_classes=1)))
    names = {pair.theirs for pair in form.pairs(shapes, tensors.keys(), table) if pair.ours[0].startswith("head/")}
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _new_head(module: nn.Module, leaves: Mapping[str, Leaf], size: Size) -> list[tuple[str, np.ndarray]]:
    """What `init` makes of the classifier; compiled, so that nothing else is made."""
    inputs = example_inputs(module, size)

    def init() -> Any:
        images = (None if x is None else jnp.zeros(x.shape, x.dtype) for x in inputs)
        return module.init(jax.random.key(0), *images)["params"]["head"]

    head = jax.jit(init)()
    return [(path, np.asarray(head[path[len("head/") :]])) for path in leaves if path.startswith("head/")]


def _check_dtype(pair: Pair, tensor: LazyTensor, leaf: Leaf) -> None:
    """ValueError unless numbers stay as they are in JAX, and are floats where ours are."""
    counts = np.issubdtype(leaf.dtype, np.integer)
    if counts != np.issubdtype(tensor.dtype, np.integer):
        raise ValueError(f"{pair.theirs} is {tensor.dtype}, wanted {'integers' if counts else 'floats'}")
    if tensor.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{pair.theirs} is float64, which JAX would round to float32: make it float32 first, "
            'or jax.config.update("jax_enable_x64", True)'
        )


def _as_torch_counts(tensor: LazyTensor) -> LazyTensor:
    """Integers as torch's int64."""
    if not np.issubdtype(tensor.dtype, np.integer):
        return tensor
    return LazyTensor(tensor.shape, np.dtype(np.int64), lambda: tensor.read().astype(np.int64))
