"""python -m train.lstm [PRESET]: an LSTM that reads an image row by row, to classify it."""

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from configs.lstm import PRESETS, Config
from train.classify import beside, classification_task, rows
from train.cli import parse, run_main
from train.data import Source
from train.task import Grid, Task
from w2jax.lstm import LSTMLayer


def make_task(config: Config, source: Source) -> Task:
    """The task of classifying images like those of `source`, each read as a sequence of its rows."""

    def figures(forward, params, images):
        capture = {"capture_intermediates": lambda module, _: isinstance(module, LSTMLayer)}
        (_, steps), captured = forward(images, return_steps=True, mutable=["intermediates"], **capture)
        ((out, _),) = captured["intermediates"]["lstm"]["forward_0"]["__call__"]
        beliefs = "The image, then the probability of each class (across) after each row (down) was read."
        gates = (
            "The first layer's gates as the rows are read (down), a unit in each column, the most forgetful first: "
            "what it takes in, what it keeps, what it puts out. White is open."
        )
        return {
            "beliefs": Grid(belief_grid(images, nn.softmax(steps)), beliefs),
            "gates": Grid(gate_grid(rows(images), params["lstm"]["forward_0"], out)[:4], gates),
        }

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


def gate_grid(x, params, out):
    """A layer's input, forget and output gate [B, 3, 3T, 3H], of its input [B, T, I] and outputs [T, B, P].

    The units are ordered by their forget gate.
    """
    before = jnp.concatenate([jnp.zeros_like(out[:1]), out[:-1]])
    gates = jnp.einsum("bti,igh->btgh", x, params["input_kernel"])
    gates += jnp.einsum("tbp,pgh->btgh", before, params["hidden_kernel"]) + params["input_bias"] + params["hidden_bias"]
    opened = rearrange(nn.sigmoid(gates)[:, :, jnp.array([0, 1, 3])], "b t g h -> b g t h")
    ordered = opened[..., jnp.argsort(opened[:, 1].mean(axis=(0, 1)))]
    return repeat(ordered, "b g t h -> b g (t k) (h l)", k=3, l=3)  # so that a value can be seen


def main() -> None:
    config = parse("lstm", PRESETS)
    from train.loop import fit  # Imported late: --help and a mistake in the options should not wait for orbax.

    fit(config, make_task)


if __name__ == "__main__":
    run_main(main)
