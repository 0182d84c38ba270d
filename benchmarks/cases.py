"""The benchmark cases: their implementations, the tolerances of the results, and the goals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from benchmarks.inputs import REAL

OURS, TORCH, FLAX = "benchmarks.baselines.ours", "benchmarks.baselines.torch_steps", "benchmarks.baselines.flax_steps"
OWN_JIT, TIMM = "benchmarks.baselines.own_jit", "benchmarks.baselines.timm_steps"

# The largest allowed difference, relative to the array's largest value. After an update losses ("later") differ more:
# Adam divides gradients by their size, so rounding a small gradient changes its parameter a lot. Flax's LSTM has one
# bias where torch's has two. Each library draws its own samples of the prior ("game").
TOLERANCE = {
    "loss": 1e-5,
    "later": 0.05,
    "reconstruction": 1e-5,
    "game": 0.1,
    "out": 1e-4,
    "weights": 1e-4,
    "gradient": 1e-4,
    "logits": 1e-4,
    "corner": 1e-4,
}


@dataclass(frozen=True)
class Case:
    """One computation and its implementations."""

    model: str
    """The model's name in `benchmarks.inputs`."""
    batch_size: int
    implementations: Mapping[str, str]
    """MODULE:FUNCTION of each implementation, by name."""
    goals: Mapping[str, float] = field(default_factory=dict)
    """Largest allowed ratio of our time to the time of an implementation, or to the arithmetic floor."""


def _case(model: str, what: str, batch_size: int, goals: Mapping[str, float], *more: str) -> Case:
    functions = {"ours": f"{OURS}:{what}", "torch": f"{TORCH}:{what}"}
    if "flax" in goals:
        functions["flax"] = f"{FLAX}:{what}"
    functions |= {name: f"{FLAX}:{what}_{name}" for name in more}
    return Case(model, batch_size, functions, goals)


CASES = {
    "gemm": Case("attention", 1, {"xla": f"{OURS}:gemm", "torch": f"{TORCH}:gemm"}),
    "lstm_step": _case("lstm", "lstm_step", 256, {"torch": 1.0, "flax": 0.8, "floor": 1.6}),
    "vit_step": _case("vit", "vit_step", 128, {"torch": 1.0, "flax": 0.7, "floor": 2.5}, "jax_nn"),
    "mha_step": _case("mha", "mha_step", 128, {"torch": 1.0, "flax": 0.8}),
    "self_attention": _case("attention", "self_attention", 128, {"torch": 1.0, "flax": 0.8}),
    "cross_attention": _case("attention", "cross_attention", 128, {"torch": 1.0, "flax": 0.8}),
    "aae_step_64": _case("aae", "aae_step", 64, {"torch": 0.8}),
    "aae_step_256": _case("aae", "aae_step", 256, {"torch": 0.8}),
    **{
        f"{model}_inference_{batch_size}": _case(
            model, f"{model}_inference", batch_size, {"torch": 1.0} if model == "aae" else {"torch": 1.0, "flax": 0.9}
        )
        for model in ("lstm", "mha", "vit", "aae")
        for batch_size in (1, 256)
    },
}


def _own_jit(model: str, kind: str, batch_size: int, goal: float, ours: str = "") -> Case:
    """Returns a case of the library in a user's own `jax.jit`. `ours` is our function if its name differs."""
    name = f"{model}_{kind}"
    functions = {"ours": f"{OWN_JIT}:{ours or name}", "torch": f"{TORCH}:{name}"}
    if model in REAL and find_spec("timm"):
        functions["timm"] = f"{TIMM}:{name}"
    return Case(model, batch_size, functions, dict.fromkeys([*functions][1:], goal))


REAL_CASES = {
    "lstm_own_jit": _own_jit("lstm", "step", 256, 1.0),
    "vit_own_jit": _own_jit("vit", "step", 128, 1.0),
    "lstm_own_jit_split": _own_jit("lstm", "step", 256, 1.0, "lstm_split_step"),
    "vit_own_jit_split": _own_jit("vit", "step", 128, 1.0, "vit_split_step"),
    "vit_s16_step": _own_jit("vit_s16", "step", 8, 1.0),
    "vit_ti16_step": _own_jit("vit_ti16", "step", 16, 1.0),
    "vit_ti16_step_split": _own_jit("vit_ti16", "step", 16, 1.0, "vit_ti16_split_step"),
    **{
        f"{model}_inference_{batch_size}": _own_jit(model, "inference", batch_size, 0.9)
        for model, batch_size in (("vit_s16", 1), ("vit_s16", 8), ("vit_b16", 4))
    },
}
"""Cases of `--sizes real`: the library as a user calls it, with published sizes of the ViT."""
