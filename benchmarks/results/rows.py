"""The rows of docs/results.md and docs/aae.md: the command of each row, and the metric that the table shows."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """A metric of the last line of metrics.jsonl."""

    name: str
    title: str
    higher_is_better: bool = False
    in_percent: bool = False
    subtract_from_one: bool = False
    """Show 1 - metric: metrics.jsonl has the accuracy, the table shows the error."""
    digits: int = 2
    """Decimal places in the table."""


@dataclass(frozen=True)
class Row:
    """One row. `python -m benchmarks.results NAME` runs its command once for each seed."""

    name: str
    command: str
    """The part of the command after `python -m`, without the options of the seed and the run folder."""
    metric: Metric
    seeds: tuple[int, ...] = (0, 1, 2)
    goal: float | None = None
    """Our own goal, in the unit of the table."""
    paper: str = ""
    """The value in the paper, in the unit of the table."""


ACCURACY = Metric("accuracy", "test accuracy, %", higher_is_better=True, in_percent=True)
ERROR = Metric("accuracy", "test error, %", in_percent=True, subtract_from_one=True)
CLUSTERING = Metric("clustering_error", "clustering error, %", in_percent=True)
SQUARED = Metric("reconstruction", "squared error per pixel", digits=4)
PARZEN = Metric("parzen", "Parzen log-likelihood, nats", higher_is_better=True, digits=1)
MMD = Metric("mmd", "squared MMD of codes and prior", digits=5)

FIVE = (0, 1, 2, 3, 4)
NO_AUGMENTATION = "--augment.shift 0 --augment.rotate 0 --augment.scale 0 --augment.shear 0"
PLAIN_CATEGORIES = "--model.encoder.no-normalize-categories"
TWIN = "benchmarks.baselines.torch_training"

CLASSIFIERS = [
    Row("vit-tiny", "train.vit tiny", ACCURACY),
    Row("vit-sample", "train.vit sample", ACCURACY),
    Row("vit-mnist", "train.vit mnist", ACCURACY, (0,)),
    Row("vit-fashion", "train.vit fashion_mnist", ACCURACY, (0,), 93.5),
    Row("lstm-tiny", "train.lstm tiny", ACCURACY),
    Row("lstm-sample", "train.lstm sample", ACCURACY),
    Row("lstm-mnist", "train.lstm mnist", ACCURACY),
    Row("lstm-course", "train.lstm mnist --optim.ema None", ACCURACY),
    Row("lstm-best", "train.lstm best", ACCURACY, (0,)),
    Row("lstm-fashion", "train.lstm fashion_mnist", ACCURACY, (0,), 91.5),
    Row("mha-tiny", "train.mha tiny", ACCURACY),
    Row("mha-sample", "train.mha sample", ACCURACY),
    Row("mha-mnist", "train.mha mnist", ACCURACY, (0,)),
    Row("mha-best", "train.mha best", ACCURACY, (0,)),
    Row("mha-fashion", "train.mha fashion_mnist", ACCURACY, (0,), 91.5),
]

AUTOENCODERS = [
    Row("aae-tiny", "train.aae tiny", SQUARED),
    Row("aae-sample", "train.aae sample", SQUARED, goal=0.12),
    Row("aae-mnist", "train.aae mnist", SQUARED, (0,)),
    Row("aae-paper", "train.aae paper", PARZEN, (0,), 330, "340 ± 2"),
    Row("aae-semi-100", "train.aae semi_100", ERROR, FIVE, 1.9, "1.90 ± 0.10"),
    Row("aae-semi-1000", "train.aae semi_1000", ERROR, goal=1.6, paper="1.60 ± 0.08"),
    Row("aae-clusters-16", "train.aae clusters_16", CLUSTERING, paper="9.55 ± 2.05"),
    Row("aae-clusters-30", "train.aae clusters_30", CLUSTERING, FIVE, 8, "4.10 ± 1.13"),
    Row("aae-supervised", "train.aae supervised", SQUARED),
    Row("aae-reduction", "train.aae reduction", ERROR),
    *(
        Row(f"aae-{prior}{labels}".replace("_", "-"), f"train.aae {prior}{labels}", MMD)
        for labels in ("", "_labels")
        for prior in ("gaussian", "mixture", "swiss_roll", "uniform")
    ),
]


def _ablated(name: str, options: str) -> Row:
    return Row(f"semi-{name}", f"train.aae semi_100 {options}", ERROR)


# semi_100 without one technique each; "all of them" still has our networks and optimizers.
ABLATION = {
    "nothing": next(row for row in AUTOENCODERS if row.name == "aae-semi-100"),
    "batch norm of the categories": _ablated("no-batch-norm", PLAIN_CATEGORIES),
    "augmentation": _ablated("no-augmentation", NO_AUGMENTATION),
    "consistency": _ablated("no-consistency", "--consistency 0"),
    "noise on the categories": _ablated("no-noise", "--category-noise 0"),
    "average of the parameters": _ablated("no-average", "--optim.ema None"),
    "all of them": _ablated(
        "none", f"{PLAIN_CATEGORIES} {NO_AUGMENTATION} --consistency 0 --category-noise 0 --optim.ema None"
    ),
}

COMPARED = [
    row
    for row in [*CLASSIFIERS, *AUTOENCODERS]
    if row.name in ("vit-sample", "lstm-sample", "lstm-course", "mha-sample", "aae-sample")
]
# torch initializes attention differently, so these programs start from our weights.
IN_TORCH = [
    replace(
        row,
        name=f"torch-{row.name}",
        command=row.command.replace("train.", f"{TWIN} ")
        + (" --weights ours" if row.name in ("vit-sample", "mha-sample") else ""),
        goal=None,
    )
    for row in COMPARED
]

ROWS = {row.name: row for row in [*CLASSIFIERS, *AUTOENCODERS, *ABLATION.values(), *IN_TORCH]}
