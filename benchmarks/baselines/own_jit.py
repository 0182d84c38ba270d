"""Our models in a user's own program: `jax.jit`, an optax optimizer, and no part of `train`.

The program has one device, or for the functions that end in `_split` one for each core, with micro-batches.
"""

import os
from functools import partial

import jax
import optax

from benchmarks.baselines.with_jax import images, inferred, trained_by, training
from benchmarks.inputs import Arrays, build, our_params
from benchmarks.worker import Workload
from w2jax.micro_batches import in_micro_batches


def step_of(model: str, optimizer: optax.GradientTransformation, x: jax.Array, inputs: Arrays, *in_parts) -> Workload:
    """Returns a classifier's train step for the images or sequences x."""
    module, _, _ = build(model)

    def logits(params, x):
        return module.apply({"params": params}, x)[0]

    return trained_by(*training(logits, our_params(inputs), x, inputs, optimizer, *in_parts))


def inference(model: str, x: jax.Array, inputs: Arrays) -> Workload:
    module, _, _ = build(model)
    return inferred(lambda variables, x: module.apply(variables, x)[0], {"params": our_params(inputs)}, x)


def split_cpu() -> None:
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def lstm_step(inputs: Arrays, *in_parts) -> Workload:
    return step_of("lstm", optax.adam(1e-3), images(inputs)[..., 0], inputs, *in_parts)


def lstm_split_step(inputs: Arrays) -> Workload:
    split_cpu()
    return lstm_step(inputs, in_micro_batches)


def vit_training(model: str, inputs: Arrays, *in_parts) -> Workload:
    return step_of(model, optax.adamw(1e-3, weight_decay=0.01), 2 * images(inputs) - 1, inputs, *in_parts)


def vit_split_training(model: str, inputs: Arrays) -> Workload:
    split_cpu()
    return vit_training(model, inputs, in_micro_batches)


def vit_inference(model: str, inputs: Arrays) -> Workload:
    return inference(model, 2 * images(inputs) - 1, inputs)


vit_step, vit_s16_step, vit_ti16_step = (partial(vit_training, name) for name in ("vit", "vit_s16", "vit_ti16"))
vit_split_step, vit_ti16_split_step = (partial(vit_split_training, name) for name in ("vit", "vit_ti16"))
vit_s16_inference, vit_b16_inference = (partial(vit_inference, name) for name in ("vit_s16", "vit_b16"))
