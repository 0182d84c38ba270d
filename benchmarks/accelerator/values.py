"""Values and gradients of the models on the device, against torch on the CPU; and one device against several.

The difference of arrays is the norm of the error, relative to the norm of the expected values. All gradients of a model
count as one array, because some of them are nearly 0. The bounds:

- matmul precision "highest": 1e-4. Products are float32, and only the order of sums and functions such as exp differ.
- the default precision, values: 32 rounding errors of an operand, because errors grow over the layers. A TPU rounds
  operands to bfloat16 (error 2^-9), a GPU to TF32 (2^-11), a CPU not at all.
- the default precision, gradients: 0.1 on a GPU or TPU. If rounding changes the sign of a ReLU's input, the gradient
  jumps. With operands rounded on a CPU, the largest difference was 0.022.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.record import Figures, Recorder, Setting, Skipped, Wrong
from benchmarks.inputs import Arrays, arguments, build, make_inputs, our_params
from w2jax.convert import to_torch

BATCH = 6
HIGHEST = 1e-4
DEFAULT = {"cpu": HIGHEST, "gpu": 32 * 2.0**-11, "tpu": 32 * 2.0**-9}
DEFAULT_GRADIENTS = {"cpu": HIGHEST, "gpu": 0.1, "tpu": 0.1}
MODELS = {  # the model's name in benchmarks.inputs, and what is computed
    "LSTM": ("lstm", "call"),
    "GRU": ("gru", "call"),
    "RNN": ("rnn", "call"),
    "MultiHeadAttention": ("attention", "call"),
    "Transformer encoder": ("mha", "call"),
    "Transformer": ("transformer", "call"),
    "ViT": ("vit", "call"),
    "AAE encoder and decoder": ("aae", "reconstruct"),
    "AAE discriminator": ("aae", "discriminate"),
}


def run(job: str, recorder: Recorder, setting: Setting) -> None:
    rounded = DEFAULT[setting.platform], DEFAULT_GRADIENTS[setting.platform]
    for name, (model, method) in MODELS.items():
        for precision, bounds in (("highest", (HIGHEST, HIGHEST)), ("default", rounded)):
            if setting.small and precision == "default":
                recorder.skip(f"{name}, default", "a CPU does not round operands, so this is the same as highest")
            else:
                measure = partial(compare, model, method, precision, bounds, setting.torch)
                recorder.row(f"{name}, {precision}", measure)
    for axis in ("data", "fsdp"):
        recorder.row(f"ViT's step, {axis} {jax.device_count()}", partial(check_mesh, axis, setting))


def compare(model: str, method: str, precision: str, bounds: tuple[float, float], torch: bool) -> Figures:
    """Compares the device with torch on the CPU, or without torch with JAX on the CPU."""
    inputs, x = inputs_of(model), input_of(model, method)
    ours = with_jax(model, method, inputs, x, precision)
    if torch:
        return {**check(ours, with_torch(model, method, inputs, x), bounds), "reference": "torch on the CPU"}
    with jax.default_device(jax.devices("cpu")[0]):
        theirs = with_jax(model, method, inputs, x, "highest")
    return {**check(ours, theirs, bounds), "reference": "JAX on the CPU"}


@cache
def inputs_of(model: str) -> Arrays:
    return make_inputs(model, BATCH)


def input_of(model: str, method: str) -> np.ndarray:
    """Returns random images, sequences or codes in [-1, 1]."""
    shape = (8,) if method == "discriminate" else build(model)[1]
    return np.random.default_rng(1).uniform(-1, 1, (BATCH, *shape)).astype(np.float32)


def weights_like(out: Any) -> np.ndarray:
    """Returns the factors of the outputs [B, …] in the loss."""
    return np.cos(np.arange(out.size, dtype=np.float32)).reshape(out.shape)


def with_jax(model: str, method: str, inputs: Arrays, x: np.ndarray, precision: str) -> dict[str, np.ndarray]:
    """Returns the output, and the gradients of the input and the parameters under torch's names."""
    module, _, names = build(model)
    stats = {"decoder": {"norm_1": {"mean": jnp.zeros(512), "var": jnp.ones(512), "count": jnp.zeros((), jnp.int32)}}}
    others = {"batch_stats": stats} if model == "aae" else {}

    def loss(params, x):
        options: dict[str, Any] = {} if method == "call" else {"method": method}
        out: Any = module.apply({"params": params, **others}, *arguments(model, x), **options)
        out = out[0] if method == "call" else out
        return (out * weights_like(out)).sum(), out

    with nullcontext() if precision == "default" else jax.default_matmul_precision(precision):
        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(our_params(inputs), jnp.asarray(x))
    of_params = to_torch(module, {"params": gradients[0], **others}, names)
    of_params = {name: of_params[name] for name in of_params if "running_" not in name and "num_batches" not in name}
    return {"output": np.asarray(out), "input": np.asarray(gradients[1]), **of_params}


def with_torch(model: str, method: str, inputs: Arrays, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the same with torch."""
    import torch

    from benchmarks.baselines import torch_models, torch_steps
    from benchmarks.inputs import HEADS, QUERIES, WIDTH

    modules: dict[str, Callable[[], Any]] = {
        "lstm": torch_models.LSTMClassifier,
        "gru": partial(torch.nn.GRU, 28, WIDTH, 2, batch_first=True),
        "rnn": partial(torch.nn.RNN, 28, WIDTH, 2, batch_first=True),
        "attention": partial(torch.nn.MultiheadAttention, WIDTH, HEADS, batch_first=True),
        "transformer": partial(torch.nn.Transformer, WIDTH, HEADS, 2, 1, 2 * WIDTH, batch_first=True),
        "mha": torch_models.AttentionClassifier,
        "vit": torch_models.ViT,
        "aae": partial(torch_models.AAE, dropout=0.0),
    }
    module: Any = torch_steps.loaded(modules[model](), inputs).eval()
    leaf: Any = torch.from_numpy(x).requires_grad_()
    images = leaf.permute(0, 3, 1, 2) if x.ndim == 4 else leaf
    if method == "reconstruct":
        out = module.decoder(module.encoder(images)[0])
    elif method == "discriminate":
        out = module.discriminator(leaf)
    elif model == "attention":
        out = module(images, images, images, need_weights=False)[0]
    elif model == "transformer":
        unseen = torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu(1)
        out = module(*arguments(model, images), tgt_mask=unseen, tgt_is_causal=True)
    else:
        out = module(images)
        out = out[0] if model in ("gru", "rnn") else out
    (out * torch.from_numpy(weights_like(out.detach().numpy()))).sum().backward()
    gradients = {
        name: np.zeros_like(x.detach()) if x.grad is None else x.grad.numpy() for name, x in module.named_parameters()
    }
    return {"output": out.detach().numpy(), "input": leaf.grad.numpy(), **gradients}


def check(ours: Arrays, theirs: Arrays, bounds: tuple[float, float]) -> Figures:
    """Compares the array "output", and all others, which are gradients. Raises Wrong if a difference is too large."""
    if ours.keys() != theirs.keys():  # The baselines compute queries, keys and values in one product.
        from benchmarks.baselines.torch_steps import merge_projections

        ours = merge_projections(ours)
    gradients = [name for name in theirs if name != "output"]
    value = difference(ours["output"], theirs["output"])
    gradient = difference(*(np.concatenate([arrays[name].ravel() for name in gradients]) for arrays in (ours, theirs)))
    for what, of_arrays, bound in zip(("output", "gradients"), (value, gradient), bounds, strict=True):
        if not of_arrays <= bound:  # NaN is too large.
            raise Wrong(f"{what} differ by {of_arrays:.1e}, bound {bound:.1e}")
    return {"values": value, "bound": bounds[0], "gradients": gradient, "their bound": bounds[1]}


def difference(found: Any, expected: Any) -> float:
    """Returns the norm of the error, relative to the norm of the expected values. NaN if any value is NaN."""
    found, expected = (np.asarray(x, np.float64).ravel() for x in (found, expected))
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def check_mesh(axis: str, setting: Setting) -> Figures:
    """Compares the losses of ten train steps on all devices with those on one device."""
    from benchmarks.step import Step, blank_source
    from configs.base import Mesh
    from configs.vit import PRESETS

    if (count := jax.device_count()) == 1:
        raise Skipped("needs several devices")
    config, size = PRESETS["tiny"].config, 8 * count
    config = replace(config, model=config.model.clone(embed_dim=128), run=replace(config.run, batch_size=size))
    losses = []
    for mesh in (Mesh(1, 1, 1), replace(Mesh(1, 1, 1), **{axis: count})):
        step = Step("vit", replace(config, mesh=mesh), blank_source((28, 28, 1), 10, 2 * size))
        losses.append([float(step.metrics["loss"]) for _ in range(10) if step()])
    bound = 10 * DEFAULT[setting.platform]  # Adam divides gradients by their size, so later losses differ more.
    found = difference(losses[1], losses[0])
    if not found <= bound:
        raise Wrong(f"the losses differ by {found:.1e}, bound {bound:.1e}: {losses}")
    return {"values": found, "bound": bound, "reference": "one device"}
