"""Between our variables and named tensors of another library, in memory."""

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from w2jax.convert.layouts import Format, torch_layout
from w2jax.convert.lazy_tensor import LazyTensor, from_arrays
from w2jax.convert.rules import Pair, Rule, Shape, Table, flat, groups, instances, our_size, read, write
from w2jax.convert.schema import Leaf, Size, assemble, example_inputs, module_leaves, split_variables
from w2jax.convert.torch_modules import torch_formats
from w2jax.convert.vit_tables import FORMATS, inexpressible
from w2jax.text import nearest
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
            number of a layer; its value is our path, such as "encoder/block_{i}/norm1", or a pair of that and an einops
            pattern from theirs to ours. Without a pattern the layout is that of torch.nn. The first row that names a
            parameter counts, so a part of a layer comes before the layer.
        head: the classifier. None: it must fit. "drop": theirs is left out, for a module with `num_classes=0`.
            "reinit": ours is new, as `init` makes it.

    Returns:
        {"params": …}, and {"batch_stats": …} where the module has them.

    Raises:
        ValueError: if a tensor is missing, left over, or of another shape (up to 200 are listed); if one is float64 and
            JAX would round it; or if a path in `rename` is not one of ours.
    """
    return read_variables(module, from_arrays(state_dict), rename, head)[0]


def to_torch(
    module: nn.Module, variables: Mapping[str, Any], format: str | None = None, rename: Rename | None = None
) -> dict[str, np.ndarray]:
    """The parameters of `module` under another library's names, as numpy arrays: `from_torch` backwards.

    Args:
        module: one of ours.
        variables: its variables.
        format: of a ViT "timm" (when None), "huggingface", "torchvision", "google", or one of their variants (see
            `w2jax.convert.vit_tables.FORMATS`); "torch" of any module.
        rename: as in `from_torch`. Query, key and value of an attention layer are written one by one, unless a row with
            `{query,key,value}` makes them one tensor.

    Raises:
        ValueError: if there is no such format, it cannot express the module, or the variables are not the module's.
    """
    tensors = write_tensors(module, variables, format, rename)
    return {name: np.array(tensor.read(), order="C") for name, tensor in tensors.items()}


def read_variables(
    module: nn.Module, tensors: Mapping[str, LazyTensor], rename: Rename | None = None, head: Head = None
) -> tuple[dict[str, Any], dict[str, Leaf]]:
    """`from_torch` of lazy tensors, which are read one after the other; and the leaves of the variables."""
    module = _as_root(module)
    smallest = _shapes(module_leaves(module))  # for the smallest inputs: their paths are those of every input
    rows = _rename_rows(module, smallest, rename)
    form, pairs = _best_format(_formats(module, tensors), smallest, tensors, rows)
    by_path = {path: pair for pair in pairs for path in pair.ours}

    def size(path: str, axis: int, default: int) -> int:
        pair = by_path.get(path)
        tensor = None if pair is None else tensors.get(pair.theirs)
        # A size of 0 cannot be traced; that tensor is listed with all other errors below.
        return default if pair is None or tensor is None else our_size(pair, tensor.shape, axis) or default

    leaves = module_leaves(module, size)
    shapes = _shapes(leaves)
    new_head: Iterable[tuple[str, np.ndarray]] = ()
    if head is not None:
        shapes = {path: shape for path, shape in shapes.items() if not path.startswith("head/")}
        tensors = _without_head(module, tensors, form, rows)
    if head == "drop" and shapes.keys() != leaves.keys():
        raise ValueError('head="drop" needs a module with num_classes=0; "reinit" makes a new head')
    if head == "reinit":
        new_head = _new_head(module, leaves, size)
    pairs = form.pairs(shapes, tensors.keys(), rows)
    for pair in pairs:
        if pair.theirs in tensors:
            _check_dtype(pair, tensors[pair.theirs], leaves[pair.ours[0]])
    target = f'a {type(module).__name__} in the format "{form.name}"'
    values = read(tensors, pairs, shapes, _sizes(module), target)
    return assemble(leaves, chain(values, new_head)), leaves


def write_tensors(
    module: nn.Module,
    variables: Mapping[str, Any],
    format: str | None = None,
    rename: Rename | None = None,
    leaves: Mapping[str, Leaf] | None = None,
) -> dict[str, LazyTensor]:
    """`to_torch`, each tensor computed when it is read; `leaves` are those of the variables, where they are known."""
    module = _as_root(module)
    variables = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    leaves = leaves or variable_leaves(module, variables)
    shapes = _shapes(leaves)
    arrays = split_variables(leaves, variables, f"this {type(module).__name__}")
    form, pairs = _format_to_write(_formats(module, ()), module, shapes, format, _rename_rows(module, shapes, rename))
    tensors = write(arrays, pairs, shapes, _sizes(module))
    if form.layout is torch_layout:
        tensors = {name: _as_torch_counts(tensor) for name, tensor in tensors.items()}
    return tensors


def variable_leaves(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, Leaf]:
    """The leaves of a module for inputs that fit its variables."""

    def size(path: str, axis: int, default: int) -> int:
        node: Any = variables.get("params", {})
        for name in path.split("/"):
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
        return default if isinstance(node, Mapping) else node.shape[axis]

    return module_leaves(module, size)


def _formats(module: nn.Module, keys: Iterable[str]) -> tuple[Format, ...]:
    return FORMATS if isinstance(module, ViT) else torch_formats(module, list(keys))


def _shapes(leaves: Mapping[str, Leaf]) -> dict[str, Shape]:
    return {path: leaf.shape for path, leaf in leaves.items()}


def _sizes(module: nn.Module) -> dict[str, int]:
    return {"p1": module.patch_size, "p2": module.patch_size} if isinstance(module, ViT) else {}


def _as_root(module: nn.Module) -> nn.Module:
    """The module without its parent, where it is a part of another."""
    return module.clone(parent=None)


def _rename_rows(module: nn.Module, shapes: Mapping[str, Shape], rename: Rename | None) -> Table:
    """The rows of `rename`; ValueError if one has a path that the module does not have."""
    rows = tuple(
        Rule(theirs, ours) if isinstance(ours, str) else Rule(theirs, ours[0], ours[1])
        for theirs, ours in (rename or {}).items()
    )
    for rule in flat(rows, "."):
        sides = [sorted(name for group in groups(side) for name in group) for side in str(rule.how).split("->")]
        if rule.how and (len(sides) != 2 or sides[0] != sides[1]):
            raise ValueError(
                f'the pattern of "{rule.theirs}" in rename must have the same axes on both sides of ->, '
                f'got "{rule.how}"'
            )
        if not any(instances(rule, shapes)):
            close = nearest(rule.ours, shapes)
            near = f"; the nearest is {close[0]}" if close else ""
            raise ValueError(
                f'the path of "{rule.theirs}" in rename must be one of {type(module).__name__}, got "{rule.ours}"{near}'
            )
    return rows


def _best_format(
    formats: Iterable[Format], shapes: Mapping[str, Shape], tensors: Mapping[str, LazyTensor], rows: Table
) -> tuple[Format, list[Pair]]:
    """The format that has names for most of the tensors, and its pairs."""
    candidates = [(form, form.pairs(shapes, tensors.keys(), rows)) for form in formats]
    return max(candidates, key=lambda candidate: sum(pair.theirs in tensors for pair in candidate[1]))


def _format_to_write(
    formats: Iterable[Format], module: nn.Module, shapes: Mapping[str, Shape], name: str | None, rows: Table
) -> tuple[Format, list[Pair]]:
    """The first format of that name or family that can express the module, and its pairs."""
    formats = list(formats)
    name = name or formats[0].name
    candidates = [form for form in formats if name in (form.name, form.family)]
    if not candidates:
        known = ", ".join(dict.fromkeys(form.name for form in formats))
        raise ValueError(f'the format of a {type(module).__name__} must be one of {known}, got "{name}"')
    obstacles = []
    for form in candidates:
        pairs = form.pairs(shapes, (), rows)
        named = {path for pair in pairs for path in pair.ours}
        unnamed = [path for path in shapes if path not in named]
        options = inexpressible(form, module) if isinstance(module, ViT) else []
        if not unnamed and not options:
            return form, pairs
        layers = dict.fromkeys(re.sub(r"_\d+/", "_{i}/", path) for path in unnamed)
        obstacles.append([*options, *layers])
    fewest = ", ".join(min(obstacles, key=len))
    raise ValueError(f'the format "{name}" has no place for {fewest} of this {type(module).__name__}')


def _without_head(
    module: nn.Module, tensors: Mapping[str, LazyTensor], form: Format, rows: Table
) -> dict[str, LazyTensor]:
    """The tensors without those of the classifier; ValueError if the module cannot have one."""
    if not hasattr(module, "num_classes"):
        raise ValueError(f"head is for modules with num_classes, {type(module).__name__} has none")
    classifier = {"head/kernel": (1, 1), "head/bias": (1,)}
    names = {pair.theirs for pair in form.pairs(classifier, tensors.keys(), rows)}
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _new_head(module: nn.Module, leaves: Mapping[str, Leaf], size: Size) -> list[tuple[str, np.ndarray]]:
    """The classifier that `init` makes; compiled, so that no other parameter is made."""
    inputs = example_inputs(module, size)

    def init() -> Any:
        images = (None if x is None else jnp.zeros(x.shape, x.dtype) for x in inputs)
        return module.init(jax.random.key(0), *images)["params"]["head"]

    head = jax.jit(init)()
    return [(path, np.asarray(head[path[len("head/") :]])) for path in leaves if path.startswith("head/")]


def _check_dtype(pair: Pair, tensor: LazyTensor, leaf: Leaf) -> None:
    """ValueError unless JAX keeps the numbers exactly, and they are floats where ours are."""
    counts = np.issubdtype(leaf.dtype, np.integer)
    if counts != np.issubdtype(tensor.dtype, np.integer):
        raise ValueError(f"{pair.theirs} must be {'integers' if counts else 'floats'}, got {tensor.dtype}")
    if tensor.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{pair.theirs} is float64, which JAX would round to float32. Convert it to float32 first, "
            'or call jax.config.update("jax_enable_x64", True)'
        )


def _as_torch_counts(tensor: LazyTensor) -> LazyTensor:
    """Integers as torch's int64."""
    if not np.issubdtype(tensor.dtype, np.integer):
        return tensor
    return LazyTensor(tensor.shape, np.dtype(np.int64), lambda: tensor.read().astype(np.int64))
