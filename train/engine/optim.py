"""Builds the optimizer from its config in configs/base.py."""

import math
import operator
import re
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array

from configs.base import AdamW, Optim
from train.process.errors import UserError
from train.task import Params, leaf_name
from w2jax.convert.state_dict import HEADS

_BLOCK = re.compile(r"encoder/block_(\d+)/")
_BLOCKS = "encoder/blocks/"  # stacked for a scan: [depth, ...]
_EMBEDDINGS = ("patch_embed", "embed", "cls", "registers", "positions", "embed_norm")


def make_schedule(config: AdamW, steps: int) -> optax.Schedule:
    """Returns the learning rate schedule: linear warm-up from 0, then cosine decay to the final value."""
    peak = config.learning_rate
    warmup = math.floor(round(config.warmup_fraction * steps, 6))  # 0.29 · 100 is 28.999999999999996 in binary.
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup, max(steps, 1), end_value=peak * config.final_lr_fraction
    )


def make_optimizer(config: AdamW, steps: int) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov & Hutter 2019), with gradients clipped by global norm first (Pascanu et al. 2013).

    An `Optim` may set factors of the learning rate (`learning_rate_factors`). As in torch, they also scale the weight
    decay.
    """
    optimizer = optax.adamw(
        make_schedule(config, steps), config.b1, config.b2, weight_decay=config.weight_decay, mask=is_matrix
    )
    if config.clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optimizer)
    if not isinstance(config, Optim) or config.layer_decay == config.head_lr_factor == 1.0:
        return optimizer

    def scaled(updates: Params, params: Params | None) -> Params:
        return jax.tree.map(lambda update, factor: update * factor, updates, learning_rate_factors(config, params))

    return optax.chain(optimizer, optax.stateless(scaled))


def learning_rate_factors(config: Optim, params: Params) -> Params:
    """Returns the factor of each parameter's learning rate, from `layer_decay` and `head_lr_factor`.

    `layer_decay` is that of BEiT (Bao et al. 2022): the embeddings are layer 0, block i of n is layer i + 1, and all
    later parameters are layer n + 1. Layer l has the factor layer_decay ** (n + 1 - l). Frozen parameters are None.

    Raises:
        UserError: if an option needs encoder blocks or a head that the model does not have.
    """
    is_none = partial(operator.is_, None)
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params, is_leaf=is_none)}
    listed = [int(found[1]) + 1 for found in map(_BLOCK.match, leaves) if found]
    stacked = [len(leaf) for name, leaf in leaves.items() if name.startswith(_BLOCKS) and leaf is not None]
    depth = max(listed + stacked, default=0)
    if config.layer_decay != 1.0 and not depth:
        raise UserError(
            f"--optim.layer-decay must be 1 if no encoder block trains, got {config.layer_decay:g}. Set it to 1"
        )
    if config.head_lr_factor != 1.0 and not any(name.split("/")[0] in HEADS for name in leaves):
        raise UserError(
            f"--optim.head-lr-factor must be 1 for a model without a head, got {config.head_lr_factor:g}. Set it to 1"
        )

    def factor(path: tuple[Any, ...], leaf: Array) -> Any:
        name = leaf_name(path)
        if name.split("/")[0] in HEADS:
            return config.head_lr_factor
        if block := _BLOCK.match(name):
            return config.layer_decay ** (depth - int(block[1]))
        if name.startswith(_BLOCKS):
            powers = config.layer_decay ** np.arange(depth, 0, -1.0)
            return powers.astype(np.float32).reshape(-1, *(1,) * (leaf.ndim - 1))
        return config.layer_decay ** (depth + 1) if name.split("/")[0] in _EMBEDDINGS else 1.0

    return jax.tree.map_with_path(factor, params)


def is_matrix(params):
    """Returns True for the leaves with weight decay: kernels, but no biases, norms, position embeddings or tokens."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)
