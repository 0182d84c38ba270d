"""Training of image classifiers, shared by several tasks. A task adds its input format and its pictures."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Float

from configs.base import ClassifierConfig
from train.data import Source
from train.data.augment import augment
from train.data.labels import balanced_weights
from train.engine.optim import make_optimizer
from train.engine.sharding import gathered_by_layer
from train.engine.step import init_state, make_train_step
from train.process.errors import UserError
from train.task import Batch, Params, Picture, State, Task

Images = Float[Array, "B h w C"]
# (images in [0, 1], other arguments of the model) -> the model's outputs
Forward = Callable[..., tuple[Array, Any]]


class Classifier(Protocol):
    """A Linen module that returns (logits [B, V], any other output, which the pictures can use)."""

    @property
    def num_classes(self) -> int: ...

    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def apply(self) -> Callable[..., Any]: ...


@runtime_checkable
class HasHead(Protocol):
    """A classifier that can compute the inputs of its heads, and its logits from them, as `ViT` does."""

    @property
    def head_inputs(self) -> Callable[..., Float[Array, "B K D"]]: ...

    @property
    def classify(self) -> Callable[..., Float[Array, "B V"]]: ...


def classification_task(
    config: ClassifierConfig,
    source: Source,
    model: Classifier,
    prepare: Callable[[Images], Array],
    figures: Callable[[Forward, Params, Images], Mapping[str, Picture]],
    overlay: Callable[[Forward, Images], Float[Array, "B h w 3"]] | None = None,
) -> Task:
    """The task of training a classifier on images like those of `source`, with cross-entropy on augmented images.

    Args:
        config: all options except the model.
        source: the training images.
        model: the model to train.
        prepare: turns images in [0, 1] into the model's input.
        figures: makes the report's pictures from the trained model (a function of images), its parameters and some test
            images in [0, 1].
        overlay: draws the trained model's attention in red over images in [0, 1]; None if the model has no attention.

    Raises:
        UserError: the model and the source have different numbers of classes.
    """
    if model.num_classes != source.num_classes:
        raise UserError(
            f"--model.num-classes must be {source.num_classes}, the number of classes of dataset {source.name}, "
            f"got {model.num_classes}. Set --model.num-classes {source.num_classes}"
        )
    optimizer = make_optimizer(config.optim, config.run.steps)

    def forward(params, images, **options):
        return model.apply({"params": gathered_by_layer(params)}, prepare(images), **options)

    def init(initial: Params | None = None):
        images = jnp.zeros((1, *source.image_shape))
        params = model.init(jax.random.key(config.run.seed), prepare(images))["params"]
        return init_state({**params, **(initial or {})}, optimizer, config.optim)

    @cache  # A step is traced more than once.
    def class_weights():
        return balanced_weights(source)  # Not read for predictions, which have no training split.

    headed = model if isinstance(model, HasHead) else None

    def logits_of(params, batch: Batch, **options) -> Float[Array, "B V"]:
        """Returns the logits of images in [0, 1], or of the features of images."""
        if headed is not None and "features" in batch:
            return headed.classify({"params": gathered_by_layer(params)}, batch["features"])
        return forward(params, batch["image"], **options)[0]

    def augmented(batch, key):
        targets = jax.nn.one_hot(batch["label"], model.num_classes)
        if "image" in batch:
            images, targets = augment(key, batch["image"] / 255.0, targets, config.augment)
            batch = {**batch, "image": images}
        smoothed = optax.smooth_labels(targets, config.label_smoothing)
        targets = (
            smoothed if config.class_weights is None else weighted(smoothed, targets, jnp.asarray(class_weights()))
        )
        return {**{name: x for name, x in batch.items() if name != "index"}, "target": targets}

    def loss(params, batch, key):
        logits = logits_of(params, batch, train=True, rngs={"dropout": key})
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        return optax.softmax_cross_entropy(logits, batch["target"]).mean(), {"accuracy": accuracy}

    def evaluate(state, batch):
        logits = logits_of(state.eval_params, scaled(batch))
        values = {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
        }
        if model.num_classes >= 10:
            _, likely = jax.lax.top_k(logits, 5)
            values["top5_accuracy"] = (likely == batch["label"][:, None]).any(-1).astype(jnp.float32)
        return values

    def trained(state: State) -> Forward:
        return lambda images, **options: forward(state.eval_params, images, **options)

    def draw(state, batch):
        return figures(trained(state), state.eval_params, batch["image"] / 255.0)

    def probabilities(state, batch):
        return jax.nn.softmax(logits_of(state.eval_params, scaled(batch)))

    def features(model: HasHead, state, images):
        return model.head_inputs({"params": gathered_by_layer(state.params)}, prepare(images / 255.0), train=True)

    seed, micro_batch = config.run.seed, config.mesh.cpu_micro_batch
    step = make_train_step(loss, optimizer, config.optim, seed, augmented, micro_batch)
    shown = None if overlay is None else lambda state, images: overlay(trained(state), images / 255.0)
    computed = None if headed is None else partial(features, headed)
    return Task(init, step, evaluate, draw, probabilities=probabilities, features=computed, overlay=shown)


def scaled(batch: Batch) -> Batch:
    """Returns a batch whose images, if it has any, are in [0, 1]."""
    return {**batch, "image": batch["image"] / 255.0} if "image" in batch else batch


def weighted(
    smoothed: Float[Array, "B V"], targets: Float[Array, "B V"], weights: Float[Array, "V"]
) -> Float[Array, "B V"]:
    """Returns targets whose mean cross-entropy over the batch is the loss with these weights of the classes.

    With smoothed targets s, targets t before smoothing and weights w of classes k, the loss of examples i is
    Σᵢₖ wₖ sᵢₖ (-log pᵢₖ) / Σᵢₖ wₖ tᵢₖ. For labels this is torch's `CrossEntropyLoss(weight=…, label_smoothing=…)`.
    For soft targets of mixup, torch divides by the number of examples instead.
    """
    return smoothed * weights / (targets @ weights).mean()


def rows(images: Images) -> Float[Array, "B h I"]:
    """Converts each image to the sequence of its rows, from top to bottom."""
    return rearrange(images, "b h w c -> b h (w c)")


def beside(images: Images, maps: Float[Array, "B K h w"]) -> Float[Array, "B 1+K h w"]:
    """One row of cells per example: the gray image, followed by its maps."""
    gray = rearrange(images.mean(axis=-1), "b h w -> b 1 h w")
    return jnp.concatenate([gray, maps], axis=1)
