"""Formats for modules of torch.nn, and for the autoencoder's parts as `torch.nn.Sequential`.

LSTM, GRU and RNN need no table here, because `torch_layout` contains their names.
"""

import re
from collections.abc import Collection

from flax import linen as nn

from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.attention import MultiHeadAttention
from w2jax.convert.layouts import MULTIHEAD, MULTIHEAD_SEPARATE, Format
from w2jax.convert.rules import Rule, Table
from w2jax.transformer import Transformer, TransformerDecoder, TransformerEncoder

ENCODER = (  # torch.nn.TransformerEncoder without its norm
    Rule("layers.{i}.self_attn", "block_{i}/attention", MULTIHEAD),
    Rule("layers.{i}.linear1", "block_{i}/mlp/fc1"),
    Rule("layers.{i}.linear2", "block_{i}/mlp/fc2"),
    Rule("layers.{i}", "block_{i}"),  # norm1, norm2
)
DECODER = (  # torch.nn.TransformerDecoder without its norm
    Rule("layers.{i}.self_attn", "block_{i}/self_attention", MULTIHEAD),
    Rule("layers.{i}.multihead_attn", "block_{i}/cross_attention", MULTIHEAD),
    Rule("layers.{i}.linear1", "block_{i}/mlp/fc1"),
    Rule("layers.{i}.linear2", "block_{i}/mlp/fc2"),
    Rule("layers.{i}", "block_{i}"),  # norm1, norm2, norm3
)
TRANSFORMER = (  # torch.nn.Transformer
    Rule("encoder.norm", "encoder_norm"),
    Rule("decoder.norm", "decoder_norm"),
    Rule("encoder", "encoder", ENCODER),
    Rule("decoder", "decoder", DECODER),
)


def torch_formats(module: nn.Module, keys: Collection[str] = ()) -> tuple[Format, ...]:
    """Return the formats of a module that are called "torch". The first one is used to write.

    The last format has the paths of w2jax. `keys` are the names of the tensors in a file to read.
    """
    paths = Format("torch")
    if isinstance(module, MultiHeadAttention) and _has_torchs_widths(module):
        return Format("torch", MULTIHEAD), Format("torch", MULTIHEAD_SEPARATE), paths
    if isinstance(module, Transformer):
        return Format("torch", TRANSFORMER), paths
    if isinstance(module, TransformerEncoder):
        return Format("torch", ENCODER), paths
    if isinstance(module, TransformerDecoder):
        return Format("torch", DECODER), paths
    if isinstance(module, AAE):
        parts = {
            "encoder": module.encoder,
            "decoder": module.decoder,
            "discriminator": module.discriminator,
            "category_discriminator": module.category_discriminator,
        }
        below = {name: [key[len(name) + 1 :] for key in keys if key.startswith(name + ".")] for name in parts}
        rows = [Rule(name, name, sequential(part, below[name])) for name, part in parts.items()]
        return Format("torch", (*rows, Rule("", ""))), paths
    if isinstance(module, AAEEncoder | AAEDecoder | AAEDiscriminator):
        return Format("torch", sequential(module, keys)), paths
    return (paths,)


def _has_torchs_widths(module: MultiHeadAttention) -> bool:
    """Return True if queries, keys and values have the width of the output, and the same number of heads."""
    widths = {module.embed_dim, module.qk_dim or module.embed_dim, module.v_dim or module.embed_dim}
    return module.num_kv_heads in (None, module.num_heads) and len(widths) == 1


def sequential(module: AAEEncoder | AAEDecoder | AAEDiscriminator, keys: Collection[str] = ()) -> Table:
    """Return a table from layer numbers in a `torch.nn.Sequential` to layers of an autoencoder's part.

    Each hidden layer is linear, batch norm (if it has one), dropout and ReLU; the last layer is linear. An encoder with
    more than one last layer has a Sequential `hidden` and the layers `mean`, `log_variance` and `logits`.

    If `keys` has as many numbered layers with parameters, they are used in their order. So a Sequential is also read if
    it has no dropout or has additional layers without parameters.
    """
    norms = () if isinstance(module, AAEDiscriminator) else module.batch_norm
    layers, numbers, number = [], [], 0
    for i in range(len(module.hidden_sizes)):
        here = [f"hidden_{i}", f"norm_{i}"] if i in norms else [f"hidden_{i}"]
        layers += here
        numbers += range(number, number + len(here))
        number += len(here) + 2
    prefix = ""
    if isinstance(module, AAEEncoder) and (module.stochastic or module.categories):
        prefix = "hidden."
    else:
        layers.append("mean" if isinstance(module, AAEEncoder) else "output")
        numbers.append(number)
    found = _numbered(keys)
    if len(found) == len(layers):
        return (*(Rule(theirs, ours) for theirs, ours in zip(found, layers, strict=True)), Rule("", ""))
    return (*(Rule(f"{prefix}{n}", ours) for n, ours in zip(numbers, layers, strict=True)), Rule("", ""))


def _numbered(keys: Collection[str]) -> list[str]:
    """Return the names of the numbered layers in `keys`, in order; [] if `keys` has several Sequentials or none."""
    found = {}
    for key in keys:
        if match := re.fullmatch(r"((?:.*\.)?)(\d+)\.[^.]+", key):
            found[match[1] + match[2]] = (match[1], int(match[2]))
    if len({prefix for prefix, _ in found.values()}) != 1:
        return []
    return sorted(found, key=lambda name: found[name][1])
