"""The options that all tasks share; each task's own file adds its model and presets."""

from dataclasses import dataclass, field
from typing import Annotated, Generic, Literal, TypeVar

from configs.options import Count, Decay, Fraction, Natural, NonNegative, Rule

COMMON, CHANGEABLE, PER_PROCESS = Rule.COMMON, Rule.CHANGEABLE_ON_RESUME, Rule.PER_PROCESS


@dataclass(frozen=True)
class Data:
    """Labelled images."""

    name: Annotated[str, COMMON] = "mnist_sample"
    """A TFDS image-classification dataset: mnist_sample is bundled, `python -m train.prepare` makes others."""
    dir: Annotated[str | None, COMMON, CHANGEABLE, PER_PROCESS] = None
    """Folder of prepared datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    train_split: str = "train"
    """Split to train on, in TFDS notation such as train[:90%]."""
    test_split: str = "test"
    """Split to evaluate on."""
    image_size: tuple[int, int] | None = None
    """Height and width that images are resized to when decoded; None keeps theirs."""
    crop: float | None = None
    """Smallest part of a photograph's area that a random training crop takes, as 0.05; test images are cropped to their
    centre. None: whole images, stretched to the size."""
    memory_limit: Annotated[Natural, CHANGEABLE, PER_PROCESS] = 1024
    """A split up to this size in MiB is decoded once and kept in memory; a larger one is streamed."""
    workers: Annotated[Natural, CHANGEABLE, PER_PROCESS] = 2
    """Processes that decode a streamed split."""


@dataclass(frozen=True)
class Augment:
    """Random changes to training images, drawn anew each step on the device; 0, False or None is off."""

    shift: NonNegative = 0.0
    """Largest move along each side, in pixels; what leaves the frame is lost, what enters is 0."""
    rotate: NonNegative = 0.0
    """Largest turn, in degrees."""
    scale: NonNegative = 0.0
    """Largest relative change of size: 0.1 draws factors from 0.9 to 1.1."""
    shear: NonNegative = 0.0
    """Largest slant: horizontal move per vertical pixel."""
    flip: bool = False
    """Mirror half of the images left to right."""
    erase: Fraction = 0.0
    """Largest side of a square that is blanked, as a part of the image side (random erasing)."""
    mixup: NonNegative = 0.0
    """Mixup: blend each image and label with its neighbour; this is α of the Beta distribution of the weight."""
    rand_augment: Natural = 0
    """Random operations on each image, one after the other (RandAugment); meant for RGB."""
    magnitude: Fraction = 0.5
    """Strength of RandAugment's operations, from 0 to 1."""


@dataclass(frozen=True)
class AdamW:
    """AdamW under a cosine schedule with linear warm-up."""

    learning_rate: Annotated[NonNegative, COMMON] = 1e-3
    """Peak learning rate."""
    warmup_fraction: Decay = 0.05
    """Fraction of the run over which the learning rate rises from 0."""
    final_lr_fraction: NonNegative = 0.01
    """Learning rate at the end, as a fraction of the peak."""
    b1: Decay = 0.9
    """Decay of Adam's first moment."""
    b2: Decay = 0.999
    """Decay of Adam's second moment."""
    weight_decay: NonNegative = 0.05
    """Decoupled decay of matrices; biases, norms, positions and tokens are not decayed."""
    clip: NonNegative | None = 1.0
    """Largest global norm of the gradients; None: no clipping."""


@dataclass(frozen=True)
class Optim(AdamW):
    """The optimizer of a task with one loss."""

    ema: Annotated[Decay | None, COMMON] = None
    """Decay of an average of the parameters, which is then what is evaluated; None: no average."""
    accumulate: Count = 1
    """Parts that a batch is split into to save memory; their gradients are averaged, so the step is the same."""


@dataclass(frozen=True)
class RunConfig:
    """Length, seed, folder and rhythm of a run."""

    steps: Annotated[Count, COMMON] = 1000
    """Optimizer steps in the whole run."""
    batch_size: Annotated[Count, COMMON] = 128
    """Examples a step, over all devices."""
    seed: Annotated[int, COMMON] = 0
    """Everything random follows from it and the step."""
    dir: Annotated[str | None, COMMON, CHANGEABLE] = None
    """Run folder; default: runs/TASK-PRESET plus the changed options. The same command resumes."""
    log_every: Count = 50
    """Steps between two train lines in metrics.jsonl."""
    eval_every: Count = 500
    """Steps between two evaluations of the whole test split; the last step is always evaluated."""
    save_every: Count = 500
    """Steps between two checkpoints; the last step is always saved."""
    steps_per_call: Annotated[Count, CHANGEABLE] = 1
    """Training steps per device call; above 1 the training split must fit in device memory. Faster where a step takes
    milliseconds; results are the same, except for the last bit of convolutions. A call ends early at an evaluation
    or a checkpoint. Metrics are read once per call."""
    on_nonfinite: Annotated[Literal["stop", "skip"], CHANGEABLE] = "stop"
    """If a loss or gradient is NaN or infinite: stop the run, or skip the update, count the step and continue."""
    on_save_error: Annotated[Literal["stop", "retry"], CHANGEABLE] = "stop"
    """If a checkpoint cannot be written, as on a full disk: stop the run, or continue and retry at the next one."""
    tensorboard: Annotated[bool, COMMON, CHANGEABLE] = False
    """Also write metrics, pictures and config for TensorBoard, into the run folder's tensorboard/."""
    wandb: Annotated[str | None, COMMON, CHANGEABLE] = None
    """Log the same data to this Weights & Biases project; offline with WANDB_MODE=offline in the environment."""
    compilation_cache: Annotated[Literal["auto", "on", "off"], CHANGEABLE] = "auto"
    """Keep compiled programs for later runs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/w2jax; auto: on accelerators."""


@dataclass(frozen=True)
class Mesh:
    """Devices by axis; -1 takes the devices that are left."""

    data: int = -1
    """Copies of the model, each with its part of the batch."""
    fsdp: int = 1
    """Parts that large parameters and their optimizer state are cut into; the batch is cut too."""
    tensor: int = 1
    """Parts that attention heads and hidden widths are cut into."""
    cpu_devices: Count = 1
    """JAX devices to split the CPU into, each with its part of the batch: faster for some models and sizes, slower for
    others. Fewer if there are fewer cores, or if the number does not divide the batch. $JAX_NUM_CPU_DEVICES
    overrides this."""
    cpu_micro_batch: Count | Literal["auto"] | None = "auto"
    """Approximate micro-batch per CPU device when training classifiers on several; small ones stay in the core's cache.
    auto: 8 for a model without dropout or drop path, else off. With dropout, a number changes the random draws.
    None: off."""
    show: bool = False
    """Print how each parameter is sharded and the memory it takes per device, and stop."""


@dataclass(frozen=True)
class Distributed:
    """Several processes that train together; a TPU pod, Slurm and Open MPI tell these by themselves."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the port a free one."""
    num_processes: int | None = None
    """How many processes there are, each started by the same command."""
    process_id: Annotated[int | None, PER_PROCESS] = None
    """Which of them this is, from 0."""


@dataclass(frozen=True)
class Config:
    """The options of every task."""

    data: Data = field(default_factory=Data)
    run: RunConfig = field(default_factory=RunConfig)
    mesh: Annotated[Mesh, CHANGEABLE] = field(default_factory=Mesh)
    distributed: Annotated[Distributed, CHANGEABLE] = field(default_factory=Distributed)


@dataclass(frozen=True)
class ClassifierConfig(Config):
    """The options of every task that classifies images."""

    mesh: Annotated[Mesh, CHANGEABLE] = field(
        default_factory=lambda: Mesh(cpu_devices=8)
    )  # up to a third less time, on two cores
    optim: Optim = field(default_factory=Optim)
    augment: Augment = field(default_factory=Augment)
    label_smoothing: Fraction = 0.0
    """Part of each target that is spread evenly over all classes."""


AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True)
class Preset(Generic[AnyConfig]):
    """A config with a name of its own, as `python -m train.TASK PRESET` takes it."""

    config: AnyConfig
    about: str
    """For the short help: what it is; and how long it takes on two CPU cores, where that was measured."""


# Shared by the presets of several tasks: augmentation by what the images show, and the optimizer.
DIGITS = Augment(shift=2, rotate=10, scale=0.1, shear=0.1)
CLOTHES = Augment(shift=1, flip=True, erase=0.4)
ADAMW = Optim(learning_rate=3e-3, ema=0.998)
