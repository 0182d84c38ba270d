"""With jax_enable_x64 and dtype="float64", models with float64 parameters give torch's float64 numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_aae import TorchEncoder, torch_decoder, torch_discriminator
from torch_timm import TimmViT

from w2jax import (
    GRU,
    LSTM,
    RNN,
    AAEDecoder,
    AAEDiscriminator,
    AAEEncoder,
    MultiHeadAttention,
    Seq2Seq,
    Transformer,
    ViT,
    scaled_dot_product_attention,
)
from w2jax.convert import from_torch
from w2jax.convert.schema import module_leaves
from w2jax.seq2seq import sinusoidal_positions
from w2jax.serialize import module_from_json, module_to_json

B, T, S, D, H, V = 3, 5, 6, 8, 2, 7
DTYPE: Any = {"dtype": "float64"}


@pytest.fixture
def wide():
    """Turn jax_enable_x64 on for a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def numbers(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape)


def randomized(module):
    """Returns a float64 torch module with random parameters and statistics."""
    torch.manual_seed(0)
    with torch.no_grad():
        for x in module.double().state_dict().values():
            if x.is_floating_point():
                x.uniform_(0.2, 1.0) if x.ndim == 1 else x.uniform_(-0.5, 0.5)
    return module.eval()


def assert_torchs(ours, theirs, variables, *inputs):
    """Compares the outputs, and the gradients of the first input.

    Args:
        ours: function of (variables, *inputs).
        theirs: the same function in torch.
        variables: the variables of our module.
        *inputs: NumPy arrays.
    """
    tensors = [torch.from_numpy(x) for x in inputs]
    if differentiable := tensors[0].is_floating_point():
        tensors[0].requires_grad_()
    expected = theirs(*tensors)

    def loss(x, *rest):
        out = ours(variables, x, *rest)
        return (out**2).sum(), out

    arrays = [jnp.asarray(x) for x in inputs]
    if differentiable:
        gradient, out = jax.jit(jax.grad(loss, has_aux=True))(*arrays)
        (expected**2).sum().backward()
        assert_close(gradient, tensors[0].grad)
    else:
        out = jax.jit(loss)(*arrays)[1]
    assert out.dtype == jnp.float64
    assert_close(out, expected.detach())


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * float(abs(theirs).max()))


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (LSTM, nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (LSTM, nn.LSTM, {"proj_size": 3}),
        (GRU, nn.GRU, {"num_layers": 2}),
        (RNN, nn.RNN, {"bias": False}),
    ],
    ids=str,
)
def test_recurrent_networks(ours, theirs, options, wide):
    theirs, module = randomized(theirs(S, D, batch_first=True, **options)), ours(D, **options, **DTYPE)
    variables = from_torch(module, theirs.state_dict())
    assert {x.dtype.name for x in jax.tree.leaves(variables)} == {"float64"}
    assert_torchs(lambda v, x: module.apply(v, x)[0], lambda x: theirs(x)[0], variables, numbers(B, T, S))
    # With the default dtype the products are float32, and nothing fails.
    single, _ = ours(D, **options).apply(variables, jnp.asarray(numbers(B, T, S)), lengths=[T, 1, 2])
    assert single.dtype == jnp.float32


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_attention(implementation, wide):
    q, k, v, bias = numbers(B, H, T, D), numbers(B, H, S, D), numbers(B, H, S, D)[::-1].copy(), numbers(T, S)
    bias[:, 2] = -np.inf
    options = {"implementation": implementation, "return_weights": False}
    assert_torchs(
        lambda _, q, k, v, bias: scaled_dot_product_attention(q, k, v, bias=bias, **options)[0],
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, bias),
        {},
        *(q, k, v, bias),
    )


def test_multi_head_attention(wide):
    theirs, module = randomized(nn.MultiheadAttention(D, H, batch_first=True)), MultiHeadAttention(H, **DTYPE)
    variables = from_torch(module, theirs.state_dict())
    ours = lambda v, q, k: module.apply(v, q, k)[0]  # noqa: E731
    assert_torchs(ours, lambda q, k: theirs(q, k, k)[0], variables, numbers(B, T, D), numbers(B, S, D)[::-1].copy())


def torch_transformer():
    return randomized(nn.Transformer(D, H, 1, 2, 12, activation=F.gelu, batch_first=True))


def test_transformer(wide):
    theirs = torch_transformer()
    module = Transformer(H, 12, 1, 2, activation="gelu", **DTYPE)
    variables = from_torch(module, theirs.state_dict())
    ours = lambda v, x, y: module.apply(v, x, y, causal=False)[0]  # noqa: E731
    assert_torchs(ours, theirs, variables, numbers(B, S, D), numbers(B, T, D))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"pre_norm": True}], ids=str)
def test_scanned_layers_take_inputs_of_another_dtype(options, dtype, wide):
    module = Transformer(H, 12, 2, 2, scan_layers=True, dtype=dtype, **options)
    x = jnp.ones((B, T, D), jnp.float32)
    out, _ = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, x))[0]
    assert out.dtype == dtype


def test_sequence_to_sequence(wide):
    inner, embedding = torch_transformer(), torch.from_numpy(numbers(V, D) / 4)
    module = Seq2Seq(V, D, H, 12, 1, 2, max_length=S, activation="gelu", **DTYPE)
    transformer = from_torch(Transformer(H, 12, 1, 2, activation="gelu", **DTYPE), inner.state_dict())
    variables = {"params": {"embedding": {"embedding": jnp.asarray(embedding)}, "transformer": transformer["params"]}}
    positions = torch.from_numpy(np.array(sinusoidal_positions(S, D)))
    angle = 4 / 10_000.0 ** (2 / D)
    np.testing.assert_allclose(positions[4, 2:4], [np.sin(angle), np.cos(angle)], rtol=1e-14)

    def theirs(source, target):
        x, y = (embedding[tokens] * D**0.5 + positions[: tokens.shape[1]] for tokens in (source, target))
        return inner(x, y, tgt_mask=~torch.ones(T, T).tril().bool()) @ embedding.T

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (B, S)), rng.integers(0, V, (B, T))
    assert_torchs(lambda v, x, y: module.apply(v, x, y)[0], theirs, variables, *tokens)


@pytest.mark.parametrize(
    "options", [{}, {"pool": "avg", "qk_norm": True, "layer_scale": True, "registers": 2}], ids=str
)
def test_vit(options, wide):
    theirs = randomized(TimmViT(V, 4, D, 2, H, 12, 6, 3, **options))
    fields = {
        "pool": "gap",
        "norm_after_pool": True,
        "qk_norm": True,
        "layer_scale": 1.0,
        "num_registers": 2,
        "register_positions": True,
    }
    module = ViT(V, 4, D, 2, H, 12, **(fields if options else {}), **DTYPE)
    variables = from_torch(module, theirs.state_dict())
    ours = lambda v, x: module.apply(v, x.transpose(0, 2, 3, 1))[0]  # noqa: E731
    assert_torchs(ours, theirs, variables, numbers(B, 3, 8, 12))


def test_autoencoder(wide):
    images, codes = numbers(B, 4, 6, 1), numbers(B, 3)
    encoder, decoder, discriminator = (
        randomized(x)
        for x in (TorchEncoder(24, (11, 9), 3), torch_decoder(3, (9, 12), 24), torch_discriminator(3, (6, 7)))
    )
    parts = AAEEncoder(3, (11, 9), **DTYPE), AAEDecoder((4, 6, 1), (9, 12), **DTYPE), AAEDiscriminator((6, 7), **DTYPE)
    peers = encoder, decoder, discriminator
    params = [from_torch(ours, theirs.state_dict()) for ours, theirs in zip(parts, peers, strict=True)]
    mean = lambda v, x: parts[0].apply(v, x).mean  # noqa: E731
    assert_torchs(mean, lambda x: encoder(x.permute(0, 3, 1, 2))[0], params[0], images)
    image = lambda v, z: parts[1].apply(v, z).reshape(B, -1)  # noqa: E731
    assert_torchs(image, decoder, params[1], codes)
    probability = lambda v, z: parts[2].apply(v, z, method="predict")  # noqa: E731
    assert_torchs(probability, lambda z: discriminator(z)[:, 0], params[2], codes)


@pytest.mark.parametrize("module", [LSTM(D, **DTYPE), MultiHeadAttention(4, **DTYPE), ViT(V, 4, D, 1, H, D, **DTYPE)])
def test_float64_needs_x64_and_is_stored_with_the_module(module):
    with pytest.raises(ValueError, match=r"dtype must be float32 .*got float64.*jax_enable_x64"):
        module_leaves(module)
    assert module_from_json(module_to_json(module)) == module


def test_the_converter_names_both_settings():
    with pytest.raises(ValueError, match=r'must not be float64.*jax_enable_x64", True\), and set dtype="float64"'):
        from_torch(LSTM(D), nn.LSTM(S, D).double().state_dict())
