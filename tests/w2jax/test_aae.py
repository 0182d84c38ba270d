"""The modules of the adversarial autoencoder: torch's numbers, torch's batch norm, codes and their options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import random_variables
from torch_aae import (
    DECODER,
    DISCRIMINATOR,
    ENCODER,
    TorchEncoder,
    images_of,
    our_params,
    our_statistics,
    torch_decoder,
    torch_discriminator,
)

import w2jax
from w2jax import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.aae import BatchNorm

B, SHAPE, Z, K = 7, (4, 6, 1), 3, 5
SIZES = (11, 9)
KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (B, *SHAPE), minval=-1.0)
CODES = jax.random.normal(KEY, (B, Z))


def aae(encoder=None, decoder=None, **options):
    encoder = AAEEncoder(**({"latent_size": Z, "hidden_sizes": (10, 8)} | (encoder or {})))
    decoder = AAEDecoder(**({"image_shape": SHAPE, "hidden_sizes": (9, 12)} | (decoder or {})))
    return AAE(encoder, decoder, AAEDiscriminator((6, 7)), AAEDiscriminator((7, 6)), **options)


def assert_close(ours, theirs, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs)


def test_the_encoder_gives_torchs_mean_and_log_variance_and_every_gradient():
    theirs = TorchEncoder(24, SIZES, Z).eval()
    expected = theirs(images_of(IMAGES))
    sum((i + 1) * (x**2).sum() for i, x in enumerate(expected)).backward()

    def loss(params):
        code = AAEEncoder(Z, SIZES).apply({"params": params}, IMAGES)
        return (code.mean**2).sum() + 2 * (code.log_variance**2).sum(), code

    gradients, code = jax.grad(loss, has_aux=True)(our_params(theirs, ENCODER))
    assert_close((code.mean, code.log_variance), tuple(x.detach().numpy() for x in expected))
    np.testing.assert_array_equal(code.z, code.mean)
    assert_close(gradients, our_params(theirs, ENCODER, gradients=True), 1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_the_decoder_gives_torchs_images_and_gradients(train):
    """With batch norm."""
    theirs = torch_decoder(Z, SIZES, 24, dropout=0.0)
    with torch.no_grad():  # statistics that are not 0 and 1
        theirs[4].running_mean.uniform_(-1, 1)
        theirs[4].running_var.uniform_(0.5, 2)
        theirs[4].weight.uniform_(0.5, 2)
        theirs[4].bias.uniform_(-1, 1)
    params, statistics = our_params(theirs, DECODER), our_statistics(theirs)
    expected = theirs.train(train)(torch.from_numpy(np.array(CODES)))
    (expected**3).sum().backward()

    def loss(params):
        variables = {"params": params, "batch_stats": statistics}
        decoder = AAEDecoder(SHAPE, SIZES, dropout=0.0)
        images, changed = decoder.apply(variables, CODES, train=train, mutable=["batch_stats"])
        return (images**3).sum(), (images, changed["batch_stats"])

    gradients, (images, changed) = jax.grad(loss, has_aux=True)(params)
    assert_close(images.reshape(B, -1), expected.detach().numpy())
    assert_close(changed, our_statistics(theirs))
    assert_close(gradients, our_params(theirs, DECODER, gradients=True), 1e-4)


def test_the_discriminator_gives_the_logit_of_torchs_probability():
    """Its `predict` gives the probability."""
    theirs = torch_discriminator(Z, SIZES).eval()
    expected = theirs(torch.from_numpy(np.array(CODES)))[:, 0]
    expected.log().sum().backward()
    module = AAEDiscriminator(SIZES)

    def loss(params):
        return jax.nn.log_sigmoid(module.apply({"params": params}, CODES)).sum()

    params = our_params(theirs, DISCRIMINATOR)
    assert_close(jax.grad(loss)(params), our_params(theirs, DISCRIMINATOR, gradients=True))
    assert_close(module.apply({"params": params}, CODES, method="predict"), expected.detach().numpy())


def test_batch_norm_keeps_torchs_running_statistics_over_several_batches():
    theirs = torch.nn.BatchNorm1d(4)
    variables = BatchNorm().init(KEY, jnp.zeros((1, 4)))
    for i, count in enumerate((3, 2, 8)):  # small batches, where biased and unbiased variance differ most
        x = np.array(2.0 + 3.0 * jax.random.normal(jax.random.fold_in(KEY, i), (count, 4)))
        out, changed = BatchNorm().apply(variables, jnp.array(x), train=True, mutable=["batch_stats"])
        variables |= changed
        assert_close(out, theirs(torch.from_numpy(x)).detach().numpy())
    assert_close(variables["batch_stats"]["mean"], theirs.running_mean.numpy())
    assert_close(variables["batch_stats"]["var"], theirs.running_var.numpy())
    assert int(variables["batch_stats"]["count"]) == int(theirs.num_batches_tracked) == 3
    x = jnp.ones((1, 4))
    assert_close(BatchNorm().apply(variables, x), theirs.eval()(torch.ones(1, 4)).detach().numpy())
    with pytest.raises(ValueError, match="at least 2 examples for batch normalization, got 1"):
        BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])


def test_parameters_start_within_torchs_bounds():
    params = AAEEncoder(Z, (50, 40)).init(KEY, IMAGES)["params"]
    for name, fan_in in (("hidden_0", 24), ("hidden_1", 50), ("mean", 40)):
        for leaf in params[name].values():
            np.testing.assert_array_less(np.abs(leaf), fan_in**-0.5)
        assert params[name]["kernel"].std() == pytest.approx(fan_in**-0.5 / np.sqrt(3), rel=0.15)


def test_a_code_in_training_is_drawn_with_the_given_mean_and_variance():
    module = AAEEncoder(Z, SIZES, dropout=0.0)
    variables = random_variables(module, IMAGES)

    def draw(key):
        return module.apply(variables, IMAGES, train=True, rngs={"sample": key})

    codes = jax.vmap(draw)(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(codes.z.mean(0), codes.mean[0], atol=0.1)
    np.testing.assert_allclose(np.log(codes.z.var(0)), codes.log_variance[0], atol=0.15)


def test_gradients_reach_mean_and_variance_by_the_same_noise():
    module = AAEEncoder(Z, SIZES, dropout=0.0)
    params = random_variables(module, IMAGES)["params"]

    def z(params):
        return module.apply({"params": params}, IMAGES, train=True, rngs={"sample": KEY}).z.sum(axis=0)

    jacobian = jax.jacobian(z)(params)
    code = module.apply({"params": params}, IMAGES, train=True, rngs={"sample": KEY})
    np.testing.assert_allclose(jacobian["mean"]["bias"], B * np.eye(Z), atol=1e-4)
    np.testing.assert_allclose(
        np.diag(jacobian["log_variance"]["bias"]), 0.5 * (code.z - code.mean).sum(0), rtol=1e-4, atol=1e-4
    )


def test_a_deterministic_encoder_has_no_variance_and_needs_no_randomness():
    module = AAEEncoder(Z, SIZES, dropout=0.0, stochastic=False)
    variables = random_variables(module, IMAGES)
    assert set(variables["params"]) == {"hidden_0", "hidden_1", "mean"}
    code = module.apply(variables, IMAGES, train=True)
    assert code.log_variance is None and code.y is None
    np.testing.assert_array_equal(code.z, module.apply(variables, IMAGES).z)


@pytest.mark.parametrize(
    "module",
    [AAEEncoder(Z, (13,), 0.4, stochastic=False), AAEDecoder(SHAPE, (13,), 0.4, ()), AAEDiscriminator((13,), 0.4)],
)
def test_dropout_zeroes_its_fraction_of_hidden_units_and_keeps_the_mean(module):
    x = IMAGES if isinstance(module, AAEEncoder) else CODES
    variables = random_variables(module, x)

    def layer(name, **options):
        _, seen = module.apply(variables, x, **options, mutable=["intermediates"], capture_intermediates=True)
        return seen["intermediates"][name]["__call__"][0]

    kept = layer("hidden_0")
    np.testing.assert_array_equal(layer("Dropout_0"), kept)
    keys = jax.random.split(KEY, 3000)
    dropped = jax.vmap(lambda key: layer("Dropout_0", train=True, rngs={"dropout": key}))(keys)
    assert np.mean(dropped == 0.0) == pytest.approx(0.4, abs=0.01)
    np.testing.assert_allclose(dropped.mean(0), kept, atol=0.1 * float(np.abs(kept).max()))


def test_categories_are_probabilities_and_come_before_z_in_the_code():
    model = aae({"categories": K})
    variables = random_variables(model, IMAGES)
    code = model.apply(variables, IMAGES, method="encode")
    assert code.logits.shape == (B, K)
    np.testing.assert_allclose(code.y, np.exp(code.logits) / np.exp(code.logits).sum(1, keepdims=True), rtol=1e-5)
    joined = model.apply(variables, code.z, code.y, method="represent")
    np.testing.assert_array_equal(joined, np.concatenate([code.y, code.z], axis=1))
    assert variables["params"]["decoder"]["hidden_0"]["kernel"].shape[0] == K + Z
    again = model.apply(variables, IMAGES, method="reconstruct")
    np.testing.assert_array_equal(again, model.apply(variables, code.z, code.y, method="decode"))


def test_normalized_category_logits_have_mean_0_and_variance_1():
    """Over the batch."""
    model = AAEEncoder(Z, SIZES, dropout=0.0, categories=K, normalize_categories=True)
    variables = model.init({"params": KEY}, IMAGES)
    code, _ = model.apply(variables, IMAGES, train=True, rngs={"sample": KEY}, mutable=["batch_stats"])
    np.testing.assert_allclose(code.logits.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(code.logits.var(0), 1, rtol=2e-2)


def test_cluster_heads_are_points_that_z_is_added_to():
    model = aae({"categories": K}, cluster_heads=True)
    variables = random_variables(model, IMAGES)
    heads = variables["params"]["heads"]["kernel"]
    y = jax.nn.softmax(jax.random.normal(KEY, (B, K)))
    np.testing.assert_allclose(
        model.apply(variables, CODES, y, method="represent"), y @ heads + CODES, rtol=1e-5, atol=1e-6
    )
    assert variables["params"]["decoder"]["hidden_0"]["kernel"].shape[0] == Z


def test_the_discriminator_also_receives_the_condition():
    model = aae()
    condition = jax.nn.one_hot(jnp.arange(B) % 3, 3)
    variables = random_variables(model, IMAGES, None, condition)
    logits = model.apply(variables, CODES, condition, method="discriminate")
    expected = AAEDiscriminator((6, 7)).apply(
        {"params": variables["params"]["discriminator"]}, jnp.hstack([CODES, condition])
    )
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    assert not np.allclose(logits, model.apply(variables, CODES, condition[::-1], method="discriminate"))


def test_samples_are_decoded_codes_from_the_prior():
    model = aae(prior_scale=3.0)
    variables = random_variables(model, IMAGES)
    images = model.apply(variables, 2000, rngs={"sample": KEY}, method="sample")
    codes = model.apply(variables, 2000, rngs={"sample": KEY}, method="sample_codes")
    np.testing.assert_array_equal(images, model.apply(variables, codes, method="decode"))
    np.testing.assert_allclose(codes.std(0), 3.0, rtol=0.1)


def test_samples_of_a_model_with_categories_use_all_equally_often():
    model = aae({"categories": K}, decoder={"hidden_sizes": (), "batch_norm": ()})
    variables = random_variables(model, IMAGES)
    kernel = np.zeros((K + Z, 24), np.float32)
    kernel[:K, :K] = 20 * np.eye(K)  # pixel k depends on category k only
    variables["params"]["decoder"]["output"] = {"kernel": kernel, "bias": np.zeros(24, np.float32)}
    images = model.apply(variables, 3000, rngs={"sample": KEY}, method="sample").reshape(3000, -1)
    assert set(np.round(np.asarray(images[:, :K]), 3).sum(1)) == {1.0}
    np.testing.assert_allclose(images[:, :K].mean(0), 1 / K, atol=0.03)
    given = model.apply(variables, 2, jnp.eye(K)[jnp.array([3, 1])], rngs={"sample": KEY}, method="sample")
    assert given.reshape(2, -1)[:, :K].argmax(1).tolist() == [3, 1]


@pytest.mark.parametrize(("activation", "low"), [("tanh", -1.0), ("sigmoid", 0.0)])
def test_images_have_the_range_and_shape_of_the_decoder(activation, low):
    decoder = AAEDecoder((2, 3, 5), (4,), batch_norm=(), activation=activation)
    variables = random_variables(decoder, CODES)
    images = np.asarray(decoder.apply(variables, 100.0 * CODES))
    assert images.shape == (B, 2, 3, 5)
    assert images.min() == pytest.approx(low, abs=1e-4) and images.max() == pytest.approx(1.0, abs=1e-4)
    bias = np.arange(30, dtype=np.float32)  # pixels have the order in which the encoder flattens them
    variables["params"]["output"] = {"kernel": np.zeros((4, 30), np.float32), "bias": bias}
    link = np.tanh if activation == "tanh" else lambda x: 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(decoder.apply(variables, CODES)[0].reshape(-1), link(bias), rtol=1e-5)


def test_with_bfloat16_products_parameters_and_results_stay_float32():
    for dtype, tolerance in (("float32", 0.0), ("bfloat16", 0.05)):
        model = aae({"dtype": dtype}, {"dtype": dtype})
        variables = random_variables(aae(), IMAGES)
        out, code, logits = model.apply(variables, IMAGES)
        assert {x.dtype for x in (out, code.z, logits)} == {jnp.dtype("float32")}
        exact = aae().apply(variables, IMAGES)[0]
        np.testing.assert_allclose(out, exact, atol=tolerance)
        assert tolerance == 0.0 or not np.array_equal(out, exact)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (aae({"latent_size": 0}), "latent_size must be at least 1"),
        (aae({"hidden_sizes": (8, 0)}), "hidden_sizes must be at least 1, got 0"),
        (aae({"dropout": 1.0}), "dropout must be at least 0 and below 1, got 1.0"),
        (aae(decoder={"batch_norm": (2,)}), r"batch_norm must be indices of hidden layers from 0 to 1, got \(2,\)"),
        (aae(prior="swiss_roll"), "latent_size must be 2 for the prior swiss_roll, got 3"),
        (aae(prior_scale=0.0), "prior_scale and prior_classes must be above 0, got 0.0 and 10"),
        (aae(prior_classes=0), "prior_scale and prior_classes must be above 0, got 1.0 and 0"),
        (aae(cluster_heads=True), "Set encoder.categories"),
        (
            aae(decoder={"image_shape": (4, 7, 1)}),
            r"images must have the shape \(4, 7, 1\) \(decoder.image_shape\), got \(4, 6, 1\)",
        ),
    ],
)
def test_mismatched_options_are_refused_with_their_values(model, message):
    with pytest.raises(ValueError, match=message):
        model.init(KEY, IMAGES)


def test_old_names_of_the_parts_warn_and_give_the_new_ones():
    for name, part in (("Encoder", AAEEncoder), ("Decoder", AAEDecoder), ("Discriminator", AAEDiscriminator)):
        with pytest.warns(DeprecationWarning, match=f"use w2jax.AAE{name}"):
            assert getattr(w2jax, name) is part
    with pytest.raises(AttributeError, match="no attribute 'Coder'"):
        _ = w2jax.Coder
