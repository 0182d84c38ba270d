"""Times train and inference steps with growing batches until the memory is full, and the same models in torch.

MFU (model FLOPs utilization) is the FLOP/s of the model's matrix products, divided by the peak FLOP/s of all devices.
For float32 the peak is that of TF32 on a GPU and of bfloat16 on a TPU, because JAX rounds the operands so by default.
The batch size is the total over all devices. The peak memory is that of the whole process, so only a row that raised
it shows it.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.record import Figures, Recorder, Setting
from benchmarks.inputs import VIT, build
from train.dryrun.target import CHIPS

# Peak FLOP/s for dense products: (bfloat16, float32 inputs at JAX's default precision).
PEAKS = {
    "NVIDIA A100-SXM4-40GB": (312e12, 156e12),  # NVIDIA A100 data sheet
    "NVIDIA A100-SXM4-80GB": (312e12, 156e12),
    "NVIDIA H100 80GB HBM3": (989e12, 494e12),  # NVIDIA H100 data sheet, SXM, half of the figures with sparsity
    "NVIDIA H200": (989e12, 494e12),  # NVIDIA H200 data sheet, SXM, half of the figures with sparsity
}
TPUS = {
    **{"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"},
    **{"TPU v6 lite": "v6e", "TPU v6e": "v6e"},
}
"""The names of the chips in `train.dryrun.target`, by JAX's names of the devices."""

VIT_SIZES = {"vit_tiny": (28, 1), "vit_s16": (224, 3), "vit_b16": (224, 3)}  # side of the images, channels


def run(job: str, recorder: Recorder, setting: Setting) -> None:
    if job == "torch":
        recorder.skip("torch.compile", "needs torch with CUDA and an NVIDIA GPU")
        return
    library, model, dtype, *modes = job.split()
    for mode in modes:
        make, peaks = partial({"jax": make_jax, "torch": make_torch}[library], model, dtype, mode), [0]
        for size in sizes(setting, library):
            name = f"{library} {model} {mode} {dtype}, batch {size}"
            row = recorder.row(name, partial(measure, make, size, dtype, setting, peaks))
            if row.status == "failed" or "memory full" in row.figures:
                break


def sizes(setting: Setting, library: str) -> list[int]:
    """Returns the batch sizes."""
    if setting.small:
        return [8] if setting.quick else [8, 32]
    ours = [64, 256] if setting.quick else [64, 256, 1024, 4096, 16384]
    return [size * (setting.count if library == "jax" else 1) for size in ours]


Stepper = tuple[Callable[[], object], float | None, int, Callable[[], int | None]]
"""A step that waits for its end, its FLOPs, the number of devices, and a function that returns the peak memory."""


def measure(make: Callable[[int], Stepper], size: int, dtype: str, setting: Setting, peaks: list[int]) -> Figures:
    """Times a step. Out of memory is a result, not an error. `peaks` has the peaks of the process until now."""
    try:
        step, flops, devices, peak_memory = make(size)
        times = timed(step, 0.3 if setting.small else 2.0)
    except Exception as error:
        if any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "out of memory")):
            return {"memory full": True}
        raise
    seconds, peak, after = statistics.median(times), peak_of(setting.kind, dtype), peak_memory() or 0
    is_new = after > max(peaks)
    peaks.append(after)
    return {
        "ms": 1e3 * seconds,
        "examples/s": size / seconds,
        "TFLOP/s": flops and flops / seconds / 1e12,
        "MFU": flops and peak and flops / seconds / peak / devices,
        "peak GiB": after / 2**30 if is_new else None,
    }


def timed(step: Callable[[], object], seconds: float) -> list[float]:
    """Returns the times of at least three steps, after two that are not timed."""
    times: list[float] = []
    for i in range(1000):
        start = time.perf_counter()
        step()
        if i >= 2:
            times.append(time.perf_counter() - start)
        if len(times) >= 3 and sum(times) > seconds:
            break
    return times


def peak_of(kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of a device; None if it is unknown."""
    if kind in TPUS:
        return CHIPS[TPUS[kind]].flops
    return PEAKS[kind][dtype == "float32"] if kind in PEAKS else None


def device_peak() -> int | None:
    """Returns the most memory in bytes that this process has used on a device; None if JAX does not report it."""
    return (
        max(((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.devices()), default=0) or None
    )


def module_of(model: str, dtype: Any) -> tuple[str, Any, tuple[int, int, int]]:
    """Returns the task, our module and the shape of the images."""
    from w2jax import ViT

    if model == "lstm":
        return "lstm", build("lstm")[0].clone(dtype=dtype), (28, 28, 1)
    side, channels = VIT_SIZES[model]
    if model == "vit_tiny":
        return "vit", build("vit")[0].clone(dtype=dtype), (side, side, channels)
    return "vit", ViT.named(f"{model[4].upper()}/16", 1000, dtype=dtype), (side, side, channels)


def make_jax(model: str, dtype: str, mode: str, size: int) -> Stepper:
    """Returns our step on all devices."""
    import importlib

    from benchmarks.step import Step, blank_source
    from configs.base import Mesh, Optim, RunConfig
    from train.dryrun.flops import flops_of
    from train.engine.sharding import batch_sharding, make_mesh

    task, module, shape = module_of(model, dtype)
    if mode == "train":
        run = RunConfig(steps=10**6, batch_size=size)
        config_type = importlib.import_module(f"configs.{task}").Config
        config = config_type(model=module, optim=Optim(clip=None), run=run, mesh=Mesh())
        step = Step(task, config, blank_source(shape, module.num_classes, 10 * size))
        return step, step.flops, jax.device_count(), device_peak
    mesh = make_mesh(Mesh())
    images = (size, *(shape[:2] if task == "lstm" else shape))
    x = jax.jit(lambda: jax.random.uniform(jax.random.key(0), images), out_shardings=batch_sharding(mesh))()
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    variables = jax.jit(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, *x.shape[1:]))), out_shardings=replicated
    )()
    apply = jax.jit(lambda variables, x: module.apply(variables, x)[0])
    flops = flops_of(jax.make_jaxpr(apply)(variables, x).jaxpr)
    return lambda: apply(variables, x).block_until_ready(), flops, jax.device_count(), device_peak


def make_torch(
    model: str, dtype: str, mode: str, size: int, device: str = "cuda", backend: str = "inductor"
) -> Stepper:
    """Returns the step of the same model by torch.compile on one GPU. bfloat16 is autocast, float32 allows TF32."""
    import torch
    from torch.nn import functional as F

    from benchmarks.baselines import torch_models

    _, module, (side, _, channels) = module_of(model, dtype)
    torch.set_float32_matmul_precision("high")
    if model == "lstm":
        net, shape = torch_models.LSTMClassifier(), (size, 28, 28)
    else:
        options = {name: getattr(module, name) for name in VIT}
        net, shape = torch_models.ViT(options, side, channels), (size, channels, side, side)
    net, x = net.to(device).train(mode == "train"), torch.rand(shape, device=device) * 2 - 1
    labels = torch.arange(size, device=device) % module.num_classes
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    compiled: Any = torch.compile(net, backend=backend)
    on_gpu = device == "cuda"

    def forward():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return compiled(x)

    def step() -> None:
        if mode == "train":
            optimizer.zero_grad()
            F.cross_entropy(forward().float(), labels).backward()
            optimizer.step()
        else:
            with torch.inference_mode():
                forward()
        if on_gpu:
            torch.cuda.synchronize()

    return step, None, 1, lambda: torch.cuda.max_memory_allocated() if on_gpu else None
