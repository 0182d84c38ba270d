"""The shared inputs of a case's implementations: a model's parameters, under our and torch's names, and a batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# The sizes of the PyTorch course's models, as options of our models. The baselines have the same sizes.
LSTM = {"num_classes": 10, "hidden_size": 256, "num_layers": 2}
ATTENTION = {"num_classes": 10, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_dim": 128}
VIT = {"num_classes": 10, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_dim": 256}
REAL = {
    "vit_ti16": {"num_classes": 1000, "patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768},
    "vit_s16": {"num_classes": 1000, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "vit_b16": {"num_classes": 1000, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
}  # published sizes, for images of 224 × 224 pixels
HEADS, WIDTH, QUERIES, KEYS = 4, 128, 30, 50  # of the cases with attention, a Transformer, a GRU or an RNN alone

BATCH_SIZES = {"lstm": 256, "mha": 128, "vit": 128, "aae": 64}  # of the programs in benchmarks.programs

Arrays = Mapping[str, np.ndarray]


def build(model: str) -> tuple[Any, tuple[int, ...], str]:
    """Returns our module, the shape of one input example, and the format that gives torch's names."""
    from w2jax import GRU, RNN, MultiHeadAttention, Transformer, ViT
    from w2jax.aae import AAE
    from w2jax.sequence_classifiers import AttentionClassifier, LSTMClassifier

    return {
        "lstm": (LSTMClassifier(**LSTM), (28, 28), "torch"),
        "mha": (AttentionClassifier(**ATTENTION), (28, 28), "torch"),
        "vit": (ViT(**VIT), (28, 28, 1), "timm"),
        "aae": (AAE(), (32, 32, 1), "torch"),
        "gru": (GRU(WIDTH, num_layers=2), (28, 28), "torch"),
        "rnn": (RNN(WIDTH, num_layers=2), (28, 28), "torch"),
        "attention": (MultiHeadAttention(HEADS), (KEYS, WIDTH), "torch"),
        "transformer": (Transformer(HEADS, 2 * WIDTH, 2, 1), (KEYS, WIDTH), "torch"),
        **{name: (ViT(**options), (224, 224, 3), "timm") for name, options in REAL.items()},
    }[model]


def arguments(model: str, x: Any) -> tuple[Any, ...]:
    """Returns the arguments of the module. A Transformer's target is the first part of its source."""
    return (x, x[:, :QUERIES]) if model == "transformer" else (x,)


def write_inputs(path: Path, model: str, batch_size: int) -> None:
    """Writes `make_inputs` to one .npz file."""
    np.savez(path, **make_inputs(model, batch_size))


def make_inputs(model: str, batch_size: int) -> dict[str, np.ndarray]:
    """Returns the parameters ("ours/…", "torch/…") and a batch of random images, labels, queries and keys."""
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from w2jax.convert import to_torch

    module, shape, names = build(model)
    rng = np.random.default_rng(0)
    variables = jax.jit(module.init)(jax.random.key(0), *arguments(model, jnp.zeros((1, *shape))))
    # Heads and biases of zeros would hide differences, so they get random values.
    params = jax.tree.map(
        lambda x: x if x.any() else jnp.asarray(0.05 * rng.standard_normal(x.shape, np.float32)), variables["params"]
    )
    variables = {**variables, "params": params}
    ours = {f"ours/{name}": np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    torch = {f"torch/{name}": tensor for name, tensor in to_torch(module, variables, names).items()}
    image_shape = shape if len(shape) == 3 else (28, 28, 1)
    batch = {
        "image": rng.integers(0, 256, (batch_size, *image_shape), np.uint8),
        "label": rng.integers(0, 10, batch_size, np.int32),
        "query": rng.standard_normal((batch_size, QUERIES, WIDTH), np.float32),
        "key": rng.standard_normal((batch_size, KEYS, WIDTH), np.float32),
    }
    return {**ours, **torch, **batch}


def part(inputs: Arrays, which: str) -> dict[str, np.ndarray]:
    """Returns the parameters of "ours" or "torch", by name."""
    return {name.removeprefix(f"{which}/"): x for name, x in inputs.items() if name.startswith(f"{which}/")}


def our_params(inputs: Arrays) -> dict[str, Any]:
    """Returns our parameters as a nested dict, as Linen needs them."""
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    return unflatten_dict({name: jnp.asarray(leaf) for name, leaf in part(inputs, "ours").items()}, sep="/")


def step_flops(model: str, batch_size: int) -> float:
    """Returns the FLOPs of the matrix products in a classifier's train step.

    They are three times the FLOPs of the forward pass, minus the gradient of the images.
    """
    import jax
    import jax.numpy as jnp

    from train.dryrun.flops import flops_of

    module, shape, _ = build(model)
    x = jnp.zeros((batch_size, *shape))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    step = jax.grad(lambda variables: module.apply(variables, x)[0].sum())
    return flops_of(jax.make_jaxpr(step)(variables).jaxpr)
