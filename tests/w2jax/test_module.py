"""Submodules get the fields that they share with their owner, and every option of a block reaches the block."""

import jax.numpy as jnp
import pytest

from w2jax import GRU, LSTM, Seq2Seq, Transformer, ViT
from w2jax.attention import MultiHeadAttention
from w2jax.blocks import DecoderBlock, EncoderBlock, Mlp
from w2jax.lstm import LSTMLayer
from w2jax.module import abstract, check_rates, field_names, submodule
from w2jax.rnn import RecurrentLayer
from w2jax.sequence_classifiers import AttentionClassifier, LSTMClassifier


def test_a_submodule_gets_shared_fields_unless_given():
    block = EncoderBlock(3, 20, dropout=0.1, activation="relu", use_bias=False)
    mlp = submodule(Mlp, block, dropout=0.2, parent=None)
    assert mlp == Mlp(20, 0.2, "relu", use_bias=False, parent=None)
    assert submodule(MultiHeadAttention, block, scale=2.0, parent=None) == MultiHeadAttention(
        3, dropout=0.1, use_bias=False, scale=2.0, parent=None
    )


@pytest.mark.parametrize(
    "cls, owner, others",
    [
        (EncoderBlock, ViT, {"pre_norm", "use_bias"}),
        (EncoderBlock, AttentionClassifier, {"pre_norm", "use_bias", "qkv_bias", "qk_norm", "layer_scale"}),
        (EncoderBlock, Transformer, {"attention_dropout", "qkv_bias", "qk_norm", "layer_scale"}),
        (DecoderBlock, Transformer, {"attention_dropout"}),
        (Transformer, Seq2Seq, set()),
        (Mlp, DecoderBlock, set()),
        (LSTM, LSTMClassifier, {"bias", "bidirectional", "time_major"}),
        (LSTMLayer, LSTM, {"reverse"}),
        (RecurrentLayer, GRU, {"gates", "cell", "reverse"}),
    ],
)
def test_only_these_fields_do_not_come_from_the_owner(cls, owner, others):
    missing = set(field_names(cls)) - set(field_names(owner))
    rare = {"attention_scale", "residual_from_norm", "activation", "norm_eps"}  # for the ViT and foreign weights
    assert missing - rare == others


def test_an_example_input_is_abstract():
    assert (abstract(1, 2).shape, abstract(1, dtype=jnp.int32).dtype) == ((1, 2), jnp.int32)


def test_a_rate_outside_its_range_is_refused_by_name():
    check_rates(dropout=0.0, drop_path=0.99)
    with pytest.raises(ValueError, match="drop_path must be at least 0 and below 1"):
        check_rates(dropout=0.0, drop_path=1.0)
