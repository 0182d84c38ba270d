"""python -m train.lstm [PRESET]: trains an LSTM that classifies an image by reading it row by row.

python -m train.lstm best --run.seed 1                  # a preset
python -m train.lstm --model.num-layers 2 --run.dir runs/two-layers
"""

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from configs.lstm import PRESETS, Config
from train.classify import beside, classification_task, rows
from train.config.cli import parse, run_main
from train.data import Source
from train.engine.main import train_program
from train.task import Grid, Task
from w2jax.lstm import LSTMLayer

UNITS = 32  # number of units whose gates are drawn; more columns would be too narrow to see


def make_task(config: Config, source: Source) -> Task:
    """The task of training an LSTM classifier on images like those of `source`. An image is a sequence of rows."""

    def figures(forward, params, images):
        capture = {"capture_intermediates": lambda module, _: isinstance(module, LSTMLayer)}
        (_, steps), captured = forward(images, return_steps=True, mutable=["intermediates"], **capture)
        ((out, _),) = captured["intermediates"]["lstm"]["forward_0"]["__call__"]
        opened = spread(gates(rows(images), params["lstm"]["forward_0"], out), UNITS)
        return {
            "beliefs": Grid(
                beside_its_rows(images, nn.softmax(steps)[:, None]),
                "The image, then the predicted class probabilities (columns, first class to last) after each row of "
                "the image (rows).",
                column_labels=("image", "probabilities"),
            ),
            "gates": Grid(
                beside_its_rows(images, opened),
                "The image, then the input, forget and output gates of the first LSTM layer for each row of the image. "
                f"White is open. Each column is one of {opened.shape[-1]} units, sorted by the mean of the forget "
                "gate, lowest first.",
                column_labels=("image", "input gate", "forget gate", "output gate"),
            ),
        }

    return classification_task(config, source, config.model, rows, figures)


def beside_its_rows(images, values):
    """One row of cells per example [B, 1 + K, h, W]: the gray image, then the values [B, K, h, V] of its rows.

    W is the smallest multiple of V that is not below the image's width. The image is centered.
    """
    width, columns = images.shape[2], values.shape[-1]
    wide = -(-width // columns)
    margin = wide * columns - width
    framed = jnp.pad(images, ((0, 0), (0, 0), (margin // 2, margin - margin // 2), (0, 0)))
    return beside(framed, repeat(values, "b k h v -> b k h (v n)", n=wide))


def gates(x, params, out):
    """The input, forget and output gates [B, 3, T, H] of a layer with input [B, T, I] and outputs [T, B, P]."""
    before = jnp.concatenate([jnp.zeros_like(out[:1]), out[:-1]])
    logits = jnp.einsum("bti,igh->btgh", x, params["input_kernel"])
    logits += jnp.einsum("tbp,pgh->btgh", before, params["hidden_kernel"])
    logits += params["input_bias"] + params["hidden_bias"]
    return rearrange(nn.sigmoid(logits)[:, :, jnp.array([0, 1, 3])], "b t g h -> b g t h")


def spread(opened, most: int):
    """The gates [B, 3, T, H] of at most `most` units, sorted by the mean of the forget gate, lowest first."""
    order = jnp.argsort(opened[:, 1].mean(axis=(0, 1)))
    return opened[..., order[jnp.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)]]


def main() -> None:
    train_program(parse("lstm", PRESETS), make_task)


if __name__ == "__main__":
    run_main(main)
