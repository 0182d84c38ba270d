"""The models people learn in PyTorch, in JAX and Flax: recurrent networks, attention, Transformers, autoencoders."""

import warnings
from typing import Any

from w2jax import aae, convert
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.attention import MultiHeadAttention, scaled_dot_product_attention
from w2jax.lstm import LSTM
from w2jax.rnn import GRU, RNN
from w2jax.seq2seq import Seq2Seq
from w2jax.transformer import Transformer, TransformerDecoder, TransformerEncoder
from w2jax.vit import ViT

__all__ = [
    "AAE",
    "GRU",
    "LSTM",
    "RNN",
    "AAEDecoder",
    "AAEDiscriminator",
    "AAEEncoder",
    "MultiHeadAttention",
    "Seq2Seq",
    "Transformer",
    "TransformerDecoder",
    "TransformerEncoder",
    "ViT",
    "convert",
    "scaled_dot_product_attention",
]


def __getattr__(name: str) -> Any:
    """The AAE's parts by their names before 0.1.0; these names go in 0.2.0."""
    if name not in ("Encoder", "Decoder", "Discriminator"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"w2jax.{name} was renamed: use w2jax.AAE{name}", DeprecationWarning, stacklevel=2)
    return getattr(aae, f"AAE{name}")
