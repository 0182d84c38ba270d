"""python -m train.aae [PRESET]: trains an adversarial autoencoder in three or four phases per step.

    python -m train.aae mixture_labels --run.seed 1         # a preset
    python -m train.aae --run.steps 3000 --run.dir runs/short

Makhzani et al. 2015, arXiv 1511.05644: section 2 (reconstruction, discriminator, generator) and 5 (classification).
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree

from configs.aae import PRESETS, Config
from train.config.cli import parse, run_main
from train.data import Source
from train.data.augment import augment
from train.data.labels import UNKNOWN, known_labels
from train.engine.main import train_program
from train.engine.optim import make_optimizer
from train.engine.sharding import gathered_by_layer
from train.engine.step import nonfinite, squared_norms, update_ema
from train.evaluation.aae_apply import (
    apply_eval,
    make_latent,
    model_range_to_unit,
    pixels_to_model_range,
    sample_images,
)
from train.evaluation.aae_figures import make_figures
from train.evaluation.aae_metrics import METRIC_DESCRIPTIONS, MIN_EXAMPLES, make_final_metrics
from train.process.errors import UserError
from train.task import NONFINITE, Batch, Metrics, Params, State, Task
from w2jax.aae import AAE, Code
from w2jax.priors import sample_prior

# The phases of a step in their order, each with the sub-trees of the parameters that it updates.
PHASES = {
    "reconstruction": ("encoder", "decoder", "heads"),
    "discriminator": ("discriminator", "category_discriminator"),
    "generator": ("encoder",),
    "classification": ("encoder",),
}
KEYS = (
    "reconstruct", "encode", "prior", "category", "discriminate", "deceive", "choose", "augment", "classify", "agree",
)  # fmt: skip

Stats = PyTree[Array]  # running statistics of batch norm
Keys = dict[str, Key[Array, ""]]
Outcome = tuple[Float[Array, ""], tuple[Metrics, Stats]]


def make_task(config: Config, source: Source) -> Task:
    """The task of training an adversarial autoencoder on images like those of `source`.

    Raises:
        UserError: model, labels and images do not match.
    """
    check(config, source)
    model, losses = config.model, Losses(config, source)
    teaches = config.labels == "categories" or config.consistency > 0.0
    phases = [name for name in PHASES if name != "classification" or teaches]
    optimizers = {name: make_optimizer(getattr(config.optim, name), config.run.steps) for name in phases}

    def phase_params(params: Params, phase: str) -> dict[str, Params]:
        return {name: params[name] for name in PHASES[phase] if name in params}

    def init() -> State:
        key = jax.random.key(config.run.seed)
        images, label = jnp.zeros((1, *source.image_shape)), jnp.zeros((1,), jnp.int32)
        condition = losses.condition(label if config.labels == "prior" else None)
        variables = model.init(key, images, losses.decoder_labels(label), condition)
        params = variables["params"]
        opt_state = {name: optimizer.init(phase_params(params, name)) for name, optimizer in optimizers.items()}
        ema = None if config.optim.ema is None else jax.tree.map(jnp.copy, params)
        return State(jnp.zeros((), jnp.int32), params, opt_state, ema, variables.get("batch_stats", {}))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)
        keys = dict(zip(KEYS, jax.random.split(key, len(KEYS)), strict=True))
        params, opt_state, stats, metrics = state.params, dict(state.opt_state), state.batch_stats, {}
        squares = jax.tree.map(lambda _: jnp.zeros(()), params)  # squared norm of each gradient, summed over all phases
        for name in phases:

            def loss(part, name=name, params=params, stats=stats):
                return getattr(losses, name)({**params, **part}, stats, batch, keys)

            part = phase_params(params, name)
            (value, (extra, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(part)
            squares |= jax.tree.map(jnp.add, {key: squares[key] for key in part}, squared_norms(gradients))
            updates, opt_state[name] = optimizers[name].update(gradients, opt_state[name], part)
            params = {**params, **cast(dict, optax.apply_updates(part, updates))}
            metrics |= {name: value, **extra}
        metrics[NONFINITE] = nonfinite(squares)
        ema = update_ema(state, params, config.optim.ema)
        return State(state.step + 1, params, opt_state, ema, stats), metrics

    def evaluate(state: State, batch: Batch) -> dict[str, Float[Array, "B"]]:
        images, y = pixels_to_model_range(model, batch["image"]), losses.decoder_labels(batch["label"])

        def encode_and_decode(aae: AAE):
            code = aae.encode(images)
            return code, aae.decode(code.z, code.y if y is None else y)

        code, reconstructions = apply_eval(model, state, encode_and_decode)
        values = {"reconstruction": jnp.square(reconstructions - images).mean(axis=(1, 2, 3))}
        if config.labels == "categories":
            values["accuracy"] = (code.logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        return values

    def reconstruct(state: State, images: Array) -> Float[Array, "B h w C"]:
        return model_range_to_unit(
            model, apply_eval(model, state, lambda aae: aae.reconstruct(pixels_to_model_range(aae, images)))
        )

    def sample(state: State, key: Key[Array, ""], count: int) -> Float[Array, "B h w C"]:
        return sample_images(config, source.num_classes, state, count, key)

    best, mode = ("accuracy", "max") if config.labels == "categories" else ("reconstruction", "min")
    return Task(
        init,
        step,
        evaluate,
        figures=make_figures(config, source.num_classes),
        best=best,
        best_mode=mode,
        final_metrics=make_final_metrics(config, source),
        min_examples=MIN_EXAMPLES,
        metric_descriptions=METRIC_DESCRIPTIONS,
        figure_examples=2000,
        # A decoder with the label as input cannot reconstruct an image without a label.
        reconstruct=None if config.labels == "decoder" else reconstruct,
        sample=sample,
        latent=make_latent(config, source.label_names),
    )


class Losses:
    """The loss of each phase: the method with its name returns (loss, (metrics, running statistics of batch norm)).

    Only the reconstruction phase updates the running statistics. The other phases normalize with batch statistics.
    """

    def __init__(self, config: Config, source: Source):
        """Reads no labels yet: the labels of the training split are read when a step is traced."""
        self.config, self.model, self.source, self.num_classes = config, config.model, source, source.num_classes

    @cached_property
    def known(self) -> Int[np.ndarray, "N"] | None:
        """The label of each training example, `UNKNOWN` if it is not known; None: all labels are known."""
        count = self.config.num_labels
        return None if count is None else known_labels(self.source, count, self.config.run.seed)

    @cached_property
    def labeled(self) -> dict[str, np.ndarray] | None:
        """The training examples with a known label; None: all labels are known."""
        return None if self.known is None else self.source.gather(np.flatnonzero(self.known != UNKNOWN))

    def reconstruction(self, params: Params, stats: Stats, batch: Batch, keys: Keys) -> Outcome:
        """Mean squared error of the pixels, plus a penalty for cluster heads that are too close to each other."""
        images, y = pixels_to_model_range(self.model, batch["image"]), self.decoder_labels(batch["label"])

        def reconstruct(aae: AAE):
            code = aae.encode(images, train=True)
            return aae.decode(code.z, code.y if y is None else y, train=True)

        reconstructions, stats = self.run(params, stats, keys["reconstruct"], reconstruct)
        loss = jnp.square(reconstructions - images).mean()
        metrics = {"reconstruction": loss}
        if self.config.head_distance:
            metrics["head_distance_loss"] = head_distance_loss(params["heads"]["kernel"], self.config.head_distance)
        return sum(metrics.values(), jnp.zeros(())), (metrics, stats)

    def discriminator(self, params: Params, stats: Stats, batch: Batch, keys: Keys) -> Outcome:
        """Cross-entropy of separating prior samples from codes, half of each; also for categories, if there are any."""
        model, count = self.model, len(batch["image"])
        code, labels = self.game_code(params, stats, batch, keys), self.label(batch)
        z = sample_prior(
            keys["prior"], model.prior, count, code.z.shape[1], model.prior_scale, labels, model.prior_classes
        )
        y = None
        if code.y is not None:
            kinds = code.y.shape[1]
            y = nn.one_hot(jax.random.randint(keys["category"], (count,), 0, kinds), kinds)
            y = jnp.concatenate([y, code.y])
        labels = None if labels is None else jnp.concatenate([labels, labels])
        logits = self.discriminator_logits(params, keys["discriminate"], jnp.concatenate([z, code.z]), y, labels)
        is_real = jnp.arange(2 * count) < count
        loss = optax.sigmoid_binary_cross_entropy(logits, is_real).mean(axis=1).sum()
        return loss, ({"discriminator_accuracy": ((logits > 0.0) == is_real).mean()}, stats)

    def generator(self, params: Params, stats: Stats, batch: Batch, keys: Keys) -> Outcome:
        """Cross-entropy between the discriminators' output for the encoder's codes and the target "prior"."""
        code = self.game_code(params, stats, batch, keys)
        logits = self.discriminator_logits(params, keys["deceive"], code.z, code.y, self.label(batch))
        return optax.sigmoid_binary_cross_entropy(logits, jnp.ones(())).mean(axis=1).sum(), ({}, stats)

    def classification(self, params: Params, stats: Stats, batch: Batch, keys: Keys) -> Outcome:
        """Cross-entropy of the categories with the labels, and with the categories of the unaugmented image.

        Each term is used only if the config turns it on.
        """
        loss, metrics = jnp.zeros(()), {}
        if self.config.labels == "categories":
            images, labels = batch["image"], batch["label"]
            if self.labeled is not None:
                shape = (self.config.labeled_batch_size,)
                chosen = jax.random.randint(keys["choose"], shape, 0, len(self.labeled["label"]))
                images, labels = (jnp.asarray(self.labeled[name])[chosen] for name in ("image", "label"))
            logits = self.encode(params, stats, keys["classify"], self.augmented(keys["augment"], images)).logits
            loss += optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            metrics["accuracy"] = (logits.argmax(-1) == labels).mean()
        if self.config.consistency:
            clean: Any = self.game_code(params, stats, batch, keys).y
            augment_key, key = jax.random.split(keys["agree"])
            logits = self.encode(params, stats, key, self.augmented(augment_key, batch["image"])).logits
            loss += self.config.consistency * optax.softmax_cross_entropy(logits, jax.lax.stop_gradient(clean)).mean()
        return loss, (metrics, stats)

    def encode(self, params: Params, stats: Stats, key: Key[Array, ""], images: Float[Array, "B h w C"]) -> Any:
        """The codes of images, computed in training mode."""
        return self.run(params, stats, key, lambda aae: aae.encode(images, train=True))[0]

    def game_code(self, params: Params, stats: Stats, batch: Batch, keys: Keys) -> Code:
        """The batch's codes in the adversarial phases. All use the same random key, so XLA computes the codes once."""
        return self.encode(params, stats, keys["encode"], pixels_to_model_range(self.model, batch["image"]))

    def discriminator_logits(
        self, params: Params, key: Key[Array, ""], z: Array, y: Array | None, labels: Array | None
    ) -> Array:
        """The logits of the discriminators [1 or 2, N]: for z, and also for y if it is not None."""
        noise_key, key = jax.random.split(key)

        def discriminate(aae: AAE):
            logits = [aae.discriminate(z, self.condition(labels), train=True)]
            if y is not None:
                noise = self.config.category_noise * jax.random.normal(noise_key, y.shape)
                logits.append(aae.discriminate_category(y + noise, train=True))
            return jnp.stack(logits)

        return self.run(params, {}, key, discriminate)[0]

    def run(self, params: Params, stats: Stats, key: Key[Array, ""], method: Callable[[AAE], Any]) -> Any:
        """Applies a method in training mode; returns its result and the updated running statistics."""
        dropout_key, sample_key = jax.random.split(key)
        variables = {"params": gathered_by_layer(params), "batch_stats": stats}
        rngs = {"dropout": dropout_key, "sample": sample_key}
        out, changed = self.model.apply(variables, method=method, rngs=rngs, mutable=["batch_stats"])
        return out, changed.get("batch_stats", stats)

    def augmented(self, key: Key[Array, ""], images: Array) -> Float[Array, "B h w C"]:
        """Augmented images in the model's pixel range."""
        labels = jnp.zeros((len(images), 1))  # Unused, because mixup is off.
        return pixels_to_model_range(self.model, 255.0 * augment(key, images / 255.0, labels, self.config.augment)[0])

    def label(self, batch: Batch) -> Int[Array, "B"] | None:
        """The label of each example (`UNKNOWN` if it is not known); None if the prior does not depend on labels."""
        if self.config.labels != "prior":
            return None
        return batch["label"] if self.known is None else jnp.asarray(self.known)[batch["index"]]

    def condition(self, labels: Int[Array, "B"] | None) -> Float[Array, "B L"] | None:
        """Labels as the discriminator's input: one-hot, with an extra class for unknown labels."""
        if labels is None:
            return None
        return nn.one_hot(jnp.where(labels == UNKNOWN, self.num_classes, labels), self.num_classes + 1)

    def decoder_labels(self, labels: Int[Array, "B"]) -> Float[Array, "B V"] | None:
        """One-hot labels as the decoder's input; None if the decoder gets no labels."""
        return nn.one_hot(labels, self.num_classes) if self.config.labels == "decoder" else None


def head_distance_loss(heads: Float[Array, "K Z"], distance: float) -> Float[Array, ""]:
    """The mean of max(0, distance − |first − second|) over all pairs of cluster heads (section 7)."""
    first, second = np.triu_indices(len(heads), 1)
    apart = optax.safe_norm(heads[first] - heads[second], 1e-6, axis=-1)
    return jnp.maximum(distance - apart, 0.0).mean()


def check(config: Config, source: Source) -> None:
    """Raises UserError if model, labels and images do not match."""
    model, labels = config.model, config.labels
    ours, theirs = model.decoder.image_shape, source.image_shape
    if ours != theirs:
        raise UserError(
            f"--model.decoder.image-shape must be the shape of the images of dataset {source.name}, "
            f"{' '.join(map(str, theirs))}, got {' '.join(map(str, ours))}. Add --data.image-size {ours[0]} {ours[1]} "
            f"or --model.decoder.image-shape {' '.join(map(str, theirs))}"
        )
    classes, categories = source.num_classes, model.encoder.categories
    if labels == "prior" and model.prior_classes != classes:
        raise UserError(
            f"--model.prior-classes must be {classes}, the number of classes of dataset {source.name}, "
            f"got {model.prior_classes}. Set --model.prior-classes {classes}"
        )
    if labels == "categories" and categories != classes:
        raise UserError(
            f"--model.encoder.categories must be {classes}, the number of classes of dataset {source.name}, "
            f"got {categories}. Set --model.encoder.categories {classes}"
        )
    if labels == "categories" and config.num_labels == 0:
        raise UserError("--num-labels must be above 0 for --labels categories, got 0. Raise it, or add --labels unused")
    if labels == "decoder" and config.num_labels is not None:
        raise UserError(
            f"--num-labels must be None for --labels decoder, got {config.num_labels}. Leave it out: the decoder needs "
            "the label of every image"
        )
    if labels == "decoder" and categories:
        raise UserError(
            f"--model.encoder.categories must be 0 for --labels decoder, got {categories}. "
            "Set --model.encoder.categories 0"
        )
    if labels == "unused" and config.num_labels is not None:
        raise UserError("--num-labels has no effect with --labels unused. Choose --labels prior or --labels categories")
    if config.consistency and not categories:
        raise UserError(
            "--model.encoder.categories must be above 0 for --consistency, got 0. "
            f"Set --model.encoder.categories {classes}"
        )
    if config.head_distance and not model.cluster_heads:
        raise UserError("--head-distance needs cluster heads. Add --model.cluster-heads")
    if config.augment.mixup:
        raise UserError(
            f"--augment.mixup must be 0 for an autoencoder, got {config.augment.mixup}. Leave it out: mixed images "
            "have no category"
        )


def main() -> None:
    train_program(parse("aae", PRESETS), make_task)


if __name__ == "__main__":
    run_main(main)
