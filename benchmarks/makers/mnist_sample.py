"""Makes the bundled mnist_sample: equally many MNIST images of each class, drawn with a fixed seed.

    python -m train.prepare mnist
    python -m benchmarks.makers.mnist_sample [--data-dir DIR] [--out DIR]

The default folder is train/data, where the sample is bundled. The same MNIST gives the same examples each time.
"""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import tyro

from configs.base import Data
from train.data import locate, open_source
from train.data.prepare.tfds_writer import DatasetMetadata, Example, encode_png, write
from train.process.errors import UserError

_PER_CLASS = {"train": 1000, "test": 200}
_SEED = 0
DESCRIPTION = (
    "10,000 training and 2,000 test images of MNIST, 1,000 and 200 of each digit, drawn by "
    "benchmarks/makers/mnist_sample.py from MNIST's own training and test sets. MNIST is by Yann LeCun, Corinna Cortes "
    "and Christopher J.C. Burges and is licensed CC BY-SA 3.0, as is this sample."
)


def choose_examples(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Returns sorted indices, int [classes * per_class], of `per_class` examples of each class of labels, int [N]."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def write_sample(out: Path, data_dir: str | None = None) -> Path:
    """Writes the sample under `out` from the MNIST prepared in `data_dir`, and returns its folder.

    Raises:
        UserError: if MNIST is not prepared in `data_dir`, or if `out` already has the sample.
    """
    if (out / "mnist_sample").exists():
        raise UserError(f"{out / 'mnist_sample'} already exists. Remove it, or pass another folder with --out.")
    splits: dict[str, list[Example]] = {}
    for split, per_class in _PER_CLASS.items():
        source = open_source(Data(name="mnist", dir=data_dir), split)
        whole = source.gather(np.arange(len(source)))
        sample = source.gather(choose_examples(whole["label"], per_class, _SEED))
        pairs = zip(sample["image"], sample["label"], strict=True)
        splits[split] = [{"image": encode_png(image, optimize=True), "label": int(label)} for image, label in pairs]
    features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
    homepage = "http://yann.lecun.com/exdb/mnist/"
    return write(DatasetMetadata("mnist_sample", "1.0.0", features, DESCRIPTION, homepage), splits, out)


def main(data_dir: str | None = None, out: Path = Path(locate.__file__).parent) -> None:
    """Makes mnist_sample from MNIST.

    Args:
        data_dir: folder of prepared datasets. The default is $TFDS_DATA_DIR, or ~/tensorflow_datasets without it.
        out: folder in which mnist_sample is created.
    """
    print(f"wrote {write_sample(out, data_dir)}")


if __name__ == "__main__":
    tyro.cli(main)
