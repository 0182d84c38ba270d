"""A linear probe computes the features of its images once. Its results are those of computing them in each step."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from models import assert_same_trees, random_variables
from runs import lines, small, with_run

from configs.base import Augment, Mesh
from train.data import abstract_source, open_source
from train.data.source import StreamingSource
from train.engine import sharding
from train.engine.features import Plan, computed, plan
from train.engine.loop import fit
from train.engine.program import Program
from train.engine.setup import set_up
from train.engine.sharding import make_mesh
from train.evaluate import evaluate
from train.predict import load
from train.report.mistakes import read_mistakes
from train.task import named_leaves
from train.vit import make_task
from w2jax import ViT
from w2jax.convert import save

MODEL = ViT(10, patch_size=7, embed_dim=12, depth=2, num_heads=2, mlp_dim=20, num_registers=1, distilled=True)
NOTE = "only the head trains: the features of 40 train and 24 test images are computed once, at the start"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights for three classes."""
    path, module = tmp_path_factory.mktemp("weights") / "vit.safetensors", MODEL.clone(num_classes=3)
    save(path, module, random_variables(module, np.zeros((1, 28, 28, 1), np.float32)), "torch")
    return path


def probe(weights, folder, **options):
    """A probe on two devices, with an average, accumulation and label smoothing."""
    config = small("", workers=0)
    optim = dataclasses.replace(config.optim, freeze=("all-but-head",), ema=0.9, accumulate=5, head_lr_factor=2.0)
    config = dataclasses.replace(
        config, model=MODEL, optim=optim, mesh=Mesh(data=2), init_from=str(weights), label_smoothing=0.1
    )
    return with_run(config, folder, **({"steps": 6, "eval_every": 3, "save_every": 3, "log_every": 1} | options))


@pytest.fixture(scope="module")
def once(weights, tmp_path_factory):
    """A finished probe that computed features once."""
    config = probe(weights, tmp_path_factory.mktemp("once") / "run")
    return config, fit(config, make_task)


def assert_same_results(ours, theirs):
    """Asserts that two runs have the same State, rows and confusion matrix, up to rounding."""
    (config, state), (other, expected) = ours, theirs
    for (name, x), y in zip(named_leaves(state).items(), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6, err_msg=name)
    for row, of_other in zip(lines(config), lines(other), strict=True):
        assert row.pop("split") == of_other.pop("split")
        assert row == pytest.approx(of_other, rel=1e-4)
    one, two = (read_mistakes(Path(each.run.dir)) for each in (config, other))
    assert one["confusion"] == two["confusion"]
    assert [mistake["png"] for mistake in one["worst"]] == [mistake["png"] for mistake in two["worst"]]


def test_the_results_are_those_of_computing_features_in_each_step(once, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("train.engine.setup.plan", lambda *_: Plan())
    config = probe(weights, tmp_path / "run")
    assert_same_results(once, (config, fit(config, make_task)))


def test_only_the_heads_change(once):
    config, state = once
    task = make_task(config, open_source(config.data, config.data.train_split))
    start = jax.jit(task.init)(task.initial_params().params)
    before, after, average = map(named_leaves, (start.params, state.params, state.ema))
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {
        *("head/kernel", "head/bias", "head_distilled/kernel", "head_distilled/bias")
    }
    for name in before:
        assert name.startswith("head") or np.array_equal(before[name], average[name]), name


def test_a_step_and_an_evaluation_read_features_and_no_images(once):
    config, state = once
    setup, _ = set_up(config, make_task)
    shapes = {name: x.shape for name, x in setup.program.batch_shapes.items()}
    assert shapes == {"features": (10, 2, 12), "label": (10,), "index": (10,)}
    assert set(setup.examples(setup.test_source, state).gather(np.arange(2))) == {"features", "label"}


def test_a_resumed_probe_gives_the_same_bits_and_prints_that_it_computes_features(once, tmp_path, capsys):
    config, state = once
    other = with_run(config, tmp_path / "run")
    shutil.copytree(config.run.dir, other.run.dir)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert_same_trees(fit(other, make_task), state)
    assert Path(other.run.dir, "metrics.jsonl").read_bytes() == Path(config.run.dir, "metrics.jsonl").read_bytes()
    told = capsys.readouterr().out
    assert f"\n{NOTE}\nResumed from step 3 " in told
    fit(other, make_task)
    told = capsys.readouterr().out
    assert "Training already finished" in told and NOTE not in told


def test_an_extended_probe_equals_one_with_another_number_of_steps_per_call(once, tmp_path):
    ends = []
    for name, steps_per_call in (("one", 1), ("three", 3)):
        config = with_run(once[0], tmp_path / name, steps=9, extend=True, steps_per_call=steps_per_call)
        shutil.copytree(once[0].run.dir, config.run.dir)
        ends.append((config, fit(config, make_task)))
    assert int(ends[0][1].step) == 9
    assert_same_results(*ends)


def test_a_probe_predicts_and_is_evaluated_again_from_its_checkpoint(once, tmp_path):
    config, _ = once
    last = lines(config)[-1]
    examples = open_source(config.data, config.data.test_split).gather(np.arange(24))
    probabilities = load(config.run.dir)(examples["image"])[np.arange(24), examples["label"]]
    assert last["loss"] == pytest.approx(-np.log(probabilities).mean(), rel=1e-5)
    again = evaluate(Path(config.run.dir), "last", tmp_path)
    assert again.metrics == pytest.approx({name: last[name] for name in again.metrics}, rel=1e-4)
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {path.name for path in Path(config.run.dir, "pictures").iterdir()} and pictures


def test_features_are_the_same_on_any_mesh_and_for_streamed_images(once, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 2**5)
    config, state = once
    stream = open_source(dataclasses.replace(config.data, memory_limit=0), "train[:40]")
    assert isinstance(stream, StreamingSource)
    task, found = make_task(config, stream), []
    for source, sizes in (
        (open_source(config.data, "train[:40]"), Mesh(1, 1, 1)),
        (stream, Mesh(2, 2, 2)),
    ):
        program = Program(with_run(config, "", batch_size=20), task, source, make_mesh(sizes))
        placed = jax.device_put(jax.device_get(state), program.places)
        found.append(computed(program, task.features, source, placed, 12, workers=0).gather(np.arange(40)))
    np.testing.assert_array_equal(found[0]["label"], found[1]["label"])
    assert found[0]["features"].shape == (40, 2, 12) and np.ptp(found[0]["features"], axis=0).min() > 0.1
    np.testing.assert_allclose(found[0]["features"], found[1]["features"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_probe_on_a_sharded_mesh_gives_the_same_results(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 2**5)
    config = dataclasses.replace(probe(weights, tmp_path / "run", batch_size=20), mesh=Mesh(2, 2, 2))
    one = dataclasses.replace(with_run(config, tmp_path / "one"), mesh=Mesh(1, 1, 1))
    assert_same_results((config, fit(config, make_task)), (one, fit(one, make_task)))


EVERY_STEP = "only the head trains, but each step computes all layers"


def planned(freeze=("all-but-head",), features=None, **changes):
    """Returns the plan of a probe with some changed options. `features` replaces those of the task."""
    config = probe("", "")
    for name, value in changes.items():
        config = dataclasses.replace(config, **{name: value})
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, freeze=freeze))
    source, test_source = (abstract_source(config.data, split) for split in ("train[:40]", "test[:24]"))
    task = make_task(config, source)
    return plan(config, dataclasses.replace(task, features=features or task.features), source, test_source)


CROPS = dataclasses.replace(small("").data, crop=0.5, image_size=(28, 28))


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"augment": Augment(flip=True, mixup=0.2)}, "--augment.flip, --augment.mixup"),
        ({"augment": Augment(shift=1, rotate=1, scale=0.1)}, "--augment.shift, --augment.rotate, --augment.scale"),
        ({"augment": Augment(shear=1, erase=0.1)}, "--augment.shear, --augment.erase"),
        ({"augment": Augment(rand_augment=1), "data": CROPS}, "--data.crop, --augment.rand-augment"),
        ({"model": MODEL.clone(drop_path=0.1)}, "--model.drop-path"),
        ({"model": MODEL.clone(dropout=0.1, attention_dropout=0.1)}, "--model.dropout, --model.attention-dropout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_random_options_are_named_and_prevent_features(changes, flags):
    advice = "Without these options, as in the preset probe, features are computed once"
    assert planned(**changes) == Plan(None, f"{EVERY_STEP}, because of {flags}. {advice}")


def test_other_options_do_not_prevent_features():
    found = planned(augment=Augment(magnitude=0.9), label_smoothing=0.2, class_weights="balanced")
    assert (found.feature.shape, found.feature.dtype, found.note) == ((2, 12), np.float32, NOTE)
    assert planned(freeze=("[!h]*", "head/bias")).feature is not None  # not the kernel of a head


def test_a_model_that_draws_random_numbers_by_any_option_has_no_features():
    model = MODEL.clone(drop_path=0.1)

    def features(state, images):
        return model.head_inputs({"params": state.params}, images / 255.0, train=True)

    assert planned(features=features) == Plan(None, f"{EVERY_STEP}, because the model draws random numbers")


def test_features_that_do_not_fit_in_memory_are_not_stored():
    data = dataclasses.replace(small("").data, memory_limit=0)
    reason = "because their outputs need 3.75 KiB, above --data.memory-limit 0 (MiB)"
    assert planned(data=data) == Plan(None, f"{EVERY_STEP}, {reason}")


@pytest.mark.parametrize("freeze", [(), ("patch_embed",), ("encoder", "patch_embed", "cls")])
def test_a_training_of_more_than_the_heads_prints_nothing(freeze):
    assert planned(freeze) == Plan()
