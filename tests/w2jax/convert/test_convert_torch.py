"""Weights of torch.nn modules and of the course's autoencoder: equal outputs, and bit for bit the same weights back."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import linen
from models import random_variables
from torch import nn
from torch_aae import TorchEncoder, hidden, images_of, torch_decoder, torch_discriminator
from weights import DECODER, ENCODER, IMAGES, RNG, assert_same, converted, randomize, refusal

from w2jax.aae import AAE, AAEDiscriminator, AAEEncoder
from w2jax.attention import MultiHeadAttention
from w2jax.convert import from_torch, load, save, to_torch
from w2jax.lstm import LSTM
from w2jax.rnn import GRU, RNN
from w2jax.sequence_classifiers import AttentionClassifier, LSTMClassifier
from w2jax.transformer import Transformer

FIXTURES = Path(__file__).parents[2] / "fixtures"
X = RNG.standard_normal((2, 4, 5)).astype(np.float32)  # [B, T, I]


def close(found: Any, wanted: torch.Tensor) -> None:
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=0, atol=1e-5)


# warnings of torch about the kernels that it chooses
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:enable_nested_tensor")
RECURRENT = [
    (LSTM, nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 2}, 1),
    (LSTM, nn.LSTM, {"num_layers": 2, "proj_size": 2, "bias": False}, 1),
    (LSTM, nn.LSTM, {"bidirectional": True, "bias": False}, 2),
    (LSTM, nn.LSTM, {}, 2),
    (GRU, nn.GRU, {"num_layers": 2, "bidirectional": True}, 1),
    (GRU, nn.GRU, {"bias": False}, 2),
    (RNN, nn.RNN, {"num_layers": 2, "bidirectional": True}, 1),
    (RNN, nn.RNN, {"nonlinearity": "relu", "bias": False}, 1),
]


@pytest.mark.parametrize(("ours", "theirs", "options", "inputs"), RECURRENT, ids=str)
def test_recurrent_networks_give_torchs_outputs(ours: Any, theirs: Any, options: dict[str, Any], inputs: int) -> None:
    x = X[:, :, :: 3 - inputs]
    module, peer = ours(hidden_size=3, **options), randomize(theirs(x.shape[-1], 3, batch_first=True, **options))
    variables = converted(module, peer)
    found, state = jax.jit(module.apply)(variables, jnp.asarray(x))
    wanted, last = peer(torch.from_numpy(np.ascontiguousarray(x)))
    close(found, wanted)
    for one, other in zip(jax.tree.leaves(state), last if isinstance(last, tuple) else [last], strict=True):
        close(one, other)


def test_an_lstm_from_a_file_gives_torchs_outputs_and_states() -> None:
    """Also for packed sequences."""
    folder = FIXTURES / "lstm_2layer"
    io, tensors = np.load(folder / "io.npz"), safetensors.numpy.load_file(folder / "model.safetensors")
    module = LSTM(6, num_layers=2)
    variables = from_torch(module, tensors)
    assert_same(to_torch(module, variables), tensors)
    run = jax.jit(module.apply)
    initial = jnp.asarray(io["h0"]), jnp.asarray(io["c0"])
    y, (h, c) = run(variables, jnp.asarray(io["x"]), initial)
    packed, (hp, cp) = run(variables, jnp.asarray(io["x"]), initial, jnp.asarray(io["lengths"]))
    for found, name in zip(
        (y, h, c, packed, hp, cp), ("y", "hn", "cn", "y_packed", "hn_packed", "cn_packed"), strict=True
    ):
        np.testing.assert_allclose(found, io[name], rtol=0, atol=1e-5, err_msg=name)


def test_a_file_of_multi_head_attention_gives_its_outputs_and_weights() -> None:
    folder = FIXTURES / "mha_self"
    io, tensors = np.load(folder / "io.npz"), safetensors.numpy.load_file(folder / "model.safetensors")
    module = MultiHeadAttention(3)
    variables = from_torch(module, tensors)
    assert_same(to_torch(module, variables), tensors)
    mask = ~io["key_padding_mask_true_means_ignore"][:, None, None]
    q, k, v = (jnp.asarray(io[name]) for name in "qkv")
    out, weights = module.apply(variables, q, k, v, jnp.asarray(mask), return_weights=True)
    np.testing.assert_allclose(out, io["out"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(weights, io["weights"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"kdim": 5, "vdim": 7}, {"kdim": 5, "vdim": 7, "bias": False}]
)
def test_multi_head_attention_gives_torchs_outputs(options: dict[str, Any]) -> None:
    widths = 6, options.get("kdim", 6), options.get("vdim", 6)
    inputs = [RNG.standard_normal((2, 3 + (i > 0), width)).astype(np.float32) for i, width in enumerate(widths)]
    peer = randomize(nn.MultiheadAttention(6, 2, batch_first=True, **options))
    module = MultiHeadAttention(2, use_bias=options.get("bias", True))
    out, weights = module.apply(converted(module, peer), *map(jnp.asarray, inputs), return_weights=True)
    theirs = peer(*map(torch.from_numpy, inputs), average_attn_weights=False)
    close(out, theirs[0])
    close(weights, theirs[1])


@pytest.mark.parametrize(("scan", "use_bias"), [(False, True), (True, False)])
def test_a_transformer_gives_torchs_outputs(scan: bool, use_bias: bool) -> None:
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 1, "dropout": 0.0}
    peer = randomize(nn.Transformer(6, 2, dim_feedforward=8, batch_first=True, bias=use_bias, **layers))
    module = Transformer(2, 8, 2, 1, dropout=0.0, use_bias=use_bias, scan_layers=scan)
    source, target = (RNG.standard_normal((2, n, 6)).astype(np.float32) for n in (4, 3))
    out, _ = jax.jit(module.apply)(converted(module, peer), jnp.asarray(source), jnp.asarray(target))
    causal = nn.Transformer.generate_square_subsequent_mask(3)
    close(out, peer(torch.from_numpy(source), torch.from_numpy(target), tgt_mask=causal))


def trained_decoder() -> nn.Sequential:
    """Returns a decoder whose batch norm was updated with three batches."""
    decoder = torch_decoder(3, (6, 4), 12)
    randomize(decoder).train()
    for _ in range(3):
        decoder(torch.randn(5, 3))
    return decoder.eval()


DISCRIMINATOR = AAEDiscriminator((6, 4))


def test_the_autoencoders_parts_give_the_outputs_of_their_sequentials() -> None:
    encoder, decoder = randomize(TorchEncoder(12, (7, 5), 3)), trained_decoder()
    discriminator = randomize(torch_discriminator(3, (6, 4)))
    code = ENCODER.apply(converted(ENCODER, encoder), IMAGES)
    mean, log_variance = encoder(images_of(IMAGES))
    close(code.mean, mean)
    close(code.log_variance, log_variance)
    variables = converted(DECODER, decoder)
    assert int(variables["batch_stats"]["norm_1"]["count"]) == 3
    images = DECODER.apply(variables, code.z)
    close(np.asarray(images).reshape(2, 12), decoder(mean))
    found = DISCRIMINATOR.apply(converted(DISCRIMINATOR, discriminator), code.z, method="predict")
    close(found, discriminator(mean)[:, 0])


def test_a_deterministic_encoder_converts_to_one_sequential() -> None:
    module, peer = AAEEncoder(3, (7, 5), stochastic=False), nn.Sequential(*hidden(12, (7, 5), 0.2), nn.Linear(5, 3))
    code = module.apply(converted(module, randomize(peer)), IMAGES)
    close(code.mean, peer(images_of(IMAGES).flatten(1)))


def test_sequentials_with_other_layers_and_names_are_read_in_order() -> None:
    decoder = trained_decoder()
    wanted = from_torch(DECODER, decoder.state_dict())
    sparse = nn.Sequential(*(layer for layer in decoder if not isinstance(layer, nn.Dropout | nn.ReLU | nn.Tanh)))
    assert_same(from_torch(DECODER, sparse.state_dict()), wanted)
    assert_same(from_torch(DECODER, {f"net.main.{key}": x for key, x in sparse.state_dict().items()}), wanted)
    padded = nn.Sequential(*(nn.Identity() for _ in range(9)), *sparse)  # layer numbers with one and with two digits
    assert_same(from_torch(DECODER, padded.state_dict()), wanted)
    encoder = TorchEncoder(12, (7, 5), 3)
    state = encoder.state_dict()
    renamed = {key.replace("hidden.3.", "hidden.1."): value for key, value in state.items()}
    assert renamed.keys() != state.keys()
    assert_same(from_torch(ENCODER, renamed), from_torch(ENCODER, state))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "encoder": AAEEncoder(3, (7, 5), batch_norm=(0, 1), categories=2, normalize_categories=True),
            "cluster_heads": True,
        },
    ],
    ids=("plain", "categories"),
)
def test_a_complete_autoencoder_converts_back(tmp_path: Path, options: dict[str, Any]) -> None:
    module = AAE(**({"encoder": ENCODER, "decoder": DECODER, "discriminator": DISCRIMINATOR} | options))
    variables = random_variables(module, IMAGES)
    tensors = to_torch(module, variables)
    assert_same(tensors, to_torch(module, variables, "torch"))
    assert tensors["decoder.4.num_batches_tracked"].dtype == np.int64
    assert_same(from_torch(module, tensors), variables)
    save(tmp_path / "a.safetensors", module, variables)
    found = load(tmp_path / "a.safetensors")
    assert found[0] == module
    assert_same(found[1], variables)


def test_the_file_of_an_autoencoder_contains_its_parts_unchanged() -> None:
    module = AAE(ENCODER, DECODER, DISCRIMINATOR)
    parts = {"encoder": TorchEncoder(12, (7, 5), 3), "decoder": trained_decoder()}
    parts["discriminator"] = torch_discriminator(3, (6, 4))
    whole = nn.ModuleDict(parts).state_dict()
    variables = from_torch(module, whole)
    for name, part in (("encoder", ENCODER), ("decoder", DECODER), ("discriminator", DISCRIMINATOR)):
        alone = from_torch(part, parts[name].state_dict())
        assert_same({kind: tree[name] for kind, tree in variables.items() if name in tree}, alone)
    assert to_torch(module, variables).keys() == whole.keys()


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (LSTMClassifier(5, 3), (jnp.zeros((1, 4, 2)),)),
        (AttentionClassifier(5, 6, 2, 2, 7), (jnp.zeros((1, 4, 3)),)),
        (MultiHeadAttention(2, embed_dim=6, qk_dim=8, v_dim=4, qk_norm=True), (jnp.zeros((1, 2, 5)),)),
        (MultiHeadAttention(4, num_kv_heads=2, qkv_bias=False), (jnp.zeros((1, 2, 8)),)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_modules_without_a_torch_equivalent_come_back_from_our_files(tmp_path: Path, module: Any, inputs: Any) -> None:
    variables = random_variables(module, *inputs)
    save(tmp_path / "a.npz", module, variables)
    found = load(tmp_path / "a.npz")
    assert found[0] == module
    assert_same(found[1], variables)


def test_a_batch_count_that_is_not_an_integer_is_refused() -> None:
    state = trained_decoder().state_dict()
    (key,) = (key for key in state if key.endswith("num_batches_tracked"))
    assert f"{key} must be integers, got float32" in refusal(
        lambda: from_torch(DECODER, state | {key: torch.tensor(1.0)})
    )


def test_every_module_also_accepts_its_own_parameter_paths() -> None:
    encoder = {
        "hidden_0.weight": (7, 12),
        "hidden_1.weight": (5, 7),
        "mean.weight": (3, 5),
        "log_variance.weight": (3, 5),
    }
    for module, shapes in [
        (
            ENCODER,
            {
                name: size
                for weight, shape in encoder.items()
                for name, size in ((weight, shape), (weight.replace("weight", "bias"), shape[:1]))
            },
        ),
        (
            MultiHeadAttention(2, use_bias=False),
            {f"{name}.weight": (6, 6) for name in ("query", "key", "value", "out")},
        ),
    ]:
        tensors = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        params = from_torch(module, tensors)["params"]
        first = next(iter(tensors))
        kernel = params[first.split(".")[0]]["kernel"]
        np.testing.assert_array_equal(kernel.reshape(kernel.shape[0], -1), tensors[first].T)


class Convolutions(linen.Module):
    """A user's module whose kernels have one and two spatial axes, and one has groups."""

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(6, (3, 2), padding="VALID", name="first")(x)
        x = linen.Conv(6, (2, 3), padding="VALID", feature_group_count=3, name="grouped")(x)
        return linen.Conv(4, (5,), padding="VALID", name="line")(x.reshape(x.shape[0], -1, 6))

    def example_inputs(self, size):
        return (jax.ShapeDtypeStruct((1, 5, 7, size("first/kernel", 2, 3)), jnp.float32),)


def test_convolutions_have_torchs_layout_and_values():
    module, x = Convolutions(), np.random.default_rng(0).standard_normal((2, 5, 7, 3), np.float32)
    variables = module.init(jax.random.key(0), x)
    weights = {name: torch.tensor(value) for name, value in to_torch(module, variables, "torch").items()}
    first, grouped = nn.Conv2d(3, 6, (3, 2)), nn.Conv2d(6, 6, (2, 3), groups=3)
    line = nn.Conv1d(6, 4, 5)
    for name, layer in (("first", first), ("grouped", grouped), ("line", line)):
        layer.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
    with torch.no_grad():
        y = grouped(first(torch.tensor(x).permute(0, 3, 1, 2)))
        expected = line(y.permute(0, 2, 3, 1).reshape(2, -1, 6).permute(0, 2, 1)).permute(0, 2, 1)
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, from_torch(module, weights), variables)
