"""The task of the adversarial autoencoder: three or four phases, each on its own parameters; torch's numbers."""

import dataclasses
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
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

from configs.aae import ADAM, PRESETS, Config, Phases
from configs.base import Augment, RunConfig
from train.aae import KEYS, PHASES, head_distance_loss, make_task
from train.data.labels import UNKNOWN, known_labels
from train.data.source import InMemorySource
from train.engine.setup import set_up
from train.process.errors import UserError
from train.task import NONFINITE, named_leaves
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.priors import sample_prior

SHAPE, N, B, K, Z = (5, 4, 1), 60, 12, 3, 2
RNG = np.random.default_rng(0)
LABELS = (np.arange(N) % K).astype(np.int32)
IMAGES = RNG.integers(0, 256, (N, *SHAPE)).astype(np.uint8)
SOURCE = InMemorySource("shapes", "train", SHAPE, K, list("abc"), IMAGES, LABELS, open_split=lambda _: SOURCE)
STEADY = dataclasses.replace(ADAM, warmup_fraction=0.0, final_lr_fraction=1.0)  # constant learning rate
STILL = dataclasses.replace(ADAM, learning_rate=0.0)
ALL_STILL = Phases(STILL, STILL, STILL, STILL)


def batch(step=0):
    index = (np.arange(B) + B * step) % N
    return {**SOURCE.gather(index), "index": index.astype(np.int32)}


def placed(step=0):
    return jax.device_put(batch(step))


def model(categories=0, dropout=0.2, stochastic=True, **options):
    encoder = AAEEncoder(Z, (9, 8), dropout, stochastic=stochastic, categories=categories)
    return AAE(
        encoder,
        AAEDecoder(SHAPE, (7, 10), dropout),
        AAEDiscriminator((6, 5), dropout),
        AAEDiscriminator((5, 6), dropout),
        **{"prior_classes": K, **options},
    )


def config(of=None, **options):
    return Config(model=model() if of is None else of, run=RunConfig(steps=20, batch_size=B), **options)


def after(task, steps=1, state=None, change=None):
    """Returns (state, metrics) after `steps` steps, on batches that `change` may alter."""
    state, step = task.init() if state is None else state, jax.jit(task.step)
    for i in range(steps):
        seen = batch(i) if change is None else change(batch(i))
        state, metrics = step(state, seen)
    return state, metrics


def changed(before, later):
    return {
        name
        for name in before
        if any(
            not np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(before[name]), jax.tree.leaves(later[name]), strict=True)
        )
    }


def test_each_phase_updates_all_of_its_own_parameters_and_no_others():
    # Adam's first step is as large as its learning rate. So a parameter's change shows which optimizers updated it.
    rates = {"reconstruction": 1e-2, "discriminator": 2e-2, "generator": 4e-2, "classification": 8e-2}
    optim = Phases(**{name: dataclasses.replace(STEADY, learning_rate=rate) for name, rate in rates.items()})
    of = model(categories=K, dropout=0.0, cluster_heads=True)
    task = make_task(config(of, optim=optim, labels="categories"), SOURCE)
    start = task.init()
    state, _ = after(task, state=start)
    steps = jax.tree.map(lambda before, later: np.abs(later - before), start.params, state.params)
    for path, moved in jax.tree_util.tree_leaves_with_path(steps):
        name, layer = path[0].key, path[1].key
        met = [rate for phase, rate in rates.items() if name in PHASES[phase]]
        if layer in ("mean", "log_variance"):  # the classification loss does not depend on z
            met.remove(rates["classification"])
        lengths = {abs(sum(signs)) for signs in product(*[(-rate, 0.0, rate) for rate in met])}
        moved = moved[moved > 1e-6]  # a unit that is inactive for the full batch does not change
        assert len(moved) and moved.max() < max(lengths) + 1e-4, f"{name}/{layer}"
        if path[-1].key == "kernel":  # batch norm cancels biases, so their gradients are rounding errors
            exact = np.min([np.abs(moved - length) for length in lengths], axis=0) < 1e-4
            assert exact.mean() > 0.9, f"{name}/{layer}: steps of {np.unique(moved.round(3))}, not {lengths}"


@pytest.mark.slow
def test_twenty_steps_of_all_phases_equal_the_courses_torch_program():
    of = model(dropout=0.0, stochastic=False)
    rates = {"reconstruction": 3e-3, "discriminator": 2e-3, "generator": 1e-3}
    optim = {name: dataclasses.replace(STEADY, learning_rate=rate) for name, rate in rates.items()}
    task = make_task(config(of, optim=Phases(**optim)), SOURCE)

    torch.manual_seed(0)
    encoder, decoder = TorchEncoder(20, (9, 8), Z, dropout=0.0), torch_decoder(Z, (7, 10), 20, dropout=0.0)
    judge = torch_discriminator(Z, (6, 5), dropout=0.0)

    def ours():
        params = our_params(encoder, ENCODER)
        del params["log_variance"]
        return {
            "encoder": params,
            "decoder": our_params(decoder, DECODER),
            "discriminator": our_params(judge, DISCRIMINATOR),
        }

    state = task.init().replace(params=ours(), batch_stats={"decoder": our_statistics(decoder)})
    adams = {
        "reconstruction": torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3),
        "discriminator": torch.optim.Adam(judge.parameters(), lr=2e-3),
        "generator": torch.optim.Adam(encoder.parameters(), lr=1e-3),
    }
    step, cross_entropy = jax.jit(task.step), torch.nn.functional.binary_cross_entropy
    for i in range(20):
        key = jax.random.fold_in(jax.random.key(0), i)
        keys = dict(zip(KEYS, jax.random.split(key, len(KEYS)), strict=True))
        prior = torch.from_numpy(np.array(sample_prior(keys["prior"], "gaussian", B, Z)))
        state, metrics = step(state, batch(i))

        images = images_of(batch(i)["image"] / np.float32(127.5) - 1)
        losses = {}

        def descend(name, loss, losses=losses):
            losses[name] = loss.item()
            adams[name].zero_grad()
            loss.backward()
            adams[name].step()

        descend("reconstruction", ((decoder(encoder(images)[0]) - images.flatten(1)) ** 2).mean())
        real, fake = judge(prior)[:, 0], judge(encoder(images)[0].detach())[:, 0]
        one, zero = torch.ones(B), torch.zeros(B)
        descend("discriminator", (cross_entropy(real, one) + cross_entropy(fake, zero)) / 2)
        descend("generator", cross_entropy(judge(encoder(images)[0])[:, 0], one))
        for name, loss in losses.items():
            np.testing.assert_allclose(metrics[name], loss, rtol=1e-4, err_msg=f"{name} at step {i}")
    # Batch norm cancels the biases before it (also that of an always active unit): their gradients are rounding errors.
    # Adam scales these up to normal steps, and the running mean follows the biases.
    params, expected = state.params, ours()
    for tree in (params, expected):
        del tree["decoder"]["hidden_0"]["bias"], tree["decoder"]["hidden_1"]["bias"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, expected)
    statistics = our_statistics(decoder)["norm_1"]
    np.testing.assert_allclose(state.batch_stats["decoder"]["norm_1"]["var"], statistics["var"], rtol=1e-3)


def test_only_the_reconstruction_updates_running_statistics():
    encoder = AAEEncoder(Z, (9, 8), 0.0, batch_norm=(0,), stochastic=False)
    of = model(dropout=0.0).clone(encoder=encoder)
    start, step = None, []
    for phases in (Phases(), Phases(discriminator=STILL, generator=STILL)):
        task = make_task(config(of, optim=phases), SOURCE)
        start = task.init()
        step.append(after(task, state=start)[0])
    image = batch()["image"].reshape(B, -1) / 127.5 - 1
    first = start.params["encoder"]["hidden_0"]
    x = image @ first["kernel"] + first["bias"]
    for state in step:
        kept = state.batch_stats["encoder"]["norm_0"]
        np.testing.assert_allclose(kept["mean"], 0.1 * x.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(kept["var"], 0.9 + 0.1 * np.var(x, 0, ddof=1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["prior", "categories"])
def test_only_the_known_labels_are_used(labels):
    of = model(categories=K if labels == "categories" else 0)
    settings = config(of, labels=labels, num_labels=30)
    task = make_task(settings, SOURCE)
    plain, _ = after(task, 3)
    hidden, _ = after(task, 3, change=lambda seen: {**seen, "label": np.zeros_like(seen["label"])})
    assert changed(plain.params, hidden.params) == set()
    other = dataclasses.replace(SOURCE, labels=(LABELS + 1) % K)
    assert "encoder" in changed(plain.params, after(make_task(settings, other), 3)[0].params)


def test_the_decoder_gets_the_label_in_training_and_in_evaluation():
    task = make_task(config(labels="decoder"), SOURCE)
    state, _ = after(task, 3)
    assert state.params["decoder"]["hidden_0"]["kernel"].shape[0] == K + Z
    seen = batch()
    wrong = {**seen, "label": (seen["label"] + 1) % K}
    assert not np.allclose(
        *(task.evaluate(state, jax.device_put(x))["reconstruction"] for x in (seen, wrong)), atol=1e-5
    )
    condition, mistold = (after(task, 2, change=change)[0] for change in (None, lambda _: wrong))
    assert "decoder" in changed(condition.params, mistold.params)


@pytest.mark.parametrize("num_labels", [None, 30])
def test_the_discriminator_knows_the_class_of_its_prior_sample(num_labels):
    of = model(dropout=0.0, stochastic=False, prior="uniform")
    settings = config(of, labels="prior", num_labels=num_labels)
    task, known = make_task(settings, SOURCE), known_labels(SOURCE, num_labels, 0)[:B]
    start = task.init()
    _, metrics = after(make_task(dataclasses.replace(settings, optim=ALL_STILL), SOURCE), state=start)
    assert (known == UNKNOWN).any() == (num_labels is not None)

    keys = dict(zip(KEYS, jax.random.split(jax.random.fold_in(jax.random.key(0), 0), len(KEYS)), strict=True))
    places = np.array(jax.random.uniform(keys["prior"], (B, Z)))
    places[:, 0] = np.where(known == UNKNOWN, places[:, 0], (places[:, 0] + known) / K)
    condition = jnp.eye(K + 1)[np.where(known == UNKNOWN, K, known)]
    variables = start.eval_variables
    fake = of.apply(variables, jnp.asarray(batch()["image"] / 127.5 - 1), method="encode").z
    logits = [of.apply(variables, z, condition, method="discriminate") for z in (jnp.asarray(2 * places - 1), fake)]
    expected = (np.logaddexp(0, -logits[0]).mean() + np.logaddexp(0, logits[1]).mean()) / 2
    np.testing.assert_allclose(metrics["discriminator"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["generator"], np.logaddexp(0, -logits[1]).mean(), rtol=1e-5)


@pytest.mark.slow
def test_consistency_pulls_the_augmented_image_to_the_images_category():
    """It never pulls the image to the augmented image's category."""
    of = model(categories=K, dropout=0.0, stochastic=False)

    def moved(augmentation):
        optim = dataclasses.replace(ALL_STILL, classification=dataclasses.replace(STEADY, learning_rate=1e-3))
        task = make_task(config(of, optim=optim, consistency=0.7, augment=augmentation), SOURCE)
        start = task.init()
        state, metrics = after(task, state=start)
        return start, state, float(metrics["classification"])

    # No augmentation: the gradient is softmax(logits) − target. It is 0 only if the target itself has no gradient.
    start, state, loss = moved(Augment())
    y = of.apply(start.eval_variables, jnp.asarray(batch()["image"] / 127.5 - 1), method="encode").y
    assert loss == pytest.approx(-0.7 * float((y * np.log(y)).sum(1).mean()), rel=1e-5)
    for leaf in jax.tree.leaves(state.opt_state["classification"][0].mu):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-7)
    start, state, other = moved(Augment(shift=2))
    assert changed(start.params, state.params) == {"encoder"}
    assert other != pytest.approx(loss, rel=1e-3)


def test_cluster_heads_are_pushed_apart_up_to_the_distance_and_no_further():
    heads = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert head_distance_loss(heads, 2.0) == pytest.approx((0 + 1.0 + 0) / 3)
    assert head_distance_loss(heads, 6.0) == pytest.approx((1.0 + 5.0 + (6 - 18**0.5)) / 3)
    gradient = jax.grad(head_distance_loss)(heads, 2.0)
    np.testing.assert_allclose(gradient, np.array([[0, 1], [0, 0], [0, -1]]) / 3, atol=1e-6)
    assert np.isfinite(jax.grad(head_distance_loss)(jnp.zeros((3, 2)), 2.0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_fits_the_images_it_is_made_for(preset):
    config = PRESETS[preset].config
    shape = (*(config.data.image_size or (28, 28)), 1)
    labels = np.repeat(np.arange(10), 300).astype(np.int32)
    images = np.zeros((3000, *shape), np.uint8)
    source = InMemorySource(config.data.name, "train", shape, 10, [], images, labels, open_split=lambda _: source)
    task, size = make_task(config, source), config.run.batch_size
    state = jax.eval_shape(task.init)
    images, numbers = jax.ShapeDtypeStruct((size, *shape), jnp.uint8), jax.ShapeDtypeStruct((size,), jnp.int32)
    later, _ = jax.eval_shape(task.step, state, {"image": images, "label": numbers, "index": numbers})
    assert jax.tree.structure(later) == jax.tree.structure(state)
    mask = jax.ShapeDtypeStruct((size,), jnp.bool_)
    pictures = jax.eval_shape(task.figures, state, {"image": images, "label": numbers, "mask": mask})
    assert {"reconstructions", "samples"} <= set(pictures)
    assert ("latent" in pictures) == (config.model.encoder.latent_size == 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"of": model().clone(decoder=AAEDecoder((4, 5, 1)))},
            "of dataset shapes, 5 4 1, got 4 5 1. Add --data.image-size 4 5 or --model.decoder.image-shape 5 4 1",
        ),
        (
            {"of": model(prior="mixture").clone(encoder=AAEEncoder(8))},
            "latent_size must be 2 for the prior mixture, got 8",
        ),
        (
            {"of": model(categories=4), "labels": "categories"},
            "--model.encoder.categories must be 3, the number of classes of dataset shapes, got 4. Set --model.encoder",
        ),
        ({"of": model(prior_classes=4), "labels": "prior"}, "got 4. Set --model.prior-classes 3"),
        ({"labels": "prior", "num_labels": 63}, "multiple of 3 (the number of classes) up to 60"),
        ({"of": model(categories=3), "labels": "categories", "num_labels": 0}, "or add --labels unused"),
        ({"labels": "decoder", "num_labels": 30}, "--num-labels must be None for --labels decoder, got 30"),
        (
            {"of": model(categories=3), "labels": "decoder"},
            "for --labels decoder, got 3. Set --model.encoder.categories 0",
        ),
        ({"num_labels": 30}, "--num-labels has no effect"),
        ({"consistency": 1.0}, "--model.encoder.categories must be above 0 for --consistency, got 0"),
        ({"head_distance": 1.0}, "--head-distance needs cluster heads"),
        ({"augment": Augment(mixup=0.2)}, "--augment.mixup must be 0 for an autoencoder, got 0.2"),
    ],
)
def test_mismatched_options_are_refused_with_advice(options, message):
    with pytest.raises((UserError, ValueError)) as error:
        task = make_task(config(**options), SOURCE)
        jax.eval_shape(task.step, jax.eval_shape(task.init), SOURCE.gather(np.arange(B)) | {"index": np.arange(B)})
    assert message in str(error.value)


def test_nonfinite_gradients_are_reported_over_all_phases():
    task = make_task(config(), SOURCE)
    state = task.init()
    poisoned = jax.tree.map(lambda x: x * jnp.nan, state.params["discriminator"])
    _, metrics = after(task, state=state.replace(params={**state.params, "discriminator": poisoned}))
    broken = {name for name, is_broken in zip(named_leaves(state.params), metrics[NONFINITE], strict=True) if is_broken}
    # The two adversarial phases differentiate through the discriminator; the reconstruction phase does not.
    assert {"discriminator/output/kernel", "discriminator/output/bias"} <= broken
    assert not any(name.startswith("decoder/") for name in broken)


@pytest.mark.parametrize(("option", "split"), [("train_split", "train[3:4]"), ("test_split", "test[:1]")])
def test_a_split_too_small_for_the_final_metrics_is_refused_at_the_start(option, split):
    tiny = PRESETS["tiny"].config
    config = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, **{option: split}))
    with pytest.raises(UserError) as caught:
        set_up(config, make_task)
    assert str(caught.value) == (
        "the metrics at the end of this training need at least 2 examples of dataset mnist_sample, "
        f"split {split}, got 1. Choose a larger split"
    )
