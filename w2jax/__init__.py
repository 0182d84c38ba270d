"""JAX and Flax versions of models that PyTorch courses teach: LSTMs, attention, Transformers, autoencoders."""

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2jax import convert
    from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
    from w2jax.attention import MultiHeadAttention, scaled_dot_product_attention
    from w2jax.image_spec import ImageSpec
    from w2jax.lstm import LSTM
    from w2jax.pretrained import Pretrained, load_pretrained
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
    "ImageSpec",
    "MultiHeadAttention",
    "Pretrained",
    "Seq2Seq",
    "Transformer",
    "TransformerDecoder",
    "TransformerEncoder",
    "ViT",
    "convert",
    "load_pretrained",
    "scaled_dot_product_attention",
]

# Imported on first use, so that a program without a model, such as train.runs, starts without importing JAX.
_MODULES = {
    "aae": ("AAE", "AAEDecoder", "AAEDiscriminator", "AAEEncoder"),
    "attention": ("MultiHeadAttention", "scaled_dot_product_attention"),
    "image_spec": ("ImageSpec",),
    "lstm": ("LSTM",),
    "pretrained": ("Pretrained", "load_pretrained"),
    "rnn": ("GRU", "RNN"),
    "seq2seq": ("Seq2Seq",),
    "transformer": ("Transformer", "TransformerDecoder", "TransformerEncoder"),
    "vit": ("ViT",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
_RENAMED = {"Encoder": "AAEEncoder", "Decoder": "AAEDecoder", "Discriminator": "AAEDiscriminator"}  # until 0.2.0


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(
            f"w2jax.{name} was renamed to w2jax.{_RENAMED[name]}. The old name works until version 0.2.0: "
            f"use w2jax.{_RENAMED[name]}",
            DeprecationWarning,
            stacklevel=2,
        )
    public = _RENAMED.get(name, name)
    if public in _HOME:
        return getattr(import_module(f"w2jax.{_HOME[public]}"), public)
    if not name.startswith("_") and find_spec(f"w2jax.{name}") is not None:
        return import_module(f"w2jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
