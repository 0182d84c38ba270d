"""The options that all tasks share. Each task's own file adds a model and presets."""

from dataclasses import dataclass, field
from typing import Annotated, Generic, Literal, TypeVar

from configs.options import Count, Decay, Fraction, Natural, NonNegative, Positive, Range, Rule, Seed
from w2jax.image_spec import Interpolation

COMMON, CHANGEABLE, PER_PROCESS = Rule.COMMON, Rule.CHANGEABLE_ON_RESUME, Rule.PER_PROCESS


@dataclass(frozen=True)
class Data:
    """Options of the dataset of labeled images."""

    name: Annotated[str, COMMON] = "mnist_sample"
    """Dataset: mnist_sample, or one from train.prepare. Any other dataset in TFDS format works too."""
    dir: Annotated[str | None, COMMON, CHANGEABLE, PER_PROCESS] = None
    """Folder of datasets; default: ~/tensorflow_datasets. $TFDS_DATA_DIR replaces this default."""
    train_split: str = "train"
    """Training split, in TFDS notation. Part of a split: train[:90%]."""
    test_split: str = "test"
    """Split for evaluation, in TFDS notation."""
    image_size: Annotated[tuple[int, int] | None, COMMON] = None
    """Height and width in pixels to resize all images to. None: keep the size of the dataset."""
    crop: float | None = None
    """Smallest area of a random training crop, as a fraction of the image's area, such as 0.05.
    Test images are center-cropped. Set --data.image-size too.
    None: no crops, and images are stretched to --data.image-size."""
    resize: Count | tuple[Count, Count] | None = None
    """Length in pixels that the shorter side is resized to, or a height and width to stretch images to.
    Then --data.image-size is cut from the center. This replaces stretching and center crops, but not random crops.
    None: as --data.crop says."""
    interpolation: Interpolation | None = None
    """Interpolation for all resizing. None: bilinear."""
    memory_limit: Annotated[Natural, CHANGEABLE, PER_PROCESS] = 1024
    """Size of the largest split that is kept in memory, in MiB of decoded images. Larger ones are streamed from disk.
    The limit also applies to the features of a linear probe (--optim.freeze)."""
    workers: Annotated[int, Range(0, 256), CHANGEABLE, PER_PROCESS] = 2
    """Number of processes that decode a streamed split. 0: decode in the training process."""


@dataclass(frozen=True)
class Augment:
    """Random augmentation of the training images, drawn anew in each step. 0 or False turns a change off."""

    shift: NonNegative = 0.0
    """Largest vertical and largest horizontal shift, in pixels. Pixels from outside the image are 0."""
    rotate: NonNegative = 0.0
    """Largest rotation in degrees, in either direction."""
    scale: Decay = 0.0
    """Largest relative change of the image's size. 0.1 draws scale factors from 0.9 to 1.1."""
    shear: NonNegative = 0.0
    """Largest shear, in pixels of horizontal shift per row."""
    flip: bool = False
    """Mirror each image left to right with probability 0.5."""
    erase: Fraction = 0.0
    """Random erasing: largest side of the square that is set to 0, as a fraction of the image's shorter side."""
    mixup: NonNegative = 0.0
    """Mixup: blend each image and label with the next ones in the batch, with a weight from Beta(α, α); this is α."""
    rand_augment: Natural = 0
    """RandAugment: number of random operations applied to each image. They are meant for RGB images."""
    magnitude: Fraction = 0.5
    """RandAugment: strength of the operations, from 0 to 1."""


@dataclass(frozen=True)
class AdamW:
    """AdamW with a cosine schedule and linear warm-up."""

    learning_rate: Annotated[NonNegative, COMMON] = 1e-3
    """Peak learning rate."""
    warmup_fraction: Decay = 0.05
    """Fraction of all steps in which the learning rate rises linearly from 0 to its peak."""
    final_lr_fraction: NonNegative = 0.01
    """Learning rate at the last step, as a fraction of the peak learning rate."""
    b1: Decay = 0.9
    """Decay rate of Adam's first moment (β₁)."""
    b2: Decay = 0.999
    """Decay rate of Adam's second moment (β₂)."""
    weight_decay: NonNegative = 0.05
    """Decoupled weight decay. It applies only to weight matrices (not biases, norms, positions, class tokens)."""
    clip: Positive | None = 1.0
    """Clip gradients to this global norm. None: no clipping."""


@dataclass(frozen=True)
class Optim(AdamW):
    """AdamW with a cosine schedule and linear warm-up, for a task with one loss."""

    ema: Annotated[Decay | None, COMMON] = None
    """Evaluate an exponential moving average of the parameters with this decay rate; None: no average."""
    accumulate: Count = 1
    """Gradient accumulation: number of parts of each batch, computed one after the other to save memory.
    The gradients are averaged, so the result of the step is the same."""
    layer_decay: Annotated[float, Range(0, 1, includes_low=False)] = 1.0
    """Layer-wise learning rates, for fine-tuning: block i (from 0) of n blocks has layer-decay ** (n - i) times
    the learning rate. The embeddings have layer-decay ** (n + 1) times the rate.
    1: the same learning rate everywhere."""
    head_lr_factor: Positive = 1.0
    """Factor of the learning rate of the head, the last layer. A new head may learn faster than pretrained layers."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained: patterns of their paths, such as patch_embed, encoder/block_0 or '*/norm?/*'.
    A pattern also freezes everything below the path that it matches. all-but-head: train only the head (linear probe).
    If there is no augmentation, random crop, dropout and drop path, and the outputs fit in --data.memory-limit, the
    frozen layers run only once for each image. The preset probe of train.vit is set up so."""


@dataclass(frozen=True)
class RunConfig:
    """Length, seed, folder, logging and checkpoints of a run."""

    steps: Annotated[Count, COMMON] = 1000
    """Number of optimizer steps in the run."""
    epochs: Annotated[Positive | None, COMMON] = None
    """Length of the run in epochs, instead of --run.steps.
    An epoch is one pass over the training split: steps = epochs × training images / batch size, rounded up.
    None: --run.steps sets the length."""
    extend: Annotated[bool, CHANGEABLE] = False
    """Continue the run in --run.dir up to a higher number of --run.steps.
    The learning rate jumps to the schedule of the new number of steps."""
    batch_size: Annotated[Count, COMMON] = 128
    """Examples per step, summed over all devices."""
    seed: Annotated[Seed, COMMON] = 0
    """Random seed: weights, batches, dropout, augmentation."""
    dir: Annotated[str | None, COMMON, CHANGEABLE] = None
    """Run folder; default: runs/TASK-PRESET plus changes. Run the same command again to resume."""
    log_every: Annotated[Count, CHANGEABLE] = 50
    """Number of steps between two training rows in metrics.jsonl."""
    eval_every: Annotated[Count, CHANGEABLE] = 500
    """Number of steps between two evaluations on the test split. The last step is always evaluated."""
    save_every: Annotated[Count, CHANGEABLE] = 500
    """Number of steps between two checkpoints. The last step is always saved."""
    patience: Annotated[Count | None, CHANGEABLE] = None
    """Early stopping: end the run after this number of evaluations in a row that do not improve the test metric.
    The metric is the one that decides the best checkpoint. Each evaluation then also saves a checkpoint.
    Set --run.eval-every so that there are many more evaluations. To keep the test images for the final test, evaluate
    on a part of the training split, for example --data.train-split train[:90%] --data.test-split train[90%:].
    None: the run ends at its last step."""
    steps_per_call: Annotated[Count | Literal["auto"], CHANGEABLE] = "auto"
    """Training steps per device call.
    Values above 1 are faster if a step takes only milliseconds, but the training split must fit in device memory.
    auto: at most 50 on a GPU or TPU, if the model has at most 5 million parameters and the training split is in memory
    and takes at most a tenth of the device's; otherwise 1.
    The results are the same, except for rounding in convolutions and, with jax 0.12, in the autoencoder.
    A call ends early at an evaluation or a checkpoint. Metrics are read once per call."""
    on_nonfinite: Annotated[Literal["stop", "skip"], CHANGEABLE] = "stop"
    """What to do if a loss or gradient is NaN or infinite.
    stop: stop the run; skip: leave the parameters unchanged and continue. The metrics count the skipped steps."""
    max_skipped_steps: Annotated[Count | None, CHANGEABLE] = 100
    """With --run.on-nonfinite skip: number of skipped steps in a row after which the run stops. None: no limit."""
    on_save_error: Annotated[Literal["stop", "retry"], CHANGEABLE] = "stop"
    """What to do if a checkpoint cannot be written, for example on a full disk.
    stop: stop the run; retry: continue, and try again at the next checkpoint."""
    tensorboard: Annotated[bool, COMMON, CHANGEABLE] = False
    """Also log to TensorBoard files in the run folder. They have metrics, pictures and config."""
    wandb: Annotated[str | None, COMMON, CHANGEABLE] = None
    """Also log to this project of Weights & Biases. It gets metrics, pictures and config.
    To log without a network, set WANDB_MODE=offline in the environment."""
    compilation_cache: Annotated[Literal["auto", "on", "off"], CHANGEABLE] = "auto"
    """Cache compiled programs for later runs, in $JAX_COMPILATION_CACHE_DIR or ~/.cache/w2jax.
    auto: only on GPUs and TPUs."""


@dataclass(frozen=True)
class Mesh:
    """Number of devices along each mesh axis. -1 on one axis: all devices that the other axes leave."""

    data: int = -1
    """Devices on the data axis (data parallelism): the batch is split, the model is replicated."""
    fsdp: int = 1
    """Devices on the fsdp axis: large parameters and their optimizer state are sharded, and the batch is split."""
    tensor: int = 1
    """Devices on the tensor axis (tensor parallelism): attention heads and hidden widths are sharded."""
    cpu_devices: Count = 1
    """Number of JAX devices to split the CPU into. Each device computes a part of the batch.
    Several devices are faster for some models and sizes, and slower for others.
    The number is reduced if there are fewer cores or it does not divide the batch size.
    $JAX_NUM_CPU_DEVICES overrides this option."""
    cpu_micro_batch: Count | Literal["auto"] | None = "auto"
    """Approximate micro-batch size per CPU device, for classifiers on several CPU devices.
    A small micro-batch fits in the core's cache. If you set a number, a model with dropout draws other random numbers.
    auto: 16 for a model without dropout or drop path, otherwise None. None: no micro-batches."""
    show: bool = False
    """Print the sharding and the memory per device of each parameter, and exit."""


@dataclass(frozen=True)
class Distributed:
    """Training with several processes. On TPU pods, Slurm and Open MPI these options are detected automatically."""

    coordinator: str | None = None
    """Address of process 0 as HOST:PORT. The port must be free."""
    num_processes: int | None = None
    """Number of processes. Start all of them with the same options, except for the process id."""
    process_id: Annotated[int | None, PER_PROCESS] = None
    """Number of this process, counted from 0."""


@dataclass(frozen=True)
class Config:
    """The options that every task has."""

    data: Data = field(default_factory=Data)
    run: RunConfig = field(default_factory=RunConfig)
    mesh: Annotated[Mesh, CHANGEABLE] = field(default_factory=Mesh)
    distributed: Annotated[Distributed, CHANGEABLE] = field(default_factory=Distributed)


@dataclass(frozen=True)
class ClassifierConfig(Config):
    """The options that every classifier of images has."""

    # Eight CPU devices take up to a third less time on two cores. The blank line keeps this out of the help.

    mesh: Annotated[Mesh, CHANGEABLE] = field(default_factory=lambda: Mesh(cpu_devices=8))
    optim: Optim = field(default_factory=Optim)
    augment: Augment = field(default_factory=Augment)
    label_smoothing: Fraction = 0.0
    """Label smoothing: fraction of each target that is spread evenly over all classes."""
    class_weights: Literal["balanced"] | None = None
    """Weights of the classes in the training loss, for classes of unequal sizes. balanced: N / (K · n) for a class with
    n of the N training images and K classes. As in torch, the weighted sum is divided by the sum of the weights.
    A streamed training split is read once to count its labels. None: all classes have the same weight."""


AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True)
class Preset(Generic[AnyConfig]):
    """A named config: `python -m train.TASK NAME` trains it."""

    config: AnyConfig
    about: str
    """Description for the short help: purpose or test accuracy, and the time on two CPU cores if it was measured."""


# Shared by the presets of several tasks: augmentation for digits and for clothes, and an optimizer.
DIGITS = Augment(shift=2, rotate=10, scale=0.1, shear=0.1)
CLOTHES = Augment(shift=1, flip=True, erase=0.4)
ADAMW = Optim(learning_rate=3e-3, ema=0.998)
