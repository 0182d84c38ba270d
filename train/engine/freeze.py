"""Splits parameters into those that train and those that `--optim.freeze` keeps unchanged."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import jax

from train.process.errors import UserError
from train.task import Params, leaf_name, named_leaves
from w2jax.convert.state_dict import HEADS

ALL_BUT_HEAD = "all-but-head"


def split(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
    """Returns (trained parameters, frozen parameters). Each has the tree of `params`, with None for the others.

    JAX does not see None as a parameter. So frozen parameters get no gradient, no update and no optimizer state.

    Args:
        params: the tree of all parameters.
        patterns: the patterns of `--optim.freeze`. A pattern matches a parameter if it matches its path, such as
            encoder/block_0/mlp/fc1/kernel, or the start of its path up to a slash. `ALL_BUT_HEAD` matches all
            parameters outside the heads.

    Raises:
        UserError: if a pattern matches nothing, or no parameter is left to train.
    """
    frozen: set[str] = set()
    names = named_leaves(params)
    for pattern in patterns:
        found = {name for name in names if _matches(name, pattern)}
        if not found:
            raise UserError(
                f"--optim.freeze must match parameters of the model, but {pattern} matches none. The parameters are in "
                f"{', '.join(sorted(_groups(names)))}. Write for example 'encoder/*' or {ALL_BUT_HEAD}"
            )
        frozen |= found
    if len(frozen) == len(names):
        raise UserError(
            f"--optim.freeze must leave parameters to train, but {' '.join(patterns)} freezes all of them. "
            "Leave out a pattern"
        )
    trained = jax.tree.map_with_path(lambda path, x: None if leaf_name(path) in frozen else x, params)
    return trained, jax.tree.map_with_path(lambda path, x: x if leaf_name(path) in frozen else None, params)


def merged(one: Params, other: Params) -> Params:
    """Returns the inverse of `split`: the tree with the leaves of both trees."""
    return jax.tree.map(lambda a, b: b if a is None else a, one, other, is_leaf=lambda x: x is None)


def _matches(name: str, pattern: str) -> bool:
    if pattern == ALL_BUT_HEAD:
        return name.split("/")[0] not in HEADS
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern.rstrip('/')}/*")


def _groups(names: Iterable[str]) -> set[str]:
    """Returns the top-level names, and below "encoder" the names of the second level, such as encoder/block_0."""
    return {"/".join(name.split("/")[: 2 if name.startswith("encoder/") else 1]) for name in names}
