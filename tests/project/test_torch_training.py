"""The PyTorch program that trains our presets: from our initial weights, it has our losses and our test metrics."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tasks
import tiny
import torch

from benchmarks.baselines import torch_training
from configs.aae import GAME, Phases
from configs.base import Augment, Data, Optim, RunConfig
from train.aae import KEYS, Losses
from train.data import batches, eval_batches, open_source
from train.evaluation.aae_apply import pixels_to_model_range
from train.process.errors import UserError
from w2jax import ViT
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.priors import sample_prior
from w2jax.sequence_classifiers import AttentionClassifier, LSTMClassifier

ROOT = Path(__file__).parents[2]
STEPS, SIZE, SHAPE = 6, 5, (12, 8, 3)
SIZES = {"embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_dim": 14}
MODELS = {
    "vit": ViT(4, patch_size=(3, 4), pool="gap", class_token=False, **SIZES),
    "vit_cls": ViT(4, patch_size=4, **SIZES),
    "mha": AttentionClassifier(4, **SIZES),
    "lstm": LSTMClassifier(4, hidden_size=9, num_layers=2),
}
# Two steps of warm-up and four of the cosine. The clip is below the norm of every step. The moving average has the
# decay of its option only in the last step, and smaller ones before.
OPTIM = Optim(0.02, warmup_fraction=0.34, final_lr_fraction=0.5, weight_decay=2.0, clip=0.05, ema=0.37)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny.prepare(folder)
    return Data("tiny", dir=str(folder), image_size=SHAPE[:2])


def ours(task, config):
    """Returns (metrics of each step, metrics of the test split) with the step of `python -m train.TASK`."""
    source, test = (open_source(config.data, split) for split in ("train", "test"))
    made = tasks.make_task(task, config, source)
    state, step, metrics = made.init(), jax.jit(made.step), []
    for batch in batches(source, SIZE, config.run.seed, 0, STEPS):
        state, of_step = step(state, batch)
        metrics.append(of_step)
    (batch,) = eval_batches(test, 8)
    values = jax.jit(made.evaluate)(state, batch)
    return metrics, {name: value[batch["mask"]].mean() for name, value in values.items()}


def theirs(task, config):
    losses = []
    return losses, torch_training.fit(task, config, "ours", lambda step, of_step: losses.append((step, of_step)))


def assert_equal(ours, theirs, rtol=1e-5):
    for name in ours.keys() & theirs.keys():
        np.testing.assert_allclose(theirs[name], ours[name], rtol=rtol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_classifier_from_our_weights_has_our_losses_and_test_metrics(name, data):
    task = name.partition("_")[0]
    config = replace(
        tasks.preset(task),
        model=MODELS[name],
        data=data,
        optim=OPTIM,
        augment=Augment(shift=1, rotate=20, scale=0.2, shear=0.1, flip=True, erase=0.3),
        label_smoothing=0.2,
        run=RunConfig(steps=STEPS, batch_size=SIZE, seed=3),
    )
    metrics, tested = ours(task, config)
    losses, result = theirs(task, config)
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    for (_, of_step), expected in zip(losses, metrics, strict=True):
        assert expected["grad_norm"] > OPTIM.clip
        assert_equal(expected, of_step)
    assert_equal(tested, result)
    assert {"accuracy", "loss"} <= tested.keys() & result.keys()


@pytest.mark.slow
def test_the_autoencoder_with_our_draws_has_our_losses_and_test_metrics(data, monkeypatch):
    model = AAE(
        AAEEncoder(3, (9, 8), dropout=0.0),
        AAEDecoder(SHAPE, (7, 10), dropout=0.0),
        AAEDiscriminator((6, 5), dropout=0.0),
    )
    adam = {"warmup_fraction": 0.34, "final_lr_fraction": 0.1}
    games = [replace(GAME, learning_rate=rate, **adam) for rate in (0.002, 0.001)]
    first = replace(GAME, learning_rate=0.003, b1=0.9, weight_decay=2.0, clip=0.01, **adam)
    run = RunConfig(steps=STEPS, batch_size=SIZE, seed=3)
    config = replace(tasks.preset("aae"), model=model, data=data, optim=Phases(first, *games, ema=0.37), run=run)

    source, draws = open_source(config.data, "train"), []
    parts, start = Losses(config, source), tasks.make_task("aae", config, source).init()
    for step, batch in enumerate(batches(source, SIZE, 3, 0, STEPS)):
        keys = dict(zip(KEYS, jax.random.split(jax.random.fold_in(jax.random.key(3), step), len(KEYS)), strict=True))
        images, noise = pixels_to_model_range(model, jnp.asarray(batch["image"])), {}
        for name in ("reconstruct", "encode"):
            code = parts.encode(start.params, start.batch_stats, keys[name], images)
            noise[name] = (code.z - code.mean) / np.exp(0.5 * code.log_variance)
        prior = sample_prior(keys["prior"], "gaussian", SIZE, 3)
        draws += [noise["reconstruct"], noise["encode"], prior, noise["encode"]]
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.from_numpy(np.array(draws.pop(0))))

    metrics, tested = ours("aae", config)
    losses, result = theirs("aae", config)
    assert not draws
    for (_, of_step), expected in zip(losses, metrics, strict=True):
        assert of_step.keys() == {"reconstruction", "discriminator", "generator"}
        assert_equal(expected, of_step, rtol=1e-4)
    # Batch norm cancels the bias before it, so its gradient is a rounding error, which Adam scales up to a normal step.
    # The running mean follows the bias late.
    assert_equal(tested, result, rtol=1e-3)
    assert "reconstruction" in tested.keys() & result.keys()


@pytest.mark.slow
def test_the_last_line_is_json_with_the_test_metrics():
    command = [sys.executable, "-m", "benchmarks.baselines.torch_training", "mha", "sample", "--run.steps", "3"]
    done = subprocess.run(
        [*command, "--run.log-every", "2"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() == {"accuracy", "loss", "steps", "seconds"} and result["steps"] == 3
    assert 0 <= result["accuracy"] <= 1 and result["loss"] > 0
    assert "step 2: loss" in done.stderr and "step 3" not in done.stderr


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("vit", {"model": MODELS["vit"].clone(dropout=0.1)}, r"--model.dropout must be 0.0 .*got 0.1"),
        ("vit", {"model": MODELS["vit"].clone(pool="map")}, r"--model.pool must be cls or gap .*got map"),
        ("vit", {"init_from": "vit.safetensors"}, r"--init-from must be None .*got vit.safetensors"),
        ("mha", {"augment": Augment(mixup=0.2)}, r"--augment.mixup must be 0.0 .*got 0.2"),
        ("lstm", {"optim": Optim(accumulate=2)}, r"--optim.accumulate must be 1 .*got 2"),
        ("aae", {"labels": "decoder"}, r"--labels must be unused .*got decoder"),
        ("aae", {"model": AAE(decoder=AAEDecoder(dropout=0.3))}, r"--model.decoder.dropout must be 0.2 .*got 0.3"),
    ],
)
def test_an_option_that_the_program_cannot_follow_is_refused(task, options, message):
    with pytest.raises(UserError, match=message):
        torch_training.check(replace(tasks.preset(task), **options))


@pytest.mark.parametrize("task", torch_training.TASKS)
def test_the_presets_tiny_sample_and_mnist_are_accepted(task):
    for name in {"tiny", "sample", "mnist"} & tasks.presets(task).keys():
        torch_training.check(tasks.preset(task, name))
