"""Trains a preset's model in PyTorch with the same recipe, to compare its result with that of `python -m train.TASK`.

    python -m benchmarks.baselines.torch_training TASK [PRESET] [--weights torch|ours] [options of train.TASK]

The images, their order and their augmentation are those of `python -m train.TASK` with the same seed, computed by its
code. Model, optimizer, schedule, clipping, moving average and evaluation run in PyTorch. An option that this program
cannot follow is an error. Nothing is saved.

--weights torch: the LSTM and the autoencoder get torch's default initialization. The models with attention get timm's
for ViTs: weights of linear layers and positions from a truncated normal distribution with standard deviation 0.02,
biases 0. --weights ours: the initial weights of `python -m train.TASK` with the same seed. If the model has no dropout
and no sampled codes, the loss of each step then equals that of `train.TASK` up to rounding.

The autoencoder's random numbers differ from those of `train.aae`. There is one difference of the recipe: `train.aae`
uses the same sample of codes for the discriminator and the generator, and this program samples again.

Progress goes to stderr. The last line on stdout is JSON: the metrics on the test split under their names in
metrics.jsonl, the number of steps, and the seconds without the imports.
"""

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from benchmarks.baselines import torch_models
from benchmarks.baselines.torch_steps import AAEStep, merge_projections
from configs.base import AdamW
from train.classify import rows
from train.config.checks import check_ranges
from train.config.cli import parse, run_main
from train.config.options import options_of
from train.data import batches, eval_batches, open_source
from train.data.augment import augment
from train.data.normalize import normalized
from train.engine.setup import with_steps
from train.process.errors import UserError
from w2jax.convert import to_torch

TASKS = ("vit", "lstm", "mha", "aae")
# Options that may be set, by the start of their names. All others must keep their defaults, also those in FIXED.
GROUPS = ("data.", "run.", "mesh.", "optim.", "augment.", "model.category_discriminator.")
FIXED = (
    *("run.patience", "augment.mixup", "mesh.show"),
    *("optim.accumulate", "optim.layer_decay", "optim.head_lr_factor", "optim.freeze"),
)
OTHERS = ("label_smoothing", "normalize", "labeled_batch_size", "validation_split", "metric_examples")
SIZES = (
    *("num_classes", "patch_size", "embed_dim", "depth", "num_heads", "mlp_dim", "class_token", "hidden_size"),
    *("num_layers", "latent_size", "hidden_sizes", "image_shape"),
)

Losses = dict[str, torch.Tensor]


def check(config: Any) -> None:
    """Raises UserError if an option has a value that this program cannot follow."""
    allowed = {name: [option.value] for name, option in options_of(type(config)()).items()}
    allowed["model.pool"] = ["cls", "gap"]
    for part in ("encoder", "decoder", "discriminator"):  # They must share one rate.
        allowed[f"model.{part}.dropout"] = [config.model.encoder.dropout] if hasattr(config.model, "encoder") else []
    for name, option in options_of(config).items():
        is_free = name in OTHERS or (name.startswith(GROUPS) and name not in FIXED) or name.rpartition(".")[2] in SIZES
        if not is_free and option.value not in allowed[name]:
            values = " or ".join(map(str, allowed[name]))
            raise UserError(
                f"{option.flag} must be {values} for the PyTorch program, got {option.value}. "
                "Set it so, or choose another preset"
            )


def preparation(task: str, config: Any) -> Callable[[jax.Array], jax.Array]:
    """Returns the function from images in [0, 1] to the input of the task's model, as in train/TASK.py."""
    return {
        "vit": lambda images: normalized(images, config.normalize),
        "lstm": rows,
        "mha": lambda images: rows(2.0 * images - 1.0),
        "aae": lambda images: 2.0 * images - 1.0,
    }[task]


def to_tensor(task: str, inputs: jax.Array) -> torch.Tensor:
    x = torch.from_numpy(np.array(inputs))
    return x.permute(0, 3, 1, 2).contiguous() if task == "vit" else x


def build(task: str, model: Any, shape: Sequence[int]) -> nn.Module:
    """Returns the PyTorch version of our model, for prepared inputs of this shape."""
    if task == "aae":
        sizes = (part.hidden_sizes for part in (model.encoder, model.decoder, model.discriminator))
        return torch_models.AAE(model.encoder.dropout, math.prod(shape), model.encoder.latent_size, *sizes)
    options = {field.name: getattr(model, field.name) for field in fields(model)}
    if task == "vit":
        return torch_models.ViT(options, tuple(shape[:2]), shape[2])
    if task == "mha":
        return torch_models.AttentionClassifier(options, *shape)
    return torch_models.LSTMClassifier(options, shape[1])


def learning_rate_factor(step: int, config: AdamW, steps: int) -> float:
    """Returns the learning rate of a step divided by its peak: linear warm-up from 0, then cosine decay."""
    warmup = math.floor(round(config.warmup_fraction * steps, 6))  # 0.29 · 100 is 28.999999999999996 in binary.
    if step < warmup:
        return step / warmup
    cosine = math.cos(math.pi * (step - warmup) / (steps - warmup))
    return config.final_lr_fraction + (1 - config.final_lr_fraction) * (1 + cosine) / 2


class Optimizer:
    """AdamW with the options of a config: decay of weight matrices only, clipping, and a schedule."""

    def __init__(self, modules: Sequence[nn.Module], config: AdamW, steps: int):
        named = [each for module in modules for each in module.named_parameters()]
        self.parameters, self.clip = [x for _, x in named], config.clip
        matrices = [x for name, x in named if name.rpartition(".")[2].startswith("weight") and x.dim() > 1]
        others = [x for _, x in named if all(x is not matrix for matrix in matrices)]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, config.learning_rate, (config.b1, config.b2), fused=True)
        self.schedule = LambdaLR(self.adamw, partial(learning_rate_factor, config=config, steps=steps))

    def zero_grad(self) -> None:
        self.adamw.zero_grad()

    def step(self) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adamw.step()
        self.schedule.step()


class Classifier:
    """The training step of a classifier."""

    def __init__(self, model: nn.Module, config: Any):
        self.model, self.smoothing = model, config.label_smoothing
        self.optimizer = Optimizer([model], config.optim, config.run.steps)

    def __call__(self, x: torch.Tensor, labels: torch.Tensor) -> Losses:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), labels, label_smoothing=self.smoothing)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


class Autoencoder(AAEStep):
    """The training step of the autoencoder, with the optimizers of a config."""

    def __init__(self, model: Any, config: Any):
        self.model, optim, steps = model, config.optim, config.run.steps
        self.reconstruction = Optimizer([model.encoder, model.decoder], optim.reconstruction, steps)
        self.discriminator = Optimizer([model.discriminator], optim.discriminator, steps)
        self.generator = Optimizer([model.encoder], optim.generator, steps)

    def __call__(self, x: torch.Tensor, labels: torch.Tensor) -> Losses:
        return dict(zip(("reconstruction", "discriminator", "generator"), super().__call__(x), strict=True))


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Returns the moving average of a model from its initial weights. The decay after step n is at most n / (9 + n)."""

    def average(old: torch.Tensor, new: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        return torch.lerp(old, new, 1 - min(decay, float(count / (9 + count))))

    average_model = AveragedModel(model, avg_fn=average)
    average_model.update_parameters(model)  # The first call only copies, so `count` is 1 after the first step.
    return average_model


def test_values(task: str, model: Any, x: torch.Tensor, labels: torch.Tensor) -> Losses:
    """Returns the metrics of each test example."""
    if task == "aae":
        reconstructions = model.decoder(model.encoder(x)[0])
        return {"reconstruction": F.mse_loss(reconstructions, x.flatten(1), reduction="none").mean(1)}
    logits = model(x)
    right = (logits.argmax(1) == labels).float()
    return {"accuracy": right, "loss": F.cross_entropy(logits, labels, reduction="none")}


def fit(task: str, config: Any, weights: str, log: Callable[[int, Losses], None]) -> dict[str, float]:
    """Trains a model and returns its metrics on the test split, and the number of steps.

    Calls `log` with the number of steps and the losses after each step.
    """
    check(config)
    source = open_source(config.data, config.data.train_split, train=True)
    config, test = with_steps(config, len(source)), open_source(config.data, config.data.test_split)
    ours = importlib.import_module(f"train.{task}").make_task(config, source)  # Checks that model and data match.
    prepare, seed, size = preparation(task, config), config.run.seed, config.run.batch_size

    @jax.jit
    def training_inputs(images: jax.Array, step: int) -> jax.Array:
        images = images / 255.0
        if task != "aae":  # The autoencoder trains without augmentation.
            key, _ = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))  # As in train/engine/step.py.
            images, _ = augment(key, images, jnp.zeros((size, 1)), config.augment)
        return prepare(images)

    test_inputs = jax.jit(lambda images: prepare(images / 255.0))
    shape = jax.eval_shape(test_inputs, np.zeros((1, *source.image_shape), np.uint8)).shape[1:]
    torch.manual_seed(seed)
    model = build(task, config.model, shape)
    if weights == "ours":
        start = jax.jit(ours.init)()
        arrays = to_torch(config.model, {"params": start.params, "batch_stats": start.batch_stats or {}})
        model.load_state_dict({name: torch.from_numpy(x) for name, x in merge_projections(arrays).items()})
    elif task in ("vit", "mha"):
        torch_models.initialize_as_timm(model)

    step = Autoencoder(model, config) if task == "aae" else Classifier(model, config)
    average = None if config.optim.ema is None else averaged(model, config.optim.ema)
    for i, batch in enumerate(batches(source, size, seed, 0, config.run.steps, workers=config.data.workers)):
        x = to_tensor(task, training_inputs(batch["image"], i))
        losses = step(x, torch.from_numpy(batch["label"]).long())
        if average is not None:
            average.update_parameters(model)
        log(i + 1, losses)

    final, sums = (model if average is None else average.module).eval(), {}
    with torch.inference_mode():
        for batch in eval_batches(test, size, workers=config.data.workers):
            x, labels = to_tensor(task, test_inputs(batch["image"])), torch.from_numpy(batch["label"]).long()
            for name, value in test_values(task, final, x, labels).items():
                sums[name] = sums.get(name, 0.0) + float(value[torch.from_numpy(batch["mask"])].sum())
    return {**{name: total / len(test) for name, total in sums.items()}, "steps": config.run.steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("task", choices=TASKS, help="task, followed by the preset and options of train.TASK")
    parser.add_argument("--weights", choices=("torch", "ours"), default="torch", help="initial weights")
    own, others = parser.parse_known_args()
    started = time.perf_counter()
    config = parse(own.task, importlib.import_module(f"configs.{own.task}").PRESETS, others)
    check_ranges(config)

    def log(step: int, losses: Losses) -> None:
        if step % config.run.log_every == 0:
            shown = ", ".join(f"{name} {float(value):.4f}" for name, value in losses.items())
            print(f"step {step:,}: {shown}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    metrics = fit(own.task, config, own.weights, log)
    print(json.dumps({**metrics, "seconds": round(time.perf_counter() - started, 1)}))


if __name__ == "__main__":
    run_main(main)
