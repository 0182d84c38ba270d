"""The benchmark cases: their implementations, the tolerances of the results, and the goals."""

from collections.abc import Mapping
from dataclasses import dataclass, field

OURS, TORCH, FLAX = "benchmarks.baselines.ours", "benchmarks.baselines.torch_steps", "benchmarks.baselines.flax_steps"

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
