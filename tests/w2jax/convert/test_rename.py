"""User-defined layer names: one table of names reads and writes a model, and errors list the unmatched names."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from models import random_variables
from torch import nn
from torch_aae import TorchEncoder
from torch_vit import TorchViT
from weights import ENCODER, IMAGES, assert_same, converted, randomize, refusal

from w2jax.attention import MultiHeadAttention
from w2jax.convert import from_torch, to_torch
from w2jax.convert.layouts import MULTIHEAD
from w2jax.vit import ViT

VIT = ViT(5, 2, 8, 2, 2, 12)
PIXELS = np.random.default_rng(1).random((3, 4, 6, 2)).astype(np.float32)
ATTENTION = {  # torch.nn.MultiheadAttention
    "blocks.{i}.attention.in_proj_weight": (
        "encoder/block_{i}/attention/{query,key,value}/kernel",
        "(s h k) i -> s i h k",
    ),
    "blocks.{i}.attention.in_proj_bias": ("encoder/block_{i}/attention/{query,key,value}/bias", "(s h k) -> s h k"),
    "blocks.{i}.attention.out_proj": "encoder/block_{i}/attention/out",
}
LAYERS = {  # the other layers of TorchViT whose names differ; the first row that names a parameter counts
    "embed": "patch_embed/projection",
    "blocks.{i}.mlp.0": "encoder/block_{i}/mlp/fc1",
    "blocks.{i}.mlp.2": "encoder/block_{i}/mlp/fc2",
    "blocks.{i}": "encoder/block_{i}",
}
COURSE = ATTENTION | LAYERS


def torch_vit(**options: Any) -> TorchViT:
    return randomize(TorchViT(5, 2, 8, 2, 2, 12, (4, 6), 2, **options))


@cache
def compiled(module: ViT) -> Any:
    return jax.jit(module.apply)


class Attention(nn.Module):
    """Multi-head attention with four Linear layers, as courses write it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.W_q, self.W_k, self.W_v, self.W_o = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (w(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.W_q, self.W_k, self.W_v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.W_o((weights @ v).transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, width: int):
        super().__init__()
        self.ln_a, self.ln_b = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.msa, self.ff_in, self.ff_out = Attention(dim, heads), nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.ln_a(x)  # the residual is taken after the norm
        x = x + self.msa(x)
        return x + self.ff_out(nn.functional.gelu(self.ff_in(self.ln_b(x))))


class MyViT(nn.Module):
    """A ViT with its own layer names, and an embedding whose weight has the axes [channel, row, column, width]."""

    def __init__(self):
        super().__init__()
        self.patch_weight, self.patch_bias = nn.Parameter(torch.zeros(2, 2, 2, 8)), nn.Parameter(torch.zeros(8))
        self.c, self.pos = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 7, 8))
        self.stack = nn.ModuleList(Layer(8, 2, 12) for _ in range(2))
        self.ln, self.out = nn.LayerNorm(8, eps=1e-6), nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.unflatten(1, (2, 2)).unflatten(3, (3, 2))  # axes after this line: b n p m q c
        x = torch.einsum("bnpmqc,cpqd->bnmd", x, self.patch_weight).flatten(1, 2) + self.patch_bias
        x = torch.cat([self.c.expand(len(x), -1, -1), x], dim=1) + self.pos
        for layer in self.stack:
            x = layer(x)
        return self.out(self.ln(x[:, 0]))


MINE = {
    "patch_weight": ("patch_embed/projection/kernel", "c p1 p2 d -> (p1 p2 c) d"),
    "patch_bias": "patch_embed/projection/bias",
    "c": "cls",
    "pos": "positions",
    "stack.{i}.ln_a": "encoder/block_{i}/norm1",
    "stack.{i}.ln_b": "encoder/block_{i}/norm2",
    "stack.{i}.msa.W_q": "encoder/block_{i}/attention/query",
    "stack.{i}.msa.W_k": "encoder/block_{i}/attention/key",
    "stack.{i}.msa.W_v": "encoder/block_{i}/attention/value",
    "stack.{i}.msa.W_o": "encoder/block_{i}/attention/out",
    "stack.{i}.ff_in": "encoder/block_{i}/mlp/fc1",
    "stack.{i}.ff_out": "encoder/block_{i}/mlp/fc2",
    "ln": "norm",
    "out": "head",
}
FROM_NORM = VIT.clone(residual_from_norm=True)


def there_and_back(module: Any, theirs: nn.Module, rename: dict[str, Any]) -> dict[str, Any]:
    """Converts the variables of `theirs` to ours. Asserts that converting them back restores every bit."""
    variables = from_torch(module, theirs.state_dict(), rename)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert_same(to_torch(module, variables, "torch", rename), state)
    return variables


def test_a_vit_with_other_names_gives_the_same_outputs() -> None:
    peer = randomize(MyViT())
    logits, _ = compiled(FROM_NORM)(there_and_back(FROM_NORM, peer, MINE), jnp.asarray(PIXELS))
    np.testing.assert_allclose(logits, peer(torch.from_numpy(PIXELS)).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("from_norm", [False, True])
def test_the_courses_vit_gives_the_same_outputs(from_norm: bool) -> None:
    peer, module = torch_vit(residual_from_norm=from_norm), VIT.clone(residual_from_norm=from_norm)
    logits, _ = compiled(module)(there_and_back(module, peer, COURSE), jnp.asarray(PIXELS))
    np.testing.assert_allclose(logits, peer(torch.from_numpy(PIXELS))[0].detach(), rtol=0, atol=1e-5)


def test_torchs_attention_is_recognized_below_a_renamed_layer() -> None:
    state = torch_vit().state_dict()
    assert_same(from_torch(VIT, state, LAYERS), from_torch(VIT, state, COURSE))
    separate = LAYERS | {"blocks.{i}.attention": ("encoder/block_{i}/attention", MULTIHEAD)}
    separate = dict(sorted(separate.items(), reverse=True))  # longer names first
    assert_same(from_torch(VIT, state, separate), from_torch(VIT, state, COURSE))


def test_stacked_layers_accept_the_same_names() -> None:
    peer, scanned = torch_vit(), VIT.clone(scan_layers=True)
    variables = there_and_back(scanned, peer, COURSE)
    plain = from_torch(VIT, peer.state_dict(), COURSE)["params"]["encoder"]
    stacked = jax.tree.map(lambda *x: np.stack(x), plain["block_0"], plain["block_1"])
    assert_same(variables["params"]["encoder"]["blocks"], stacked)


def test_the_courses_attention_with_four_linears_gives_the_same_outputs() -> None:
    peer, module = randomize(Attention(6, 3)), MultiHeadAttention(3)
    rename = {"W_q": "query", "W_k": "key", "W_v": "value", "W_o": "out"}
    x = np.random.default_rng(2).standard_normal((2, 4, 6)).astype(np.float32)
    out, _ = module.apply(there_and_back(module, peer, rename), jnp.asarray(x))
    np.testing.assert_allclose(out, peer(torch.from_numpy(x)).detach(), rtol=0, atol=1e-5)


def test_an_encoder_with_other_names_converts_to_the_same_parameters() -> None:
    peer = randomize(TorchEncoder(12, (7, 5), 3))
    names = {"mean.": "mu.", "log_variance.": "logvar.", "hidden.0.": "fc1.", "hidden.3.": "fc2."}
    state = peer.state_dict()
    for ours, theirs in names.items():
        state = {key.replace(ours, theirs): value for key, value in state.items()}
    rename = {"mu": "mean", "logvar": "log_variance", "fc1": "hidden_0", "fc2": "hidden_1"}
    variables = from_torch(ENCODER, state, rename)
    assert_same(variables, converted(ENCODER, peer))
    back = to_torch(ENCODER, variables, rename=rename)
    assert_same(back, {key: value.numpy() for key, value in state.items()})
    swapped = from_torch(ENCODER, state, rename | {"mu": "log_variance", "logvar": "mean"})
    assert not np.array_equal(ENCODER.apply(swapped, IMAGES).mean, ENCODER.apply(variables, IMAGES).mean)


def test_a_wrong_table_lists_the_unmatched_names_on_both_sides() -> None:
    state = randomize(MyViT()).state_dict()
    without = {theirs: ours for theirs, ours in MINE.items() if theirs != "stack.{i}.ff_in"}
    message = refusal(lambda: from_torch(FROM_NORM, state, without))
    for line in (
        "unexpected  stack.0.ff_in.weight (12, 8)",
        "unexpected  stack.1.ff_in.bias (12,)",
        "for encoder/block_0/mlp/fc1/kernel",
        "for encoder/block_1/mlp/fc1/bias",
    ):
        assert line in message
    assert "ln_a" not in message
    typo = {theirs.replace("stack", "stacks"): ours for theirs, ours in MINE.items()}
    message = refusal(lambda: from_torch(FROM_NORM, state, typo))
    assert (
        "missing     stacks.0.ln_a.weight (8,), for encoder/block_0/norm1/scale (similar: stack.0.ln_a.weight)"
        in message
    )
    assert "unexpected  stack.1.ff_out.bias (8,) (similar: stacks.1.ff_out.bias)" in message


def test_for_an_unknown_path_the_error_names_the_nearest() -> None:
    variables = random_variables(VIT, jnp.asarray(PIXELS))
    for rename, near in [
        ({"blocks.{i}.n": "encoder/block_{i}/norm3"}, "norm"),
        ({"pos": "position"}, 'did you mean "positions"?'),
        ({"pos": ("pos_embed", "1 n d -> 1 n d")}, "must be a path of ViT"),
    ]:
        theirs, ours = next(iter(rename.items()))
        for work in (lambda: from_torch(VIT, {}, rename), lambda: to_torch(VIT, variables, "torch", rename)):  # noqa: B023
            message = refusal(work)
            assert f'the path of "{theirs}" in rename must be a path of ViT' in message
            assert f'got "{ours if isinstance(ours, str) else ours[0]}"' in message
            assert near in message


def test_a_converted_vit_trains_like_its_torch_model() -> None:
    peer = torch_vit()
    labels = np.array([1, 4, 0])
    loss = nn.functional.cross_entropy(peer(torch.from_numpy(PIXELS))[0], torch.from_numpy(labels))
    loss.backward()

    def our_loss(params: Any) -> Any:
        logits, _ = VIT.apply({"params": params}, jnp.asarray(PIXELS))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.jit(jax.value_and_grad(our_loss))(from_torch(VIT, peer.state_dict(), COURSE)["params"])
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    found = to_torch(VIT, {"params": gradients}, "torch", COURSE)
    wanted = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-6, err_msg=name)
