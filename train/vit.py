"""python -m train.vit [PRESET]: a Vision Transformer that classifies images."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange, reduce, repeat

from configs.vit import PRESETS, Config
from train.cli import parse, run_main
from train.data import Source
from train.data.augment import augment
from train.errors import UserError
from train.optim import make_optimizer
from train.task import Task, one_loss_init, one_loss_step


def make_task(config: Config, source: Source) -> Task:
    """The task of classifying images like those of `source`."""
    model = config.model
    if model.num_classes != source.num_classes:
        raise UserError(
            f"dataset {source.name} has {source.num_classes} classes, the model {model.num_classes}; "
            f"add --model.num-classes {source.num_classes}"
        )
    optimizer = make_optimizer(config.optim, config.run.steps)

    def forward(params, images, **options) -> Any:
        return model.apply({"params": params}, 2.0 * images - 1.0, **options)

    def init():
        images = jnp.zeros((1, *source.image_shape))
        params = model.init(jax.random.key(config.run.seed), images)["params"]
        return one_loss_init(params, optimizer, config.optim)

    def loss(params, batch, key):
        augment_key, dropout_key = jax.random.split(key)
        targets = jax.nn.one_hot(batch["label"], model.num_classes)
        images, targets = augment(augment_key, batch["image"] / 255.0, targets, config.augment)
        targets = optax.smooth_labels(targets, config.label_smoothing)
        logits, _ = forward(params, images, train=True, rngs={"dropout": dropout_key})
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        return optax.softmax_cross_entropy(logits, targets).mean(), {"accuracy": accuracy}

    def evaluate(state, batch):
        logits, _ = forward(state.eval_params, batch["image"] / 255.0)
        return {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
        }

    def figures(state, batch):
        images = batch["image"] / 255.0
        _, attentions = forward(state.eval_params, images, return_attention=True)
        return {
            "attention of the last block (image, then each head)": attention_grid(
                images, attentions[-1], model.patch_size, model.class_token
            )
        }

    return Task(init, one_loss_step(loss, optimizer, config.optim, config.run.seed), evaluate, figures)


def attention_grid(images, weights, patch_size: int, class_token: bool):
    """One row an example [B, 1 + H, h, w]: the image in gray, then where each head of a block looked, brightest = 1.

    That is the class token's attention to the patches, or without one the mean attention that a patch receives.
    """
    height, width = images.shape[1] // patch_size, images.shape[2] // patch_size
    looked = weights[:, :, 0] if class_token else reduce(weights, "b h t s -> b h s", "mean")
    looked = looked[..., -height * width :]
    looked = looked / looked.max(axis=-1, keepdims=True)
    maps = repeat(looked, "b h (n m) -> b h (n p1) (m p2)", n=height, p1=patch_size, p2=patch_size)
    gray = rearrange(images.mean(axis=-1), "b h w -> b 1 h w")
    return jnp.concatenate([gray, maps], axis=1)


def main() -> None:
    config = parse("vit", PRESETS)
    from train.loop import fit  # Imported late: --help and a mistake in the options should not wait for orbax.

    fit(config, make_task)


if __name__ == "__main__":
    run_main(main)
