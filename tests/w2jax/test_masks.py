"""Masks, biases and lengths of another dtype, such as torch's additive masks, are refused with the way to convert."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch

from w2jax import MultiHeadAttention, Seq2Seq, Transformer, TransformerEncoder, scaled_dot_product_attention
from w2jax.blocks import DecoderBlock, EncoderBlock
from w2jax.transformer import TransformerDecoder

B, H, T, S, D = 2, 3, 4, 5, 6
X, MEMORY = jnp.ones((B, T, D)), jnp.ones((B, S, D))
ADDITIVE = jnp.asarray(torch.nn.Transformer.generate_square_subsequent_mask(T).numpy())  # 0 and −inf
TO_MEMORY = jnp.zeros((T, S))
PASS_AS_BIAS = r"mask must be bool \(True: attend\), got float32. Pass an additive mask as bias \(0 and −inf"
ENCODER, DECODER = EncoderBlock(H, D), DecoderBlock(H, D)
TRANSFORMER, SEQ2SEQ = Transformer(H, D, 1, 1), Seq2Seq(9, D, H, D, 1, 1)
TOKENS = jnp.ones((B, T), int)


@pytest.fixture(autouse=True)
def without_signatures():
    """A user's program does not check jaxtyping signatures."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def attend(**options):
    x = jnp.ones((B, H, T, D))
    return scaled_dot_product_attention(x, x, x, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"key_lengths": jnp.array([[3], [4]])},
        {"return_weights": False, "implementation": "chunked"},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_additive_mask_is_refused_and_belongs_in_bias(options, dtype):
    with pytest.raises(ValueError, match=PASS_AS_BIAS.replace("float32", dtype)) as error:
        attend(mask=ADDITIVE.astype(dtype), **options)
    assert "\n" not in str(error.value)
    additive, boolean = attend(bias=ADDITIVE, **options), attend(mask=ADDITIVE == 0, **options)
    jax.tree.map(np.testing.assert_array_equal, additive, boolean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": jnp.ones((T, T), int)}, r"mask must be bool .*got int32. Convert a mask of 0 and 1 with mask != 0"),
        ({"mask": np.ones((T, T), np.uint8)}, "got uint8. Convert a mask of 0 and 1 with mask != 0"),
        ({"bias": jnp.ones((T, T), bool)}, r"bias must be float .*got bool. Pass it as mask"),
        ({"bias": jnp.ones((T, T), int)}, "bias must be float .*got int32. Convert a bias with bias.astype"),
        ({"key_lengths": jnp.ones((B, H))}, r"key_lengths must be integers .*got float32. .*valid.sum\(-1\)"),
        ({"key_lengths": jnp.ones((B, T), bool)}, "key_lengths must be integers .*got bool"),
    ],
)
def test_another_dtype_is_refused_with_the_way_to_convert_it(options, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(attend)(**options)


@pytest.mark.parametrize(
    ("module", "inputs", "options", "message"),
    [
        (MultiHeadAttention(H), (X,), {"mask": ADDITIVE, "causal": True}, PASS_AS_BIAS),
        (MultiHeadAttention(H), (X,), {"bias": ADDITIVE == 0}, "bias must be float"),
        (MultiHeadAttention(H), (X,), {"key_lengths": jnp.ones(B)}, "key_lengths must be integers"),
        (ENCODER, (X,), {"mask": ADDITIVE}, r"^mask must be bool .*Convert an additive mask with mask == 0"),
        (TransformerEncoder(ENCODER, 2, scan=True), (X,), {"mask": ADDITIVE}, "^mask must be bool"),
        (TransformerEncoder(ENCODER, 2, remat=True), (X,), {"lengths": TOKENS == 1}, "^lengths must be integers"),
        (DECODER, (X, MEMORY), {"mask": ADDITIVE}, "^mask must be bool"),
        (TransformerDecoder(DECODER, 2), (X, MEMORY), {"memory_mask": TO_MEMORY}, "^memory_mask must be bool"),
        (TransformerDecoder(DECODER, 2), (X, MEMORY), {"memory_lengths": TO_MEMORY}, "^memory_lengths must be int"),
        (TRANSFORMER, (X, X), {"source_mask": ADDITIVE}, "^source_mask must be bool .*with source_mask == 0"),
        (TRANSFORMER, (MEMORY, X), {"target_mask": ADDITIVE}, "^target_mask must be bool .*with target_mask == 0"),
        (TRANSFORMER, (MEMORY, X), {"memory_mask": TO_MEMORY.astype(int)}, "^memory_mask .*memory_mask != 0"),
        (TRANSFORMER, (X, X), {"source_lengths": TOKENS == 1}, "^source_lengths must be integers .*got bool"),
        (SEQ2SEQ, (TOKENS, TOKENS), {"source_lengths": TOKENS == 1}, "^source_lengths must be integers"),
        (SEQ2SEQ, (TOKENS, TOKENS), {"target_lengths": jnp.ones(B)}, "^target_lengths must be integers .*got float32"),
    ],
)
def test_every_module_names_its_own_argument(module, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))
