"""Our implementation of each case: the step that `python -m train.TASK` compiles, on a prepared batch."""

import importlib
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.baselines.own_jit import inference
from benchmarks.baselines.with_jax import attended, compiled_update, images, inferred, stepping, trained
from benchmarks.inputs import HEADS, Arrays, build, our_params
from benchmarks.worker import Workload
from configs.base import Optim, RunConfig
from train.data.source import InMemorySource
from train.engine.loop import placed_params
from train.engine.program import Program
from train.engine.sharding import make_mesh
from train.process.setup import split_cpu_into_devices
from w2jax import MultiHeadAttention
from w2jax.aae import AAE, AAEDecoder, AAEDiscriminator, AAEEncoder

ADAM = Optim(learning_rate=1e-3, warmup_fraction=0.0, final_lr_fraction=1.0, weight_decay=0.0, clip=None)
ADAMW = replace(ADAM, weight_decay=0.01)


def batch_of(inputs: Arrays) -> dict[str, np.ndarray]:
    size = len(inputs["label"])
    return {"image": inputs["image"], "label": inputs["label"], "index": np.arange(size, dtype=np.int32)}


def training(task: Any, inputs: Arrays) -> tuple[Any, Any, Any]:
    """Returns (the task's train step, its first state with the inputs' parameters, a batch)."""
    state = jax.jit(task.init)().replace(params=our_params(inputs))
    return task.step, state, jax.tree.map(jnp.asarray, batch_of(inputs))


def source(inputs: Arrays) -> InMemorySource:
    """Returns the batch as the split of a source. All other splits are the same batch."""
    split = InMemorySource("images", "train", inputs["image"].shape[1:], 10, [], inputs["image"], inputs["label"])
    return replace(split, open_split=lambda _: split)


def classifier(program: str, inputs: Arrays, optim: Optim) -> tuple[Any, Any]:
    """Returns (the config of a classifier, its task)."""
    config_type = importlib.import_module(f"configs.{program}").Config
    run = RunConfig(steps=10**6, batch_size=len(inputs["label"]))
    config = config_type(model=build(program)[0], optim=optim, run=run)
    return config, importlib.import_module(f"train.{program}").make_task(config, source(inputs))


def lstm_training(inputs: Arrays):
    return training(classifier("lstm", inputs, ADAM)[1], inputs)


def vit_training(inputs: Arrays):
    return training(classifier("vit", inputs, ADAMW)[1], inputs)


def program_step(config: Any, task: Any, inputs: Arrays) -> Workload:
    """Returns the step as in the training loop, with the CPU split into devices by the config."""
    split_cpu_into_devices(config)
    program = Program(config, task, source(inputs), make_mesh(config.mesh))
    state = jax.jit(task.init, out_shardings=program.places)()
    state = state.replace(params=placed_params(our_params(inputs), program.places))
    size = len(inputs["label"])
    batch = program.place(batch_of(inputs), np.arange(size), size)
    return trained(program.lowered_step.compile(), state, batch)


def lstm_step(inputs: Arrays) -> Workload:
    return program_step(*classifier("lstm", inputs, ADAM), inputs)


def vit_step(inputs: Arrays) -> Workload:
    return program_step(*classifier("vit", inputs, ADAMW), inputs)


def mha_step(inputs: Arrays) -> Workload:
    return program_step(*classifier("mha", inputs, ADAMW), inputs)


def attend(params, *inputs):
    return MultiHeadAttention(HEADS).apply({"params": params}, *inputs, return_weights=True)


def self_attention(inputs: Arrays) -> Workload:
    return attended(attend, our_params(inputs), inputs, cross=False)


def cross_attention(inputs: Arrays) -> Workload:
    return attended(attend, our_params(inputs), inputs, cross=True)


def aae_step(inputs: Arrays) -> Workload:
    from configs.aae import Config, Phases
    from train.aae import make_task

    size = len(inputs["label"])
    run = RunConfig(steps=10**6, batch_size=size)
    game = replace(Phases().generator, learning_rate=5e-4, warmup_fraction=0.0, final_lr_fraction=1.0)
    optim = Phases(replace(Phases().reconstruction, warmup_fraction=0.0, final_lr_fraction=1.0), game, game)
    parts = [part(dropout=0.0) for part in (AAEDecoder, AAEDiscriminator)]
    quiet = Config(model=AAE(AAEEncoder(8, dropout=0.0, stochastic=False), *parts), optim=optim, run=run)
    params = our_params(inputs)
    without_variance = {name: x for name, x in params["encoder"].items() if name != "log_variance"}
    task = make_task(quiet, source(inputs))
    state = jax.jit(task.init)().replace(params={**params, "encoder": without_variance})
    _, metrics = jax.jit(task.step)(state, {name: inputs[name] for name in ("image", "label")})
    losses = {name: float(metrics[name]) for name in ("reconstruction", "discriminator", "generator")}
    update, state, batch = training(make_task(Config(optim=optim, run=run), source(inputs)), inputs)
    step = stepping(compiled_update(update, state, batch), state, batch)
    return Workload(
        {"reconstruction": losses["reconstruction"], "game": [losses["discriminator"], losses["generator"]]}, step
    )


def lstm_inference(inputs: Arrays) -> Workload:
    return inference("lstm", images(inputs)[..., 0], inputs)


def mha_inference(inputs: Arrays) -> Workload:
    return inference("mha", 2 * images(inputs)[..., 0] - 1, inputs)


def vit_inference(inputs: Arrays) -> Workload:
    return inference("vit", 2 * images(inputs) - 1, inputs)


def aae_inference(inputs: Arrays) -> Workload:
    module, _, _ = build("aae")
    stats = {"decoder": {"norm_1": {"mean": jnp.zeros(512), "var": jnp.ones(512), "count": jnp.zeros((), jnp.int32)}}}
    variables = {"params": our_params(inputs), "batch_stats": stats}
    return inferred(partial(module.apply, method="reconstruct"), variables, 2 * images(inputs) - 1)


def gemm(inputs: Arrays) -> Workload:
    """Returns the product of two matrices [2048, 2048], which measures the machine's rate."""
    a, b = (jnp.asarray(np.random.default_rng(i).standard_normal((2048, 2048), np.float32)) for i in range(2))
    product = jax.jit(jnp.matmul)
    return Workload({"corner": float(product(a, b)[0, 0])}, lambda: jax.block_until_ready(product(a, b)))
