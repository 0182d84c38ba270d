"""Convert variables of w2jax to named tensors of another library and back, in memory."""

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from w2jax.convert.layouts import Format, torch_layout
from w2jax.convert.lazy_tensor import LazyTensor, from_arrays
from w2jax.convert.prefixes import check_single, parents, under, without_wrappers
from w2jax.convert.rules import Pair, Rule, Shape, Table, flat, groups, instances, our_size, read, write
from w2jax.convert.schema import Leaf, Size, assemble, example_inputs, module_leaves, split_variables
from w2jax.convert.torch_modules import torch_formats
from w2jax.convert.vit_architecture import vit_prefixes
from w2jax.convert.vit_heads import Head
from w2jax.convert.vit_tables import FORMATS, inexpressible
from w2jax.text import nearest
from w2jax.vit import ViT, patch_sides

HEADS = ("head", "head_distilled")
"""The names of the classifiers in a module with `num_classes`."""

Rename = Mapping[str, str | tuple[str, str | Table]]


def from_torch(
    module: nn.Module, state_dict: Mapping[str, Any], rename: Rename | None = None, head: Head = None
) -> dict[str, Any]:
    """Convert the parameters of a PyTorch model (or of Google's ViTs) to variables of a w2jax module.

    Args:
        module: a module of w2jax. The names that are recognized depend on the module:

            - ViT: names of timm, Hugging Face, torchvision, Google, Facebook's releases, CLIP and open_clip.
            - LSTM, GRU, RNN, MultiHeadAttention, Transformer, TransformerEncoder and TransformerDecoder: names of the
              torch.nn module.
            - AAEEncoder, AAEDecoder and AAEDiscriminator: names of a `torch.nn.Sequential`.
            - every module: its w2jax paths in the style of torch, such as "head.weight" for "head/kernel".

            Settings without parameters are not in a state_dict, so they are not checked: activations (an autoencoder
            of w2jax has ReLU), `add_zero_attn` (w2jax has none), dropout, epsilons and the order of the norms.
        state_dict: torch tensors, NumPy arrays or JAX arrays, by name. Their dtypes are kept.
        rename: your own names. Each key is the name of a parameter or layer in `state_dict`, with `{i}` for the layer
            number. Each value is the path in w2jax, such as "encoder/block_{i}/norm1", or a pair (path, einops pattern
            from your layout to the layout of w2jax). Without a pattern the layout is that of torch.nn. For each
            parameter the first matching key is used, so put a part of a layer before the layer.
        head: the classifier. None: its shape must fit. "drop": ignore it in `state_dict`; the module must have
            `num_classes=0`. "reinit": ignore it in `state_dict`, and initialize the module's classifier as `init` does.

    Returns:
        {"params": …}, with {"batch_stats": …} if the module has batch statistics.

    Raises:
        ValueError: a tensor is missing, unexpected, or has a wrong shape (up to 200 are listed); a tensor is float64
            and JAX would round it; or a path in `rename` is not a path of the module.
    """
    return read_variables(module, from_arrays(state_dict), rename, head)[0]


def to_torch(
    module: nn.Module, variables: Mapping[str, Any], format: str | None = None, rename: Rename | None = None
) -> dict[str, np.ndarray]:
    """Convert the variables of a w2jax module to another library's names and layouts. The inverse of `from_torch`.

    Args:
        module: a module of w2jax.
        variables: its variables.
        format: name of the format. For a ViT "timm", "huggingface", "torchvision", "google" or one of their variants
            (see `w2jax.convert.vit_tables.FORMATS`); for any module "torch". None: "timm" for a ViT, else "torch".
        rename: your own names, as in `from_torch`. Query, key and value of a renamed attention layer are three tensors,
            unless a rule with `{query,key,value}` joins them to one tensor.

    Returns:
        NumPy arrays by name.

    Raises:
        ValueError: the format is unknown or cannot express the module, or the variables do not fit the module.
    """
    tensors = write_tensors(module, variables, format, rename)
    return {name: np.array(tensor.read(), order="C") for name, tensor in tensors.items()}


def read_variables(
    module: nn.Module, tensors: Mapping[str, LazyTensor], rename: Rename | None = None, head: Head = None
) -> tuple[dict[str, Any], dict[str, Leaf]]:
    """Convert lazy tensors like `from_torch`, reading one tensor at a time: return (variables, leaves)."""
    module = _as_root(module)
    smallest = _shapes(module_leaves(module))  # leaves for the smallest inputs; the paths are the same for all inputs
    rows = _rename_rows(module, smallest, rename)
    named = tensors
    if rename is None:
        named = without_wrappers(tensors)
        tensors, _ = under(named, "")
    form, pairs = _best_format(_formats(module, tensors), smallest, tensors, rows)
    if rename is None and 2 * _matches(form, pairs, tensors) < len(named):
        prefix = prefix_of(module, named)
        if prefix and all(key.startswith(prefix) for key in named):  # Otherwise the other tensors are errors.
            tensors, _ = under(named, prefix)
            form, pairs = _best_format(_formats(module, tensors), smallest, tensors, rows)
    by_path = {path: pair for pair in pairs for path in pair.ours}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(form.ignored)}

    def size(path: str, axis: int, default: int) -> int:
        pair = by_path.get(path)
        tensor = None if pair is None else tensors.get(pair.theirs)
        # A size of 0 cannot be traced. The tensor is listed with the other wrong shapes below.
        return default if pair is None or tensor is None else our_size(pair, tensor.shape, axis) or default

    leaves = module_leaves(module, size)
    shapes = _shapes(leaves)
    new_head: Iterable[tuple[str, np.ndarray]] = ()
    if head is not None:
        shapes = {path: shape for path, shape in shapes.items() if path.split("/")[0] not in HEADS}
        tensors = _without_head(module, tensors, form, rows)
    if head == "drop" and shapes.keys() != leaves.keys():
        raise ValueError(
            f'num_classes must be 0 for head="drop", got {getattr(module, "num_classes", None)}. '
            'Set num_classes=0, or use head="reinit" for a new classifier'
        )
    if head == "reinit":
        new_head = _new_head(module, leaves, size)
    pairs = form.pairs(shapes, tensors.keys(), rows)
    for pair in pairs:
        if pair.theirs in tensors:
            _check_dtype(pair, tensors[pair.theirs], leaves[pair.ours[0]])
    target = f'{type(module).__name__} (format "{form.name}")'
    values = read(tensors, pairs, shapes, _sizes(module), target)
    return assemble(leaves, chain(values, new_head)), leaves


def write_tensors(
    module: nn.Module,
    variables: Mapping[str, Any],
    format: str | None = None,
    rename: Rename | None = None,
    leaves: Mapping[str, Leaf] | None = None,
) -> dict[str, LazyTensor]:
    """Convert like `to_torch` to lazy tensors, computed when they are read. `leaves`: if already computed."""
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


def prefix_of(module: nn.Module, tensors: Mapping[str, LazyTensor]) -> str:
    """Return the prefix of the tensors that have the names of a module; "" if the names have none.

    Raises:
        ValueError: the file has several such modules.
    """
    shapes = _shapes(module_leaves(_as_root(module)))

    def known(prefix: str) -> int:
        inside, _ = under(tensors, prefix)
        return _matches(*_best_format(_formats(module, inside), shapes, inside, ()), inside)

    without = known("")
    if 2 * without >= len(tensors):
        return ""
    counts = {prefix: known(prefix) for prefix in (vit_prefixes if isinstance(module, ViT) else parents)(tensors)}
    most = max(counts.values(), default=0)
    if without >= most:
        return ""
    best = [prefix for prefix, count in counts.items() if count == most]
    check_single(best)
    return best[0]


def format_of(module: nn.Module, leaves: Mapping[str, Leaf], name: str | None) -> Format:
    """Return the format in which `write_tensors` writes a module. `name` is a format or a family."""
    return _format_to_write(_formats(module, ()), module, _shapes(leaves), name, ())[0]


def variable_leaves(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, Leaf]:
    """Return the leaves of a module, for inputs that fit its variables."""

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
    return dict(zip(("p1", "p2"), patch_sides(module.patch_size), strict=True)) if isinstance(module, ViT) else {}


def _as_root(module: nn.Module) -> nn.Module:
    """Return the module without its parent module."""
    return module.clone(parent=None)


def _rename_rows(module: nn.Module, shapes: Mapping[str, Shape], rename: Rename | None) -> Table:
    """Convert `rename` to rules; raise a ValueError if a path is not a path of the module."""
    rows = tuple(
        Rule(theirs, ours) if isinstance(ours, str) else Rule(theirs, ours[0], ours[1])
        for theirs, ours in (rename or {}).items()
    )
    for rule in flat(rows, "."):
        sides = [sorted(name for group in groups(side) for name in group) for side in str(rule.how).split("->")]
        if rule.how and (len(sides) != 2 or sides[0] != sides[1]):
            raise ValueError(
                f'the pattern of "{rule.theirs}" in rename must have the same axes on both sides of "->", '
                f'got "{rule.how}"'
            )
        if not any(instances(rule, shapes)):
            close = nearest(rule.ours, shapes)
            near = f'; did you mean "{close[0]}"?' if close else ""
            raise ValueError(
                f'the path of "{rule.theirs}" in rename must be a path of {type(module).__name__}, '
                f'got "{rule.ours}"{near}'
            )
    return rows


def _best_format(
    formats: Iterable[Format], shapes: Mapping[str, Shape], tensors: Mapping[str, LazyTensor], rows: Table
) -> tuple[Format, list[Pair]]:
    """Return the format that has names for most of the tensors, and its pairs."""
    candidates = [(form, form.pairs(shapes, tensors.keys(), rows)) for form in formats]
    return max(candidates, key=lambda candidate: _matches(*candidate, tensors))


def _matches(form: Format, pairs: Iterable[Pair], tensors: Mapping[str, LazyTensor]) -> int:
    """Count the tensors that the format knows."""
    return sum(pair.theirs in tensors for pair in pairs) + form.count_ignored(tensors)


def _format_to_write(
    formats: Iterable[Format], module: nn.Module, shapes: Mapping[str, Shape], name: str | None, rows: Table
) -> tuple[Format, list[Pair]]:
    """Return the first format with this name or family that can express the module, and its pairs."""
    formats = list(formats)
    name = name or formats[0].name
    candidates = [form for form in formats if name in (form.name, form.family)]
    if not candidates:
        known = ", ".join(dict.fromkeys(form.family for form in formats))
        raise ValueError(f'the format for {type(module).__name__} must be one of {known}, got "{name}"')
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
    raise ValueError(f'the format "{name}" cannot store {fewest} of this {type(module).__name__}. Use another format')


def _without_head(
    module: nn.Module, tensors: Mapping[str, LazyTensor], form: Format, rows: Table
) -> dict[str, LazyTensor]:
    """Return the tensors without the classifier; raise a ValueError if the module has no field `num_classes`."""
    if not hasattr(module, "num_classes"):
        raise ValueError(f"head must be None for {type(module).__name__}, which has no classifier (num_classes)")
    classifier = {f"{head}/{name}": (1,) * rank for head in HEADS for name, rank in (("kernel", 2), ("bias", 1))}
    names = {pair.theirs for pair in form.pairs(classifier, tensors.keys(), rows)}
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _new_head(module: nn.Module, leaves: Mapping[str, Leaf], size: Size) -> list[tuple[str, np.ndarray]]:
    """Initialize the classifier as `init` does. The function is compiled, so no other parameter is computed."""
    inputs = example_inputs(module, size)

    def init() -> Any:
        images = (None if x is None else jnp.zeros(x.shape, x.dtype) for x in inputs)
        params: Any = module.init(jax.random.key(0), *images)["params"]
        return {f"{head}/{name}": x for head in HEADS for name, x in params.get(head, {}).items()}

    heads = jax.jit(init)()
    return [(path, np.asarray(heads[path])) for path in leaves if path in heads]


def _check_dtype(pair: Pair, tensor: LazyTensor, leaf: Leaf) -> None:
    """Raise a ValueError if JAX would round the values, or if a tensor has integers instead of floats or vice versa."""
    counts = np.issubdtype(leaf.dtype, np.integer)
    if counts != np.issubdtype(tensor.dtype, np.integer):
        raise ValueError(f"{pair.theirs} must be {'integers' if counts else 'floats'}, got {tensor.dtype}")
    if tensor.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{pair.theirs} must not be float64, because JAX would round it to float32. Convert it to float32 first. "
            'Or call jax.config.update("jax_enable_x64", True), and set dtype="float64" in the module'
        )


def _as_torch_counts(tensor: LazyTensor) -> LazyTensor:
    """Convert an integer tensor to int64, torch's dtype for counts."""
    if not np.issubdtype(tensor.dtype, np.integer):
        return tensor
    return LazyTensor(tensor.shape, np.dtype(np.int64), lambda: tensor.read().astype(np.int64))
