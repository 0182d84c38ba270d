"""Submodules get the fields that they share with their owner, and every option of a block reaches the block."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2jax import GRU, LSTM, RNN, AAEDecoder, AAEEncoder, Seq2Seq, Transformer, ViT
from w2jax.attention import MultiHeadAttention
from w2jax.blocks import DecoderBlock, EncoderBlock, Mlp
from w2jax.layer_norm import LayerNorm
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
    # for the ViT and foreign weights
    rare = {"attention_scale", "residual_from_norm", "res_post_norm", "sub_norm", "rms_norm", "activation", "norm_eps"}
    assert missing - rare == others


def test_an_example_input_is_abstract():
    assert (abstract(1, 2).shape, abstract(1, dtype=jnp.int32).dtype) == ((1, 2), jnp.int32)


IMAGE, SEQUENCE = np.zeros((1, 4, 4, 1), np.float32), np.zeros((1, 3, 8), np.float32)
TOKENS = np.zeros((1, 3), np.int32)
VIT = ViT(2, patch_size=2, embed_dim=8, depth=1, num_heads=2, mlp_dim=3)
CLASSIFIER = AttentionClassifier(2, embed_dim=8, depth=1, num_heads=2, mlp_dim=3)
SEQ2SEQ = Seq2Seq(5, 8, 2, 3, encoder_depth=1, decoder_depth=1, max_length=4)
TRANSFORMER = Transformer(2, 3, encoder_depth=1, decoder_depth=1)
ATTENTION = MultiHeadAttention(2)


@pytest.mark.parametrize(
    ("model", "inputs", "low", "names"),
    [
        (VIT, (IMAGE,), 1, "patch_size embed_dim num_heads mlp_dim pre_logits_dim"),
        (VIT, (IMAGE,), 0, "num_classes depth num_registers norm_eps"),
        (CLASSIFIER, (SEQUENCE,), 1, "num_classes embed_dim num_heads mlp_dim"),
        (CLASSIFIER, (SEQUENCE,), 0, "depth"),
        (LSTMClassifier(2, 4), (SEQUENCE,), 1, "num_classes hidden_size num_layers"),
        (LSTM(3, 2), (SEQUENCE,), 1, "hidden_size num_layers"),
        (GRU(3, 2), (SEQUENCE,), 1, "hidden_size num_layers"),
        (RNN(3, 2), (SEQUENCE,), 1, "hidden_size num_layers"),
        (AAEEncoder(2, (3,)), (IMAGE,), 1, "latent_size"),
        (AAEEncoder(2, (3,)), (IMAGE,), 0, "categories"),
        (ATTENTION, (SEQUENCE,), 1, "num_heads num_kv_heads embed_dim qk_dim v_dim"),
        (TRANSFORMER, (SEQUENCE, SEQUENCE), 1, "num_heads mlp_dim"),
        (SEQ2SEQ, (TOKENS, TOKENS), 1, "vocab_size source_vocab_size embed_dim num_heads mlp_dim max_length"),
        (LayerNorm(1e-6), (SEQUENCE,), 0, "eps"),
    ],
    ids=lambda x: type(x).__name__ if hasattr(x, "apply") else None,
)
def test_a_size_outside_its_range_is_refused_by_name(model, inputs, low, names):
    jax.eval_shape(model.init, jax.random.key(0), *inputs)
    for name in names.split():
        kind = float if name.endswith("eps") else int
        for wrong in map(kind, (low - 1, -7)):
            with pytest.raises(ValueError, match=f"^{name} must be at least {low}, got {wrong}(\n|$)"):
                jax.eval_shape(model.clone(**{name: wrong}).init, jax.random.key(0), *inputs)
        with pytest.raises(ValueError, match=rf"^{name} must be at most \d+, got {2**31 - 1}"):
            jax.eval_shape(model.clone(**{name: kind(2**31 - 1)}).init, jax.random.key(0), *inputs)


def test_a_rate_outside_its_range_is_refused_by_name():
    check_rates(dropout=0.0, drop_path=0.99)
    with pytest.raises(ValueError, match="drop_path must be at least 0 and below 1"):
        check_rates(dropout=0.0, drop_path=1.0)


@pytest.mark.parametrize("shape", [(4, 0, 1), (4, 4, -1)])
def test_a_decoder_needs_the_height_width_and_channels_of_its_images(shape):
    with pytest.raises(ValueError, match=r"image_shape must be \(height, width, channels\), each at least 1, got"):
        jax.eval_shape(AAEDecoder(shape, (3,), batch_norm=()).init, jax.random.key(0), abstract(1, 2))


@pytest.mark.parametrize(
    ("model", "inputs", "shape"),
    [
        (VIT.clone(num_classes=1), (IMAGE,), (1, 1)),
        (VIT.clone(depth=0), (np.zeros((1, 2, 2, 1), np.float32),), (1, 2)),
        (CLASSIFIER.clone(num_classes=1), (SEQUENCE[:, :1],), (1, 1)),
        (LSTMClassifier(1, 4), (SEQUENCE[:, :1],), (1, 1)),
        (LSTM(1), (np.zeros((1, 1, 1), np.float32),), (1, 1, 1)),
        (GRU(1), (np.zeros((1, 1, 1), np.float32),), (1, 1, 1)),
        (RNN(1), (np.zeros((1, 1, 1), np.float32),), (1, 1, 1)),
        (ATTENTION, (SEQUENCE[:, :1],), (1, 1, 8)),
        (TRANSFORMER, (SEQUENCE[:, :1], SEQUENCE[:, :1]), (1, 1, 8)),
        (SEQ2SEQ, (TOKENS[:, :1], TOKENS[:, :1]), (1, 1, 5)),
        (AAEEncoder(1, (1,)), (np.zeros((1, 1, 1, 1), np.float32),), (1, 1)),
        (AAEDecoder((1, 1, 1), (1,), batch_norm=()), (np.zeros((1, 1), np.float32),), (1, 1, 1, 1)),
    ],
    ids=lambda x: type(x).__name__ if hasattr(x, "apply") else None,
)
def test_one_example_one_step_and_one_class_give_finite_outputs_and_gradients(model, inputs, shape):
    inputs = [jnp.asarray(x) for x in inputs]
    variables = jax.jit(model.init)(jax.random.key(0), *inputs)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def total(params):
        output = jax.tree.leaves(model.apply({**variables, "params": params}, *inputs))[0]
        return output.sum(), output

    (_, output), gradient = total(variables["params"])
    assert output.shape == shape
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((output, gradient)))


@pytest.mark.parametrize(
    ("model", "inputs", "name"),
    [
        (LSTM(2), (SEQUENCE[:, :0],), "input"),
        (GRU(2), (SEQUENCE[:0],), "input"),
        (VIT, (np.zeros((1, 1, 1, 1), np.float32),), "patch_size"),
        (VIT, (np.zeros((1, 0, 4, 1), np.float32),), "patch_size"),
        (VIT, (np.zeros((4, 4, 1), np.float32),), "images"),
    ],
)
def test_an_empty_input_is_refused_by_name(model, inputs, name):
    with pytest.raises((ValueError, TypeError), match=name):
        jax.eval_shape(model.init, jax.random.key(0), *inputs)
