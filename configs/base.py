"""What every task is configured by; each task's own file adds its model and presets."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Data:
    """Labelled images."""

    name: str = "mnist_sample"
    """A TFDS image-classification dataset: mnist_sample is bundled, `python -m train.prepare` makes others."""
    dir: str | None = None
    """Folder of prepared datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    train_split: str = "train"
    """Split to train on, in TFDS notation such as train[:90%]."""
    test_split: str = "test"
    """Split to evaluate on."""
    image_size: tuple[int, int] | None = None
    """Height and width that images are resized to when decoded; None keeps theirs."""
    crop: float | None = None
    """Smallest part of a photograph's area that a random training crop takes, as 0.05; test images lose their border.
    None: whole images, stretched to the size."""
    memory_limit: int = 1024
    """MiB of decoded images up to which a split is decoded once and held in memory; larger ones are streamed."""
    workers: int = 2
    """Processes that decode a streamed split."""


@dataclass(frozen=True)
class Augment:
    """Random changes to training images, drawn anew each step on the device; 0, False or None is off."""

    shift: float = 0.0
    """Largest move along each side, in pixels; what leaves the frame is lost, what enters is 0."""
    rotate: float = 0.0
    """Largest turn, in degrees."""
    scale: float = 0.0
    """Largest relative change of size: 0.1 draws factors from 0.9 to 1.1."""
    shear: float = 0.0
    """Largest slant: horizontal move per vertical pixel."""
    flip: bool = False
    """Mirror half of the images left to right."""
    erase: float = 0.0
    """Largest side of a square that is blanked, as a part of the image side (random erasing)."""
    mixup: float = 0.0
    """α of the Beta distribution that neighbours in the batch, and their labels, are blended by."""
    rand_augment: int = 0
    """Random operations on each image, one after the other (RandAugment); meant for RGB."""
    magnitude: float = 0.5
    """Strength of RandAugment's operations, from 0 to 1."""


@dataclass(frozen=True)
class AdamW:
    """AdamW under a cosine schedule with linear warm-up."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup: float = 0.05
    """Part of the run over which the learning rate rises from 0."""
    final: float = 0.01
    """Learning rate at the end, as a part of the peak."""
    b1: float = 0.9
    """Decay of Adam's first moment."""
    b2: float = 0.999
    """Decay of Adam's second moment."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices; biases, norms, positions and tokens are not decayed."""
    clip: float | None = 1.0
    """Largest global norm of the gradients; None: no clipping."""


@dataclass(frozen=True)
class Optim(AdamW):
    """The optimizer of a task with one loss."""

    ema: float | None = None
    """Decay of an average of the parameters, which is then what is evaluated; None: no average."""
    accumulate: int = 1
    """Parts a batch is cut into, one after the other, to save memory; the gradient is the whole batch's."""


@dataclass(frozen=True)
class Run:
    """Length, seed, folder and rhythm of a run."""

    steps: int = 1000
    """Optimizer steps in the whole run."""
    batch_size: int = 128
    """Examples a step, over all devices."""
    seed: int = 0
    """Everything random follows from it and the step."""
    dir: str | None = None
    """Run folder; by default runs/TASK-PRESET and changes, as runs/vit-sample-depth6. The same command resumes."""
    log_every: int = 50
    """Steps between two train lines in metrics.jsonl."""
    eval_every: int = 500
    """Steps between two evaluations of the whole test split; the last step is always evaluated."""
    save_every: int = 500
    """Steps between two checkpoints; the last step is always saved."""
    steps_per_call: int = 1
    """Steps that the device takes in one go, on a training split that then lies whole in its memory. Above 1 it is
    faster where a step takes milliseconds; the results are the same. A go ends where an evaluation or a checkpoint is
    due, and metrics are looked at once a go."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradients are not finite: stop the run, or change nothing, count the step and go on."""
    on_save_error: Literal["stop", "retry"] = "stop"
    """A checkpoint that cannot be written, as on a full disk: stop the run, or go on and try it again at the next."""
    tensorboard: bool = False
    """Write all metrics, the pictures and the config for TensorBoard too, into the run folder's tensorboard/."""
    wandb: str | None = None
    """Project of Weights & Biases that is told the same; offline with WANDB_MODE=offline in the environment."""
    compilation_cache: Literal["auto", "on", "off"] = "auto"
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
    cpu_devices: int = 1
    """Devices that a CPU counts as, each with its part of the batch: faster for some models and sizes, slower for
    others. Fewer where it has fewer cores or the batch cannot be cut so; $JAX_NUM_CPU_DEVICES goes before."""
    cpu_micro_batch: int | None = 8
    """Examples, about, that each takes at a time where a CPU counts as several devices, to classify: so few stay in a
    core's cache. The gradient is the whole batch's; dropout is drawn for each such part by itself. None: all it has."""
    show: bool = False
    """Print where each parameter lies and the memory it takes there, and stop."""


@dataclass(frozen=True)
class Distributed:
    """Several processes that train together; a TPU pod, Slurm and Open MPI tell these by themselves."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the port a free one."""
    num_processes: int | None = None
    """How many processes there are, each started by the same command."""
    process_id: int | None = None
    """Which of them this is, from 0."""


@dataclass(frozen=True)
class Config:
    """What every task's Config begins with."""

    data: Data = field(default_factory=Data)
    run: Run = field(default_factory=Run)
    mesh: Mesh = field(default_factory=Mesh)
    distributed: Distributed = field(default_factory=Distributed)


@dataclass(frozen=True)
class ClassifierConfig(Config):
    """What the Config of every task that classifies images begins with."""

    mesh: Mesh = field(default_factory=lambda: Mesh(cpu_devices=8))  # up to a third less time, on two cores
    optim: Optim = field(default_factory=Optim)
    augment: Augment = field(default_factory=Augment)
    label_smoothing: float = 0.0
    """Part of each target that is spread evenly over all classes."""


# What the presets of several tasks share: augmentation by what the images show, and the optimizer.
DIGITS = Augment(shift=2, rotate=10, scale=0.1, shear=0.1)
CLOTHES = Augment(shift=1, flip=True, erase=0.4)
ADAMW = Optim(learning_rate=3e-3, ema=0.998)
