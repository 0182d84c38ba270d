"""The leaves of w2jax modules: paths, shapes, dtypes and places of all parameters in the variables."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from w2jax.convert.lazy_tensor import LazyTensor
from w2jax.module import Inputs, Size
from w2jax.seq2seq import Seq2Seq
from w2jax.text import shorten


class Leaf(NamedTuple):
    """A parameter or a batch statistic. If layers are stacked for a scan, each layer is a separate leaf."""

    shape: tuple[int, ...]  # Shape of the parameter, of one layer if layers are stacked.
    dtype: np.dtype  # Dtype of the parameter after `init`.
    place: tuple[str, ...]  # Collection and names in the variables.
    layer: int | None  # Index of the layer along the first axis of the stacked array; None: not stacked.
    layers: int  # Number of layers in the stacked array; 1 if layers are not stacked.


def module_leaves(module: nn.Module, size: Size = lambda path, axis, default: default) -> dict[str, Leaf]:
    """Return all leaves of a module by path, such as "encoder/block_0/norm1/scale".

    `size` returns the sizes that depend on the inputs.

    Raises:
        ValueError: the module cannot be converted, or its options do not fit each other.
    """
    # With a scan only one layer is traced, which saves most of the time. The leaves are the same.
    scan = next((name for name in ("scan_layers", "scan") if hasattr(module, name)), None)
    scanned: dict[str, Any] = {} if scan is None else {scan: True}
    traced = module.clone(**scanned)
    stacked = scan is not None and getattr(module, scan)
    if isinstance(module, Seq2Seq) and module.positions == "sinusoidal":
        traced = traced.clone(max_length=1)  # the sinusoidal table is not a parameter: skip its computation on the CPU
    try:
        inputs = example_inputs(module, size)
        try:
            shapes = _initial_shapes(traced, *inputs)
        except TypeError:  # a list among its fields cannot be hashed
            shapes = _initial_shapes.__wrapped__(traced, *inputs)
    except ValueError:
        raise
    except Exception as error:  # for wrong fields and shapes from a file, the model's code may raise any exception
        reason = shorten((str(error) or type(error).__name__).splitlines()[0])
        raise ValueError(f"the fields and shapes do not fit a {type(module).__name__}: {reason}") from error
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(shapes):
        collection, *names = (key.key for key in path)
        if "blocks" not in names:
            leaves["/".join(names)] = Leaf(leaf.shape, np.dtype(leaf.dtype), (collection, *names), None, 1)
            continue
        at, (count, *shape) = names.index("blocks"), leaf.shape
        for i in range(count):
            single = [*names[:at], f"block_{i}", *names[at + 1 :]]
            place, index = (names, i) if stacked else (single, None)
            leaves["/".join(single)] = Leaf(
                tuple(shape), np.dtype(leaf.dtype), (collection, *place), index, count if stacked else 1
            )
    return leaves


@lru_cache(maxsize=64)
def _initial_shapes(module: nn.Module, *inputs: jax.ShapeDtypeStruct | None) -> Any:
    # The key is made in the traced function. Otherwise it would start JAX, whose devices a program can then not change.
    return jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs), *inputs)


def assemble(leaves: Mapping[str, Leaf], values: Iterable[tuple[str, np.ndarray]]) -> dict[str, Any]:
    """Build variables from values by path. Each becomes a JAX array as soon as all its layers are read."""
    variables: dict[str, Any] = {}
    unfinished: dict[tuple[str, ...], tuple[np.ndarray, set[int]]] = {}
    for path, value in values:
        leaf = leaves[path]
        if np.issubdtype(leaf.dtype, np.integer):
            value = value.astype(leaf.dtype)
        if leaf.layer is not None:
            stack, missing = unfinished.setdefault(
                leaf.place, (np.empty((leaf.layers, *value.shape), value.dtype), set(range(leaf.layers)))
            )
            stack[leaf.layer] = value
            missing.discard(leaf.layer)
            if missing:
                continue
            value = unfinished.pop(leaf.place)[0]
        node = variables
        for name in leaf.place[:-1]:
            node = node.setdefault(name, {})
        node[leaf.place[-1]] = jnp.asarray(value)
    return variables


def split_variables(leaves: Mapping[str, Leaf], variables: Mapping[str, Any], owner: str) -> dict[str, LazyTensor]:
    """Split variables into lazy tensors by path, with a separate tensor for each stacked layer.

    Raises:
        ValueError: the variables do not fit the leaves. The message names `owner` and lists every parameter that is
            missing, unexpected or has a wrong shape.
    """
    arrays = {
        tuple(key.key for key in path): value for path, value in jax.tree.leaves_with_path(dict(variables)) if path
    }
    shapes = {leaf.place: leaf.shape if leaf.layer is None else (leaf.layers, *leaf.shape) for leaf in leaves.values()}
    lines = [f"missing     {'/'.join(place)} {shapes[place]}" for place in shapes if place not in arrays]
    lines += [f"unexpected  {'/'.join(place)} {value.shape}" for place, value in arrays.items() if place not in shapes]
    lines += [
        f"wrong shape {'/'.join(place)} must be {shapes[place]}, got {value.shape}"
        for place, value in arrays.items()
        if place in shapes and value.shape != shapes[place]
    ]
    if lines:
        raise ValueError(f"the variables do not match the parameters of {owner}:\n  " + "\n  ".join(lines))

    def tensor(leaf: Leaf) -> LazyTensor:
        value = arrays[leaf.place]
        return LazyTensor(
            leaf.shape,
            np.dtype(value.dtype),
            lambda: np.asarray(value if leaf.layer is None else value[leaf.layer]),
        )

    return {path: tensor(leaf) for path, leaf in leaves.items()}


def example_inputs(module: nn.Module, size: Size) -> Inputs:
    """Return the smallest inputs for which `init` creates parameters with the sizes that `size` returns.

    Raises:
        ValueError: the module has no method `example_inputs`.
    """
    method = getattr(module, "example_inputs", None)
    if method is None:
        raise ValueError(
            f"{type(module).__name__} must have a method example_inputs(size) for conversion, but has none. Define it"
        )
    return method(size)
