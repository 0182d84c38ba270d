"""python -m train.mha [PRESET]: trains multi-head attention that classifies an image by its rows.

python -m train.mha mnist --run.seed 1                  # a preset
python -m train.mha --model.num-heads 8 --run.dir runs/eight-heads
"""

import jax

from configs.mha import PRESETS, Config
from train.classify import beside, classification_task, rows
from train.config.cli import parse, run_main
from train.data import Source
from train.engine.main import train_program
from train.task import Grid, Task


def make_task(config: Config, source: Source) -> Task:
    """The task of training an attention classifier on images like those of `source`. An image is a sequence of rows."""

    def figures(forward, params, images):
        _, attentions = forward(images, return_attention=True)
        caption = (
            f"The image, then the attention of each head in block {len(attentions)} of {len(attentions)}, the last "
            "one, from each row of the image (vertical axis) to each row (horizontal axis)."
        )
        grid = row_attention_grid(images, attentions[-1])
        labels = ("image", *(f"head {head}" for head in range(1, grid.shape[1])))
        return {"attention": Grid(grid, caption, column_labels=labels)}

    return classification_task(config, source, config.model, lambda images: rows(2.0 * images - 1.0), figures)


def row_attention_grid(images, weights):
    """One row of cells per example [B, 1 + H, h, w]: the gray image, then each head's weights [h, h], resized to it.

    Row t of a map shows where row t of the image attends. The largest value of each map is 1.
    """
    weights = weights / weights.max(axis=(-2, -1), keepdims=True)
    return beside(images, jax.image.resize(weights, (*weights.shape[:2], *images.shape[1:3]), "nearest"))


def main() -> None:
    train_program(parse("mha", PRESETS), make_task)


if __name__ == "__main__":
    run_main(main)
