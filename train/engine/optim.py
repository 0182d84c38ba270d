"""Builds the optimizer from its config in configs/base.py."""

import jax
import optax

from configs.base import AdamW


def make_schedule(config: AdamW, steps: int) -> optax.Schedule:
    """Returns the learning rate schedule: linear warm-up from 0, then cosine decay to the final value."""
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, int(config.warmup_fraction * steps), max(steps, 1), end_value=peak * config.final_lr_fraction
    )


def make_optimizer(config: AdamW, steps: int) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov & Hutter 2019), with gradients clipped by global norm first (Pascanu et al. 2013)."""
    adamw = optax.adamw(
        make_schedule(config, steps), config.b1, config.b2, weight_decay=config.weight_decay, mask=is_matrix
    )
    return adamw if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), adamw)


def is_matrix(params):
    """Returns True for the leaves with weight decay: kernels, but no biases, norms, position embeddings or tokens."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)
