"""Models reject inputs sharded over Explicit mesh axes, with an error that says what to do. Its advice works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from w2jax import AAEDecoder, AAEDiscriminator, AAEEncoder, Seq2Seq, Transformer, ViT
from w2jax.sequence_classifiers import AttentionClassifier, LSTMClassifier

BATCH, DATA = 8, PartitionSpec("data")
ROWS = jax.random.normal(jax.random.key(0), (BATCH, 5, 6))
TOKENS = jnp.arange(BATCH * 5).reshape(BATCH, 5) % 11
BLOCK = {"num_heads": 2, "mlp_dim": 9}
CLASSIFIER = {"num_classes": 3, "embed_dim": 8, "depth": 1, "dropout": 0.1, **BLOCK}
STACKS = {"encoder_depth": 1, "decoder_depth": 1, **BLOCK}
MODELS = {
    "vit": (ViT(patch_size=7, **CLASSIFIER), jax.random.normal(jax.random.key(1), (BATCH, 14, 14, 1))),
    "lstm": (LSTMClassifier(3, hidden_size=4), ROWS),
    "attention": (AttentionClassifier(**CLASSIFIER), ROWS),
    "encoder": (AAEEncoder(latent_size=3, hidden_sizes=(7,)), ROWS[..., None]),
    "decoder": (AAEDecoder(image_shape=(4, 4, 1), hidden_sizes=(7, 9)), ROWS[:, 0]),
    "discriminator": (AAEDiscriminator(hidden_sizes=(7,)), ROWS[:, 0]),
    "transformer": (Transformer(**STACKS), ROWS, ROWS),
    "seq2seq": (Seq2Seq(vocab_size=11, embed_dim=8, **STACKS), TOKENS, TOKENS),
}


def placed(x, spec, mesh):
    return jax.device_put(x, NamedSharding(mesh, spec))


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])


def forward(name):
    """The model's first output, with dropout, as a function of parameters, other variables and inputs."""
    model, *inputs = MODELS[name]
    parameters = model.init(jax.random.key(0), *inputs)
    # So that the output depends on the input: the heads are 0 at first.
    parameters = jax.tree.map(lambda x: x + jnp.linspace(0, 0.3, x.size).reshape(x.shape), parameters)
    rngs = {kind: jax.random.key(1) for kind in ("dropout", "sample")}

    def run(parameters, *inputs):
        out, _ = model.apply(parameters, *inputs, train=True, rngs=rngs, mutable=["batch_stats"])
        return jax.tree.leaves(out)[0]

    return run, parameters, inputs


@pytest.mark.parametrize("name", MODELS)
def test_explicit_axes_are_rejected_with_advice(name, mesh):
    run, parameters, inputs = forward(name)
    inputs = [placed(x, DATA, mesh) for x in inputs]
    with pytest.raises(ValueError, match=r"type Explicit, got (float|int)32\[8@data.*AxisType.Auto.*auto_axes"):
        jax.eval_shape(run, parameters, *inputs)


@pytest.mark.parametrize("name", ["vit", "lstm", "attention", "encoder"])
def test_auto_axes_gives_the_values_and_gradients_of_one_device(name, mesh):
    run, parameters, inputs = forward(name)

    def loss(parameters, *inputs):
        out = run(parameters, *inputs)
        return jnp.square(out).mean(), out

    both = jax.value_and_grad(loss, has_aux=True)
    (_, expected), expected_gradient = jax.jit(both)(parameters, *inputs)
    spread = [placed(x, DATA, mesh) for x in inputs]
    places = ((PartitionSpec(), DATA), PartitionSpec())
    with jax.set_mesh(mesh):
        (_, out), gradient = jax.jit(jax.sharding.auto_axes(both, axes="data", out_sharding=places))(
            placed(parameters, PartitionSpec(), mesh), *spread
        )
    assert jnp.ptp(expected) > 0.01 and out.sharding.spec[0] == "data"
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_models_accept_auto_axes_and_replicated_inputs(axis_type):
    """Neither a mesh of type Auto nor an Explicit mesh that does not split the input is rejected."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,), devices=jax.devices()[:4])
    run, parameters, inputs = forward("lstm")
    with jax.set_mesh(mesh):
        spec = DATA if axis_type == AxisType.Auto else PartitionSpec()
        out = jax.jit(run)(parameters, *[placed(x, spec, mesh) for x in inputs])
    np.testing.assert_allclose(out, run(parameters, *inputs), rtol=1e-5, atol=1e-6)
