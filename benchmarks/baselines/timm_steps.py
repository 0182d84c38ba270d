"""timm's ViTs (`pip install timm`), with the same parameters and images."""

from functools import partial

import timm

from benchmarks.baselines.torch_steps import images, inference, vit_training
from benchmarks.inputs import Arrays
from benchmarks.worker import Workload

NAMES = {
    "vit_ti16": "vit_tiny_patch16_224",
    "vit_s16": "vit_small_patch16_224",
    "vit_b16": "vit_base_patch16_224",
}


def vit_step(model: str, inputs: Arrays) -> Workload:
    return vit_training(timm.create_model(NAMES[model]), inputs)


def vit_inference(model: str, inputs: Arrays) -> Workload:
    return inference(timm.create_model(NAMES[model]), 2 * images(inputs) - 1, inputs)


vit_s16_step, vit_ti16_step = (partial(vit_step, name) for name in ("vit_s16", "vit_ti16"))
vit_s16_inference, vit_b16_inference = (partial(vit_inference, name) for name in ("vit_s16", "vit_b16"))
