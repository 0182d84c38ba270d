"""The stock Flax implementation of each case: Flax's own modules with a jitted optax step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from benchmarks.baselines import with_jax
from benchmarks.baselines.with_jax import attended, images, inferred, trained_by
from benchmarks.inputs import ATTENTION, HEADS, LSTM, VIT, WIDTH, Arrays, our_params
from benchmarks.worker import Workload


class LSTMClassifier(nn.Module):
    """An LSTM over the rows of an image, and a linear layer on the last output."""

    @nn.compact
    def __call__(self, x):
        for layer in range(LSTM["num_layers"]):
            x = nn.RNN(nn.OptimizedLSTMCell(LSTM["hidden_size"], name=f"layer_{layer}"))(x)
        return nn.Dense(LSTM["num_classes"], name="head")(x[:, -1])


def lstm_params(params: dict[str, Any]) -> dict[str, Any]:
    """Returns our parameters under the names of `LSTMClassifier`, whose one bias is the sum of our two."""
    theirs = {"head": params["head"]}
    for layer in range(LSTM["num_layers"]):
        ours = params["lstm"][f"forward_{layer}"]
        bias, cell = ours["input_bias"] + ours["hidden_bias"], {}
        for gate, name in enumerate("ifgo"):
            cell[f"i{name}"] = {"kernel": ours["input_kernel"][:, gate]}
            cell[f"h{name}"] = {"kernel": ours["hidden_kernel"][:, gate], "bias": bias[gate]}
        theirs[f"layer_{layer}"] = cell
    return theirs


class Block(nn.Module):
    """z' = MSA(LN(z)) + z; z = MLP(LN(z')) + z'."""

    width: int
    heads: int
    hidden: int
    attend: Callable

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, attention_fn=self.attend, name="attention")(y)
        y = nn.Dense(self.hidden, name="fc1")(nn.LayerNorm(name="norm2")(x))
        return x + nn.Dense(self.width, name="fc2")(nn.gelu(y, approximate=False))


def blocks(x, options: dict, attend: Callable):
    for i in range(options["depth"]):
        block = Block(options["embed_dim"], options["num_heads"], options["mlp_dim"], attend, name=f"block_{i}")
        x = block(x)
    return x


class ViT(nn.Module):
    """Patches by a convolution, class token, learned positions, blocks."""

    attend: Callable = nn.dot_product_attention

    @nn.compact
    def __call__(self, images):
        width, patch = VIT["embed_dim"], (VIT["patch_size"],) * 2
        x = nn.Conv(width, patch, patch, padding="VALID", name="patch_embed")(images)
        x = x.reshape(len(x), -1, width)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, width))
        x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = blocks(x, VIT, self.attend)
        return nn.Dense(VIT["num_classes"], name="head")(nn.LayerNorm(name="norm")(x[:, 0]))


class AttentionClassifier(nn.Module):
    """Embed each row → add its position → blocks → LayerNorm → mean → head."""

    attend: Callable = nn.dot_product_attention

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(ATTENTION["embed_dim"], name="embed")(x)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = blocks(x, ATTENTION, self.attend)
        return nn.Dense(ATTENTION["num_classes"], name="head")(nn.LayerNorm(name="norm")(x).mean(axis=1))


def transformer_params(params: dict[str, Any]) -> dict[str, Any]:
    """Returns our parameters under the names of `ViT` and `AttentionClassifier`."""
    theirs = {name: x for name, x in params.items() if name not in ("encoder", "patch_embed")}
    if "patch_embed" in params:
        patch, projection = VIT["patch_size"], params["patch_embed"]["projection"]
        kernel = projection["kernel"].reshape(patch, patch, 1, -1)
        theirs["patch_embed"] = {"kernel": kernel, "bias": projection["bias"]}
    for name, block in params["encoder"].items():
        theirs[name] = {**{key: x for key, x in block.items() if key != "mlp"}, **block["mlp"]}
    return theirs


def training(module: nn.Module, params: Any, *rest: Any) -> tuple[Callable, Any, Any]:
    return with_jax.training(lambda params, x: module.apply({"params": params}, x), params, *rest)


def lstm_training(inputs: Arrays):
    params = lstm_params(our_params(inputs))
    return training(LSTMClassifier(), params, images(inputs)[..., 0], inputs, optax.adam(1e-3))


def vit_training(inputs: Arrays, attend: Callable = nn.dot_product_attention):
    params = transformer_params(our_params(inputs))
    return training(ViT(attend), params, 2 * images(inputs) - 1, inputs, optax.adamw(1e-3, weight_decay=0.01))


def mha_training(inputs: Arrays):
    params = transformer_params(our_params(inputs))
    x = 2 * images(inputs)[..., 0] - 1
    return training(AttentionClassifier(), params, x, inputs, optax.adamw(1e-3, weight_decay=0.01))


def lstm_step(inputs: Arrays) -> Workload:
    return trained_by(*lstm_training(inputs))


def vit_step(inputs: Arrays) -> Workload:
    return trained_by(*vit_training(inputs))


def vit_step_jax_nn(inputs: Arrays) -> Workload:
    """Returns the ViT's step with `jax.nn.dot_product_attention`."""
    return trained_by(*vit_training(inputs, jax_nn))


def mha_step(inputs: Arrays) -> Workload:
    return trained_by(*mha_training(inputs))


def jax_nn(query, key, value, **_):
    return jax.nn.dot_product_attention(query, key, value)


def attend(params, *inputs):
    module = nn.MultiHeadDotProductAttention(HEADS, qkv_features=WIDTH)
    out, seen = module.apply({"params": params}, *inputs, sow_weights=True, mutable=["intermediates"])
    return out, seen["intermediates"]["attention_weights"][0]


def self_attention(inputs: Arrays) -> Workload:
    return attended(attend, our_params(inputs), inputs, cross=False)


def cross_attention(inputs: Arrays) -> Workload:
    return attended(attend, our_params(inputs), inputs, cross=True)


def lstm_inference(inputs: Arrays) -> Workload:
    return inferred(LSTMClassifier().apply, {"params": lstm_params(our_params(inputs))}, images(inputs)[..., 0])


def mha_inference(inputs: Arrays) -> Workload:
    return inferred(
        AttentionClassifier().apply, {"params": transformer_params(our_params(inputs))}, 2 * images(inputs)[..., 0] - 1
    )


def vit_inference(inputs: Arrays) -> Workload:
    return inferred(ViT().apply, {"params": transformer_params(our_params(inputs))}, 2 * images(inputs) - 1)
