"""python -m train.mha [PRESET]: multi-head attention over the rows of an image, to classify it."""

import jax

from configs.mha import PRESETS, Config
from train.classify import beside, classification_task, rows
from train.config.cli import parse, run_main
from train.data import Source
from train.engine.main import train_program
from train.task import Grid, Task


def make_task(config: Config, source: Source) -> Task:
    """The task of classifying images like those of `source`, each read as a sequence of its rows."""

    def figures(forward, params, images):
        _, attentions = forward(images, return_attention=True)
        caption = "Attention of the last block from each row (down) to each row (across): the image, then each head."
        return {"attention": Grid(row_attention_grid(images, attentions[-1]), caption)}

    return classification_task(config, source, config.model, lambda images: rows(2.0 * images - 1.0), figures)


def row_attention_grid(images, weights):
    """One row an example [B, 1 + H, h, w]: the image in gray, then each head's weights [h, h] as wide as it.

    Line t of a map is what row t of the image attends to; the brightest of a map = 1.
    """
    weights = weights / weights.max(axis=(-2, -1), keepdims=True)
    return beside(images, jax.image.resize(weights, (*weights.shape[:2], *images.shape[1:3]), "nearest"))


def main() -> None:
    train_program(parse("mha", PRESETS), make_task)


if __name__ == "__main__":
    run_main(main)
