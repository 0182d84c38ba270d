"""The models people learn in PyTorch, in JAX and Flax: recurrent networks, attention, Transformers, autoencoders."""

from w2jax import convert
from w2jax.aae import AAE, Decoder, Discriminator, Encoder
from w2jax.attention import MultiHeadAttention, scaled_dot_product_attention
from w2jax.lstm import LSTM
from w2jax.rnn import GRU, RNN
from w2jax.seq2seq import Seq2Seq
from w2jax.transformer import Transformer
from w2jax.vit import ViT

__all__ = [
    "AAE",
    "GRU",
    "LSTM",
    "RNN",
    "Decoder",
    "Discriminator",
    "Encoder",
    "MultiHeadAttention",
    "Seq2Seq",
    "Transformer",
    "ViT",
    "convert",
    "scaled_dot_product_attention",
]
