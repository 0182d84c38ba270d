"""python -m train.lstm [PRESET]: an LSTM that reads an image row by row, to classify it."""

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

UNITS = 32  # whose gates are shown: more columns cannot be told apart


def make_task(config: Config, source: Source) -> Task:
    """The task of classifying images like those of `source`, each read as a sequence of its rows."""

    def figures(forward, params, images):
        capture = {"capture_intermediates": lambda module, _: isinstance(module, LSTMLayer)}
        (_, steps), captured = forward(images, return_steps=True, mutable=["intermediates"], **capture)
        ((out, _),) = captured["intermediates"]["lstm"]["forward_0"]["__call__"]
        opened = spread(gates(rows(images), params["lstm"]["forward_0"], out), UNITS)
        return {
            "beliefs": Grid(
                beside_its_rows(images, nn.softmax(steps)[:, None]),
                "The image, then the probability of each class (across, from the first to the last) after each row "
                "(down) was read.",
            ),
            "gates": Grid(
                beside_its_rows(images, opened),
                "The image, then the first layer's gates as each row (down) is read: what it takes in, what it keeps, "
                f"what it puts out. White is open. Each column is a unit, {opened.shape[-1]} from the most forgetful "
                "to the least.",
            ),
        }

    return classification_task(config, source, config.model, rows, figures)


def beside_its_rows(images, values):
    """One row an example [B, 1 + K, h, W]: the image in gray, then what there is [B, K, h, V] of each of its rows.

    W is the least multiple of V that the image fits into; the image stands in its middle.
    """
    width, columns = images.shape[2], values.shape[-1]
    wide = -(-width // columns)
    margin = wide * columns - width
    framed = jnp.pad(images, ((0, 0), (0, 0), (margin // 2, margin - margin // 2), (0, 0)))
    return beside(framed, repeat(values, "b k h v -> b k h (v n)", n=wide))


def gates(x, params, out):
    """A layer's input, forget and output gate [B, 3, T, H], of its input [B, T, I] and outputs [T, B, P]."""
    before = jnp.concatenate([jnp.zeros_like(out[:1]), out[:-1]])
    logits = jnp.einsum("bti,igh->btgh", x, params["input_kernel"])
    logits += jnp.einsum("tbp,pgh->btgh", before, params["hidden_kernel"])
    logits += params["input_bias"] + params["hidden_bias"]
    return rearrange(nn.sigmoid(logits)[:, :, jnp.array([0, 1, 3])], "b t g h -> b g t h")


def spread(opened, most: int):
    """Of the gates [B, 3, T, H] those of at most so many units, from the most forgetful to the least."""
    order = jnp.argsort(opened[:, 1].mean(axis=(0, 1)))
    return opened[..., order[jnp.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)]]


def main() -> None:
    train_program(parse("lstm", PRESETS), make_task)


if __name__ == "__main__":
    run_main(main)
