"""What is compared: each case with its contenders, what they must agree on, and the ratios that we are out for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OURS, TORCH, FLAX = "benchmarks.baselines.ours", "benchmarks.baselines.torch_steps", "benchmarks.baselines.flax_steps"

# Largest difference, relative to the largest value of the array. After the first update Adam divides gradients by
# their size, so what is rounding in a small one is not in its parameter; Flax has one bias where torch has two. The
# prior's draws are each library's own.
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
    """One computation, and who does it."""

    model: str
    """What `benchmarks.inputs` builds."""
    batch_size: int
    contenders: Mapping[str, str]
    """MODULE:FUNCTION by name."""
    goals: Mapping[str, float] = field(default_factory=dict)
    """Our time divided by that of a contender, or by the arithmetic floor, is to be at most this."""


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
