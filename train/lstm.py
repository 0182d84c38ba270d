"""python -m train.lstm [PRESET]: an LSTM that reads an image row by row, to classify it."""

import jax.numpy as jnp
from einops import repeat
from flax import linen as nn

from configs.lstm import PRESETS, Config
from train.classify import beside, classification_task, rows
from train.cli import parse, run_main
from train.data import Source
from train.task import Grid, Task


def make_task(config: Config, source: Source) -> Task:
    """The task of classifying images like those of `source`, each read as a sequence of its rows."""

    def figures(forward, images):
        _, steps = forward(images, return_steps=True)
        caption = "The image, then the probability of each class (across) after each row (down) was read."
        return {"beliefs": Grid(belief_grid(images, nn.softmax(steps)), caption)}

    return classification_task(config, source, config.model, rows, figures)


def belief_grid(images, probabilities):
    """One row an example [B, 2, h, W]: the image in gray, then the probabilities [h, V], each class equally wide.

    W is the least multiple of V that the image fits into; the image stands in its middle.
    """
    width, classes = images.shape[2], probabilities.shape[-1]
    wide = -(-width // classes)
    margin = wide * classes - width
    framed = jnp.pad(images, ((0, 0), (0, 0), (margin // 2, margin - margin // 2), (0, 0)))
    return beside(framed, repeat(probabilities, "b h v -> b 1 h (v n)", n=wide))


def main() -> None:
    config = parse("lstm", PRESETS)
    from train.loop import fit  # Imported late: --help and a mistake in the options should not wait for orbax.

    fit(config, make_task)


if __name__ == "__main__":
    run_main(main)
