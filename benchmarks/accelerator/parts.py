"""The parts: their modules, the wheels that they need, their shares of the time, and their processes."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.accelerator.record import Setting

WHEELS = {
    "torch": "torch",
    "tyro": "tyro",
    "grain": "grain",
    "array_record": "array-record",
    "tensorflow_datasets": "tensorflow-datasets",
    "orbax": "orbax-checkpoint",
    "optax": "optax",
    "PIL": "pillow",
    "flatbuffers": "flatbuffers",
    "flax": "flax",
    "einops": "einops",
    "jaxtyping": "jaxtyping",
    "rich": "rich",
    "importlib_resources": "importlib_resources",  # of tensorflow-datasets
}
"""The optional wheels, by the name that Python imports."""

MODES = ("train", "inference")
MODELS = ("flax", "einops", "jaxtyping")
STEP = (*MODELS, "optax", "PIL", "rich")  # to build a train step
DATA = ("grain", "array_record", "tensorflow_datasets", "importlib_resources")
PROGRAM = (*STEP, *DATA, "tyro", "orbax")  # to run a training program


@dataclass(frozen=True)
class Part:
    """One part of the benchmark."""

    function: str
    """MODULE:FUNCTION that measures its rows: (job, recorder, setting)."""
    about: str
    share: float
    """Its share of the time on a GPU or TPU."""
    cpu_share: float
    needs: Sequence[str] = ()
    """The wheels that it needs."""


PARTS: Mapping[str, Part] = {
    "values": Part("values:run", "values and gradients of the models, against torch on the CPU", 1.5, 1),
    "attention": Part(
        "attention:run",
        "implementations of attention, against the formula on the CPU (cuDNN is untested on hardware)",
        2,
        1.2,
    ),
    "resume": Part("programs:resume", "killed and resumed programs end in the same bits", 5, 1.5, PROGRAM),
    "steps_per_call": Part(
        "programs:steps_per_call", "speed with several steps in a call of the device", 2, 2, PROGRAM
    ),
    "steps": Part("steps:run", "time, FLOP/s and memory of train and inference steps", 6, 2, STEP),
    "export": Part("programs:export", "an exported model on the device", 1, 1.2, (*PROGRAM, "flatbuffers")),
    "dryrun": Part("programs:dryrun", "what the dry run predicts, and what was measured", 1, 2, PROGRAM),
}


def missing(wheels: Sequence[str]) -> list[str]:
    """Returns the names of the wheels that are not installed."""
    return [WHEELS[name] for name in wheels if importlib.util.find_spec(name) is None]


def jobs(part: str, setting: Setting) -> list[str]:
    """Returns the names of a part's processes. They run one after the other."""
    if part != "steps":
        return [part]
    dtypes = ("bfloat16", "float32")
    if setting.small:
        return [
            *(f"jax {model} {dtype} train inference" for model in ("lstm", "vit_tiny") for dtype in dtypes),
            "torch",
        ]
    libraries = ("jax", "torch") if setting.torch_cuda else ("jax",)
    # The peak memory counts from the start of a process, so each series has its own.
    series = [(model, dtype) for dtype in dtypes for model in ("vit_b16", "lstm", "vit_s16")]
    found = [f"{library} {name} {dtype} {mode}" for name, dtype in series for library in libraries for mode in MODES]
    return found if setting.torch_cuda else [*found, "torch"]
