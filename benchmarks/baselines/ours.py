"""Our side of each case: the very step that `python -m train.TASK` compiles, on a batch that is ready."""

import importlib
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.baselines.with_jax import attended, compiled_update, images, inferred, stepping, trained
from benchmarks.inputs import HEADS, Arrays, build, our_params
from benchmarks.worker import Contender
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


def batch_of(given: Arrays) -> dict[str, np.ndarray]:
    size = len(given["label"])
    return {"image": given["image"], "label": given["label"], "index": np.arange(size, dtype=np.int32)}


def training(task: Any, given: Arrays) -> tuple[Any, Any, Any]:
    """(the task's train step, its first state with the parameters given, a batch)."""
    return task.step, jax.jit(task.init)().replace(params=our_params(given)), jax.tree.map(jnp.asarray, batch_of(given))


def source(given: Arrays) -> InMemorySource:
    """The batch as a split, any other of which is the same."""
    split = InMemorySource("images", "train", given["image"].shape[1:], 10, [], given["image"], given["label"])
    return replace(split, sibling=lambda _: split)


def classifier(program: str, given: Arrays, optim: Optim) -> tuple[Any, Any]:
    """(the config, its task)."""
    config_type = importlib.import_module(f"configs.{program}").Config
    run = RunConfig(steps=10**6, batch_size=len(given["label"]))
    config = config_type(model=build(program)[0], optim=optim, run=run)
    return config, importlib.import_module(f"train.{program}").make_task(config, source(given))


def lstm_training(given: Arrays):
    return training(classifier("lstm", given, ADAM)[1], given)


def vit_training(given: Arrays):
    return training(classifier("vit", given, ADAMW)[1], given)


def program_step(config: Any, task: Any, given: Arrays) -> Contender:
    """The step as the loop has it, on the devices that the config splits the CPU into."""
    split_cpu_into_devices(config)
    program = Program(config, task, source(given), make_mesh(config.mesh))
    state = jax.jit(task.init, out_shardings=program.places)()
    state = state.replace(params=placed_params(our_params(given), program.places))
    size = len(given["label"])
    batch = program.place(batch_of(given), np.arange(size), size)
    return trained(program.lowered_step.compile(), state, batch)


def lstm_step(given: Arrays) -> Contender:
    return program_step(*classifier("lstm", given, ADAM), given)


def vit_step(given: Arrays) -> Contender:
    return program_step(*classifier("vit", given, ADAMW), given)


def mha_step(given: Arrays) -> Contender:
    return program_step(*classifier("mha", given, ADAMW), given)


def attend(params, *inputs):
    return MultiHeadAttention(HEADS).apply({"params": params}, *inputs, return_weights=True)


def self_attention(given: Arrays) -> Contender:
    return attended(attend, our_params(given), given, cross=False)


def cross_attention(given: Arrays) -> Contender:
    return attended(attend, our_params(given), given, cross=True)


def aae_step(given: Arrays) -> Contender:
    from configs.aae import Config, Phases
    from train.aae import make_task

    size = len(given["label"])
    run = RunConfig(steps=10**6, batch_size=size)
    game = replace(Phases().generator, learning_rate=5e-4, warmup_fraction=0.0, final_lr_fraction=1.0)
    optim = Phases(replace(Phases().reconstruction, warmup_fraction=0.0, final_lr_fraction=1.0), game, game)
    parts = [part(dropout=0.0) for part in (AAEDecoder, AAEDiscriminator)]
    quiet = Config(model=AAE(AAEEncoder(8, dropout=0.0, stochastic=False), *parts), optim=optim, run=run)
    params = our_params(given)
    without_variance = {name: x for name, x in params["encoder"].items() if name != "log_variance"}
    task = make_task(quiet, source(given))
    state = jax.jit(task.init)().replace(params={**params, "encoder": without_variance})
    _, metrics = jax.jit(task.step)(state, {name: given[name] for name in ("image", "label")})
    losses = {name: float(metrics[name]) for name in ("reconstruction", "discriminator", "generator")}
    update, state, batch = training(make_task(Config(optim=optim, run=run), source(given)), given)
    step = stepping(compiled_update(update, state, batch), state, batch)
    return Contender(
        {"reconstruction": losses["reconstruction"], "game": [losses["discriminator"], losses["generator"]]}, step
    )


def inference(model: str, x: jax.Array, given: Arrays) -> Contender:
    module, _, _ = build(model)
    return inferred(lambda variables, x: module.apply(variables, x)[0], {"params": our_params(given)}, x)


def lstm_inference(given: Arrays) -> Contender:
    return inference("lstm", images(given)[..., 0], given)


def mha_inference(given: Arrays) -> Contender:
    return inference("mha", 2 * images(given)[..., 0] - 1, given)


def vit_inference(given: Arrays) -> Contender:
    return inference("vit", 2 * images(given) - 1, given)


def aae_inference(given: Arrays) -> Contender:
    module, _, _ = build("aae")
    stats = {"decoder": {"norm_1": {"mean": jnp.zeros(512), "var": jnp.ones(512), "count": jnp.zeros((), jnp.int32)}}}
    variables = {"params": our_params(given), "batch_stats": stats}
    return inferred(partial(module.apply, method="reconstruct"), variables, 2 * images(given) - 1)


def gemm(given: Arrays) -> Contender:
    """One product of two matrices [2048, 2048], which shows the machine's rate."""
    a, b = (jnp.asarray(np.random.default_rng(i).standard_normal((2048, 2048), np.float32)) for i in range(2))
    product = jax.jit(jnp.matmul)
    return Contender({"corner": float(product(a, b)[0, 0])}, lambda: jax.block_until_ready(product(a, b)))
