"""The Vision Transformer: torch's numbers, order given only by positions, and every option."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax.errors import InvalidRngError
from models import random_variables, run
from torch_vit import TorchViT, state_dict

from w2jax import ViT
from w2jax.blocks import Mlp
from w2jax.vit import AttentionPool, PatchEmbed, resize_positions, sincos2d_positions

SIZES = {"num_classes": 5, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_dim": 20}
B, HEIGHT, WIDTH, C, V = 2, 8, 12, 3, 5


def vit(**options):
    return ViT(**(SIZES | options))


def images(height=HEIGHT, width=WIDTH):
    return jax.random.normal(jax.random.key(0), (B, height, width, C))


def init(model, *args):
    return random_variables(model, images(*args))


@pytest.mark.parametrize("from_norm", [False, True])
def test_logits_attention_and_every_gradient_are_torchs(from_norm):
    model = vit(residual_from_norm=from_norm, norm_eps=1e-2)
    params = init(model)["params"]
    theirs = TorchViT(V, 4, 12, 2, 3, 20, (HEIGHT, WIDTH), C, eps=1e-2, residual_from_norm=from_norm)
    theirs.load_state_dict(state_dict(params))
    expected, expected_attentions = theirs(torch.from_numpy(np.array(images())))
    (expected**2).sum().backward()

    def loss(params):
        logits, attentions = model.apply({"params": params}, images(), return_attention=True)
        return (logits**2).sum(), (logits, attentions)

    gradients, (logits, attentions) = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-5, atol=1e-5)
    for ours, theirs_ in zip(attentions, expected_attentions, strict=True):
        np.testing.assert_allclose(ours, theirs_.detach(), rtol=1e-5, atol=1e-6)
    ours = state_dict(jax.tree.map(np.asarray, gradients))
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(ours[name], parameter.grad, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"pool": "gap"}, {"pool": "map"}, {"num_registers": 2}])
def test_the_order_of_patches_matters_only_through_positions(options):
    model = vit(**options)
    variables = init(model)
    x = images()
    swapped = jnp.concatenate([x[:, :, 4:8], x[:, :, :4], x[:, :, 8:]], axis=2)  # the first two columns of patches
    order = [1, 0, 2, 4, 3, 5]

    logits, _ = run(model, variables, x)
    assert not np.allclose(run(model, variables, swapped)[0], logits, atol=1e-3)
    params = dict(variables["params"])
    positions = params["positions"]
    params["positions"] = jnp.concatenate([positions[:, :1], positions[:, 1:][:, order]], axis=1)
    np.testing.assert_allclose(run(model, {"params": params}, swapped)[0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "gap", "class_token": False},
        {"pool": "map", "class_token": False},
        {"positions": "sincos2d"},
        {"class_position": False},
        {"num_registers": 2},
        {"num_registers": 2, "register_positions": True, "pool": "gap", "norm_after_pool": True},
        {"num_registers": 2, "register_positions": True, "class_position": False, "embed_norm": True},
        {"layer_scale": 0.1, "qk_norm": True},
        {"qkv_bias": False, "patch_bias": False},
        {"pre_logits_dim": 7},
        {"activation": "gelu_tanh", "norm_eps": 1e-3, "attention_scale": 12**-0.5},
        {"remat": True, "scan_layers": True},
        {"pool": "cls_gap", "num_registers": 2, "head_bias": False},
        {"activation": "swiglu", "final_norm": False},
        {"num_registers": 1, "register_positions": True, "distilled": True},
        {"res_post_norm": True, "patch_size": (2, 3)},
        {"sub_norm": True},
        {"rms_norm": True, "sub_norm": True, "qk_norm": True, "pool": "map", "num_registers": 2, "pool_prefix": True},
    ],
    ids=str,
)
def test_every_parameter_of_every_option_reaches_the_logits(options):
    model = vit(**options)
    variables = init(model)
    loss = jax.jit(jax.grad(lambda v: (model.apply(v, images())[0] ** 3).sum()))
    for path, gradient in jax.tree.leaves_with_path(loss(variables)):
        # Adding one vector to all keys adds one number to all logits of a query. The softmax cancels this number.
        if "key" not in jax.tree_util.keystr(path) or path[-1].key != "bias" or options.get("qk_norm"):
            assert float(jnp.abs(gradient).max()) > 0, path


@pytest.mark.parametrize("option", [{"activation": "gelu_tanh"}, {"norm_eps": 1e-2}, {"attention_scale": 12**-0.5}])
def test_options_without_parameters_change_the_logits(option):
    variables = init(vit())
    changed, plain = (run(model, variables, images())[0] for model in (vit(**option), vit()))
    assert float(jnp.abs(changed - plain).max()) > 2e-5


@pytest.mark.parametrize("option", ["dropout", "attention_dropout", "drop_path"])
def test_random_options_act_in_training_only(option):
    variables, rngs = init(vit()), {"dropout": jax.random.key(3)}
    still, _ = run(vit(), variables, images(), train=True)
    np.testing.assert_array_equal(run(vit(**{option: 0.3}), variables, images())[0], still)
    assert not np.allclose(run(vit(**{option: 0.3}), variables, images(), train=True, rngs=rngs)[0], still, atol=1e-4)


def test_bfloat16_computes_near_float32_with_float32_parameters_and_logits():
    variables = init(vit())
    half = vit(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), images()))} == {
        jnp.dtype("float32")
    }
    logits, expected = run(half, variables, images())[0], run(vit(), variables, images())[0]
    assert logits.dtype == jnp.float32 and not np.array_equal(logits, expected)
    np.testing.assert_allclose(logits, expected, atol=0.1)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("pool", ["cls", "gap", "map"])
def test_pools_read_the_class_token_or_the_patches(pool, after):
    """Before or after the norm, as the pool says."""
    model = vit(num_classes=0, num_registers=2, pool=pool, norm_after_pool=after)
    variables = init(model)

    def kept(module, _):
        return module.name in ("encoder", "pool")

    (features, _), state = run(model, variables, images(), capture_intermediates=kept)
    tokens = state["intermediates"]["encoder"]["__call__"][0][0]
    assert tokens.shape[1] == 1 + 2 + 6
    norm_params = variables["params"]["pool_norm" if after else "norm"]

    def norm(x):
        return nn.LayerNorm(1e-6, use_fast_variance=False).apply({"params": norm_params}, x)

    def pooled(x):
        if pool == "map":
            return AttentionPool(3, 20).apply({"params": variables["params"]["pool"]}, x)
        return x.mean(axis=1) if pool == "gap" else x

    x = tokens[:, 0] if pool == "cls" else tokens[:, 3:]
    np.testing.assert_allclose(features, norm(pooled(x)) if after else pooled(norm(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["gap", "map"])
def test_pools_can_read_all_tokens(pool):
    plain = vit(num_classes=0, num_registers=2, pool=pool)
    variables = init(plain)
    tokens = plain.features(variables, images())[0]
    pooled = tokens.mean(axis=1)
    if pool == "map":
        map_pool = AttentionPool(plain.num_heads, plain.mlp_dim)
        pooled = map_pool.apply({"params": variables["params"]["pool"]}, tokens)
    np.testing.assert_allclose(run(plain.clone(pool_prefix=True), variables, images())[0], pooled, rtol=1e-5, atol=1e-5)
    assert not np.allclose(run(plain, variables, images())[0], pooled, atol=1e-3)


def test_a_patch_that_is_not_square_is_the_stride_of_torchs_convolution():
    embed = PatchEmbed((2, 3), 5)
    variables, x = init(embed), np.array(images())
    kernel = np.asarray(variables["params"]["projection"]["kernel"]).reshape(2, 3, -1, 5).transpose(3, 2, 0, 1)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(np.ascontiguousarray(kernel)),
        torch.from_numpy(np.array(variables["params"]["projection"]["bias"])),
        stride=(2, 3),
    )
    expected = theirs.flatten(2).transpose(1, 2)  # rows of 4 patches
    np.testing.assert_allclose(embed.apply(variables, images()), expected, rtol=1e-5, atol=1e-5)


def test_cls_gap_is_the_class_token_and_then_the_mean_of_the_patches():
    both = vit(num_classes=0, num_registers=2, pool="cls_gap")
    variables = init(both)
    features, _ = run(both, variables, images())
    for pool, part in (("cls", features[:, :12]), ("gap", features[:, 12:])):
        np.testing.assert_allclose(run(both.clone(pool=pool), variables, images())[0], part, rtol=1e-5, atol=1e-6)


def test_the_logits_of_a_distilled_vit_are_the_mean_of_two_classifiers():
    """The second classifier reads the first register. Without classes the features are the mean of both tokens."""
    model = vit(num_registers=1, register_positions=True, distilled=True)
    variables = init(model)
    params = dict(variables["params"])
    second = params.pop("head_distilled")
    plain = model.clone(distilled=False)
    of_class, _ = run(plain, {"params": params}, images())
    tokens, _ = run(plain.clone(num_classes=0), {"params": params}, images())
    mean, _ = run(model.clone(num_classes=0), {"params": params}, images())
    of_register = (2 * mean - tokens) @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(run(model, variables, images())[0], (of_class + of_register) / 2, rtol=1e-4, atol=1e-5)


def test_swiglu_is_silu_of_the_first_half_times_the_second_half():
    x = jax.random.normal(jax.random.key(1), (3, 4))
    mlp = Mlp(5, activation="swiglu")
    params = mlp.init(jax.random.key(2), x)["params"]
    hidden = torch.tensor(np.asarray(x @ params["fc1"]["kernel"]))
    first, second = hidden.chunk(2, dim=-1)
    expected = (torch.nn.functional.silu(first) * second).numpy() @ np.asarray(params["fc2"]["kernel"])
    assert params["fc1"]["kernel"].shape == (4, 10) and params["fc2"]["kernel"].shape == (5, 4)
    np.testing.assert_allclose(mlp.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-6)


def test_partial_patches_are_dropped_as_in_torchs_convolution():
    model = vit(partial_patches="drop")
    variables = init(model)
    cut = images(11, 15)
    np.testing.assert_array_equal(run(model, variables, cut)[0], run(vit(), variables, cut[:, :8, :12])[0])


def test_pre_logits_are_the_tanh_of_a_dense_layer_on_the_pooled_features():
    model = vit(num_classes=0, pre_logits_dim=7)
    variables = init(model)
    dense = variables["params"]["pre_logits"]
    pooled, _ = run(vit(num_classes=0), variables, images())
    expected = np.tanh(pooled @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(run(model, variables, images())[0], expected, rtol=1e-5, atol=1e-6)


def test_sincos_positions_vary_in_two_directions_and_have_unit_pairs():
    positions = sincos2d_positions((3, 4), 16).reshape(
        3, 4, 4, 4
    )  # row, column, (sin x, cos x, sin y, cos y), frequency
    np.testing.assert_array_equal(positions[0, :, :2], positions[2, :, :2])
    np.testing.assert_array_equal(positions[:, 0, 2:], positions[:, 3, 2:])
    np.testing.assert_allclose(positions[:, :, 0] ** 2 + positions[:, :, 1] ** 2, 1.0, rtol=1e-5)
    np.testing.assert_allclose(positions[0, 3, 0], np.sin(3 / 10_000 ** np.linspace(0, 1, 4)), rtol=1e-5)


def test_resized_positions_interpolate_and_keep_the_class_token():
    """The result has the size of the new image."""
    model = vit()
    variables = init(model)
    resized = model.resize(variables, (HEIGHT, WIDTH), (12, 8))
    assert resized["params"]["positions"].shape == (1, 1 + 3 * 2, 12)
    np.testing.assert_array_equal(resized["params"]["positions"][:, 0], variables["params"]["positions"][:, 0])
    assert jnp.isfinite(run(model, resized, images(12, 8))[0]).all()
    same = model.resize(variables, (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    np.testing.assert_array_equal(same["params"]["positions"], variables["params"]["positions"])

    narrow = vit(patch_size=(2, 3))
    resized = narrow.resize(init(narrow), (HEIGHT, WIDTH), (10, 9))
    assert resized["params"]["positions"].shape == (1, 1 + 5 * 3, 12)
    assert jnp.isfinite(run(narrow, resized, images(10, 9))[0]).all()

    model = vit(num_registers=2, register_positions=True)
    variables = init(model)
    resized = model.resize(variables, (HEIGHT, WIDTH), (12, 8))["params"]["positions"]
    assert resized.shape == (1, 1 + 2 + 3 * 2, 12)
    np.testing.assert_array_equal(resized[:, :3], variables["params"]["positions"][:, :3])

    rows = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 5, 2)).reshape(1, 20, 2)  # changes with the row only
    finer = resize_positions(rows, (4, 5), (8, 10)).reshape(8, 10, 2)
    np.testing.assert_allclose(finer, finer[:, :1, :1] * jnp.ones((1, 10, 2)), atol=1e-5)
    assert (jnp.diff(finer[:, 0, 0]) > 0).all()
    with pytest.raises(
        ValueError, match=r"must have 15 entries \(0 for class token and registers, and 3×5 for the patches\), got 20"
    ):
        resize_positions(rows, (3, 5), (4, 4))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (1, 12)),
        ({"pool": "cls_gap", "head_bias": False}, (1, 24)),
        ({"pool": "map", "scan_layers": True, "dtype": "bfloat16"}, (1, 12)),
        ({"pool": "gap", "norm_after_pool": True, "pre_logits_dim": 7}, (1, 7)),
        ({"distilled": True, "num_registers": 1}, (2, 12)),
    ],
    ids=["cls", "cls_gap", "map", "pre_logits", "distilled"],
)
def test_the_logits_are_those_of_the_classifier_on_its_inputs(options, shape):
    model = vit(**options)
    variables = init(model)
    inputs = jax.jit(partial(model.head_inputs, train=True))(variables, images())
    assert inputs.shape == (len(images()), *shape) and inputs.dtype == jnp.float32
    heads = {name: x for name, x in variables["params"].items() if name.startswith("head")}
    logits = jax.jit(model.classify)({"params": heads}, inputs)
    rtol = 1e-2 if model.dtype == "bfloat16" else 1e-5  # XLA may skip the rounding between two layers.
    np.testing.assert_allclose(logits, run(model, variables, images())[0], rtol=rtol, atol=1e-6)


def test_the_inputs_of_the_classifier_need_a_classifier_and_no_random_numbers():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        vit(num_classes=0).head_inputs({}, images())
    for rate in ("dropout", "attention_dropout", "drop_path"):
        model = vit(**{rate: 0.1})
        with pytest.raises(InvalidRngError):
            jax.eval_shape(partial(model.head_inputs, train=True), init(model), images())


@pytest.mark.slow
def test_named_sizes_have_the_published_parameter_counts():
    counts = {"Ti/16": 5_717_416, "S/16": 22_050_664, "B/16": 86_567_656, "L/16": 304_326_632, "H/14": 632_045_800}
    for name, expected in counts.items():
        shapes = jax.eval_shape(ViT.named(name, 1000).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == expected, name
    for name in ("Q/16", "B16", "B/", "B/0"):
        with pytest.raises(ValueError, match=f'"B/16", got "{name}"'):
            ViT.named(name, 10)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"drop_path": 1.0}, (8, 12), "drop_path must be at least 0 and below 1, got 1.0"),
        ({"pool_prefix": True}, (8, 12), 'pool_prefix needs pool "gap" or "map", got pool "cls"'),
        ({"patch_size": (4, 5)}, (8, 12), r"patch_size \(4, 5\) and an image of 8×12 pixels"),
        ({"patch_size": (5, 4)}, (8, 12), r"patch_size \(5, 4\) and an image of 8×12 pixels"),
        ({"patch_size": (0, 4)}, (8, 12), "patch_size must be at least 1, got 0"),
        ({}, (10, 12), "patch_size 4 and an image of 10×12 pixels. Resize the images, or set partial_patches to "),
        ({"partial_patches": "drop"}, (3, 12), "patch_size 4 and an image of 3×12 pixels"),
        ({"distilled": True}, (8, 12), 'distilled needs pool "cls", at least one register'),
        ({"class_token": False, "pool": "cls_gap"}, (8, 12), 'class_token must be True for pool "cls_gap"'),
        ({"num_heads": 5}, (8, 12), "got embed_dim 12 and num_heads 5"),
        ({"class_token": False}, (8, 12), "class_token"),
        (
            {"positions": "sincos2d", "embed_dim": 6},
            (8, 12),
            'embed_dim must be divisible by 4 for positions "sincos2d", got 6',
        ),
    ],
)
def test_mismatched_options_are_refused_with_their_values(options, size, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(vit(**options).init, jax.random.key(0), images(*size))
