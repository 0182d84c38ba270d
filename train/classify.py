"""What the tasks that classify images share: all of a task but how its model reads an image and what it shows of it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Float

from configs.base import ClassifierConfig
from train.data import Source
from train.data.augment import augment
from train.engine.optim import make_optimizer
from train.engine.sharding import gathered_by_layer
from train.process.errors import UserError
from train.task import Params, Picture, Task, init_state, make_train_step

Images = Float[Array, "B h w C"]
# (images in [0, 1], further arguments of the model) -> what the model returns
Forward = Callable[..., tuple[Array, Any]]


class Classifier(Protocol):
    """A Linen module that returns logits [B, V], and whatever it has to show."""

    @property
    def num_classes(self) -> int: ...

    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def apply(self) -> Callable[..., Any]: ...


def classification_task(
    config: ClassifierConfig,
    source: Source,
    model: Classifier,
    prepare: Callable[[Images], Array],
    figures: Callable[[Forward, Params, Images], Mapping[str, Picture]],
) -> Task:
    """The task of classifying images like those of `source`: cross-entropy on augmented images.

    Args:
        config: all but the model.
        source: the training images.
        model: what is trained.
        prepare: makes the model's input of images in [0, 1].
        figures: what the report draws of some test images, given the trained model as a function of images, and its
            parameters.

    Raises:
        UserError: if the model's number of classes is not that of the source.
    """
    if model.num_classes != source.num_classes:
        raise UserError(
            f"dataset {source.name} has {source.num_classes} classes, the model {model.num_classes}; "
            f"add --model.num-classes {source.num_classes}"
        )
    optimizer = make_optimizer(config.optim, config.run.steps)

    def forward(params, images, **options):
        return model.apply({"params": gathered_by_layer(params)}, prepare(images), **options)

    def init(start: Params | None = None):
        images = jnp.zeros((1, *source.image_shape))
        params = model.init(jax.random.key(config.run.seed), prepare(images))["params"]
        return init_state({**params, **(start or {})}, optimizer, config.optim)

    def augmented(batch, key):
        targets = jax.nn.one_hot(batch["label"], model.num_classes)
        images, targets = augment(key, batch["image"] / 255.0, targets, config.augment)
        targets = optax.smooth_labels(targets, config.label_smoothing)
        return {"image": images, "label": batch["label"], "target": targets}

    def loss(params, batch, key):
        logits, _ = forward(params, batch["image"], train=True, rngs={"dropout": key})
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        return optax.softmax_cross_entropy(logits, batch["target"]).mean(), {"accuracy": accuracy}

    def evaluate(state, batch):
        logits, _ = forward(state.eval_params, batch["image"] / 255.0)
        return {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
        }

    def draw(state, batch):
        params = state.eval_params
        return figures(lambda images, **options: forward(params, images, **options), params, batch["image"] / 255.0)

    def probabilities(state, images):
        return jax.nn.softmax(forward(state.eval_params, images / 255.0)[0])

    micro_batch = config.mesh.cpu_micro_batch
    step = make_train_step(loss, optimizer, config.optim, config.run.seed, augmented, micro_batch)
    return Task(init, step, evaluate, draw, probabilities=probabilities)


def rows(images: Images) -> Float[Array, "B h I"]:
    """Each image as the sequence of its rows, from top to bottom."""
    return rearrange(images, "b h w c -> b h (w c)")


def beside(images: Images, maps: Float[Array, "B K h w"]) -> Float[Array, "B 1+K h w"]:
    """One row of cells an example: the image in gray, then its maps."""
    gray = rearrange(images.mean(axis=-1), "b h w -> b 1 h w")
    return jnp.concatenate([gray, maps], axis=1)
