"""Every task gives one device's results on any mesh, and each device stores its share of the state."""

import functools
import re
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from tasks import CLASSIFIERS, TASKS, make_task, preset

from configs.base import Augment, Mesh, Optim, RunConfig
from train.data import open_source
from train.dryrun.hlo import count
from train.engine import sharding
from train.engine.placement import placements
from train.engine.program import Program
from train.engine.sharding import batch_sharding, make_mesh
from train.task import State
from w2jax import ViT
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder
from w2jax.sequence_classifiers import AttentionClassifier, LSTMClassifier

STEPS, BATCH = 20, 48

# Small models for images of 8 x 8, with all features that may depend on the mesh: dropout, augmentation, accumulation,
# averages, batch norm. A task that is not in this dict runs its preset tiny.
OPTIONS = {
    "vit": {
        "model": ViT(
            *(10, 4, 32, 2, 4, 64), dropout=0.1, attention_dropout=0.1, drop_path=0.1, remat=True, scan_layers=True
        ),
        "optim": Optim(ema=0.9, accumulate=2),
    },
    "mha": {
        "model": AttentionClassifier(10, 24, depth=2, num_heads=3, mlp_dim=80, dropout=0.1, attention_dropout=0.1),
        "augment": Augment(shift=2, rotate=10, flip=True, mixup=0.2),
    },
    "lstm": {
        "model": LSTMClassifier(10, hidden_size=40, num_layers=2, dropout=0.1, proj_size=24),
        "optim": Optim(accumulate=2),
    },
    "aae": {
        "model": AAE(
            AAEEncoder(3, (64, 40, 32), batch_norm=(0, 1), categories=10),
            AAEDecoder((8, 8, 1), (32, 64)),
            AAEDiscriminator((48, 32)),
            AAEDiscriminator((40, 16, 24)),
        ),
        "labels": "categories",
    },
}

# Common meshes, and unusual ones: 3 and 5 rarely divide a size, and 4 does not divide 3 heads.
CHOSEN = [Mesh(8, 1, 1), Mesh(1, 8, 1), Mesh(2, 2, 2)]
TRIED = [("vit", Mesh(1, 2, 4)), ("mha", Mesh(1, 3, 2)), ("lstm", Mesh(1, 1, 5))]
CASES = [*((task, sizes) for task in TASKS for sizes in CHOSEN), *TRIED]
QUICK = ("lstm", Mesh(2, 2, 2))


@dataclass
class Trained:
    """The result of a run."""

    program: Program
    text: str
    """The compiled step."""
    start: list[np.ndarray]
    """The parameters before the first step."""
    metrics: dict[str, np.ndarray]
    state: State


class Trainee:
    """A task, and its result on one device."""

    def __init__(self, name, **options):
        config = preset(name)
        if name in OPTIONS:
            config = replace(config, data=replace(config.data, image_size=(8, 8)), **OPTIONS[name])
        self.config = replace(config, run=RunConfig(steps=STEPS, batch_size=BATCH), **options)
        self.source = open_source(self.config.data, "train[:480]")
        self.task = make_task(name, self.config, self.source)
        self.one = self.run(Mesh(1, 1, 1))

    def run(self, sizes):
        program = Program(self.config, self.task, self.source, make_mesh(sizes))
        state = jax.jit(self.task.init, out_shardings=program.places)()
        start, step, history = jax.device_get(state.params), program.lowered_step.compile(), []
        for index in np.random.default_rng(7).integers(0, len(self.source), (STEPS, BATCH)):
            batch = {**self.source.gather(index), "index": index.astype(np.int32)}
            state, metrics = step(state, jax.device_put(batch, batch_sharding(program.mesh)))
            history.append(metrics)
        metrics = {name: np.array([line[name] for line in history]) for name in history[0]}
        return Trained(program, step.as_text(), jax.tree.leaves(start), metrics, state)


@functools.cache
def trainee(name):
    return Trainee(name)


@pytest.fixture(autouse=True)
def small_models_are_cut(monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 2**8)


@pytest.mark.parametrize(
    ("task", "sizes"),
    [pytest.param(*case, marks=[] if case == QUICK else pytest.mark.slow) for case in CASES],
    ids=[f"{task}-{sizes.data}x{sizes.fsdp}x{sizes.tensor}" for task, sizes in CASES],
)
def test_a_mesh_gives_the_losses_of_one_device(task, sizes):
    """Each device stores its share of the state and does its share of the FLOPs."""
    one, many = trainee(task).one, trainee(task).run(sizes)
    assert one.metrics.keys() == many.metrics.keys()
    for name, expected in one.metrics.items():
        # Metrics that count examples may differ by one or two, where a logit is near the decision boundary.
        slack = {"atol": 2.01 / BATCH} if name in ("accuracy", "discriminator_accuracy") else {"rtol": 1e-4}
        np.testing.assert_allclose(many.metrics[name], expected, **slack, err_msg=name)

    ends = zip(jax.tree.leaves(many.state.params), jax.tree.leaves(one.state.params), one.start, strict=True)
    apart, moved = np.sum([[np.sum((x - y) ** 2), np.sum((y - z) ** 2)] for x, y, z in jax.device_get(list(ends))], 0)
    # Gradients of biases before batch norm are rounding errors, which Adam scales up to normal steps.
    assert apart**0.5 < (0.05 if task == "aae" else 1e-3) * moved**0.5

    if sizes.tensor == 1:  # No device computes another device's examples.
        flops, alone = count(many.text, sizes.data * sizes.fsdp).flops, count(one.text, 1).flops
        assert flops < 1.1 * alone / (sizes.data * sizes.fsdp)

    held = {device.id: 0 for device in many.program.mesh.devices.flat}
    for leaf in jax.tree.leaves(many.state):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    rows, rest = placements(many.program.state_shapes)
    assert set(held.values()) == {sum(row.device_state_bytes for row in [*rows, rest])}
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(one.state))
    assert sum(row.total_state_bytes for row in [*rows, rest]) == whole
    if sizes.fsdp == 8:
        assert max(held.values()) < whole / 4
    elif sizes.data == 8:
        assert max(held.values()) == whole

    if sizes.fsdp == 8 and task == "vit":
        # The loop gathers each layer's parameters. It never gathers the stack before the loop, and never the examples.
        gathers = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", many.text)
        whole_layers = {axes_of(row.shape[row.name.startswith("encoder/blocks") :]) for row in rows}
        assert gathers
        assert {axes_of(map(int, shape.split(","))) for shape in gathers} <= whole_layers


@pytest.mark.slow
@pytest.mark.parametrize("task", CLASSIFIERS)
def test_micro_batches_on_two_cpu_devices_give_one_devices_results(task):
    model = trainee(task).config.model
    quiet = {name: 0.0 for name in ("dropout", "attention_dropout", "drop_path") if hasattr(model, name)}
    calm = Trainee(task, model=model.clone(**quiet), optim=Optim(), augment=Augment(shift=2, mixup=0.2))
    one, many = calm.one, calm.run(Mesh(2, 1, 1))
    assert "shard_map" in many.text and "shard_map" not in one.text
    np.testing.assert_allclose(many.metrics["loss"], one.metrics["loss"], rtol=1e-4)
    np.testing.assert_allclose(many.metrics["grad_norm"], one.metrics["grad_norm"], rtol=1e-3)


def axes_of(shape):
    """Returns the axes in no particular order, because XLA may transpose."""
    return tuple(sorted(n for n in shape if n != 1))
