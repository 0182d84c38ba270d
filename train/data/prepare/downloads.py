"""The published datasets that are prepared by name, with TFDS's versions, features, orders and addresses."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from train.data.prepare.idx_and_cifar import Raw, check_labels, cifar, cifar_record, idx, names
from train.data.prepare.tfds_writer import Card, Dataset, Example, download, png
from train.data.published import PUBLISHED

_MOST_NAMES = 2**16  # Bytes of a file of label names.


@dataclass(frozen=True)
class Known:
    """A published dataset."""

    urls: tuple[str, ...]
    """Where it is fetched from."""
    archive: str
    """The archive's file name; "" where the files come one by one."""
    read: Callable[[Raw], Dataset]
    """Reads and checks its raw files, all at once; the examples are encoded as they are drawn."""


def raw_files(known: Known, place: Path | None, data_dir: Path) -> Raw:
    """The raw files in `place`, a folder or an archive; where it is None, they are downloaded.

    Raises:
        UserError: there is no such place.
        RunStopped: the download failed.
    """
    if place is None:
        files = download(known.urls, data_dir)
        return Raw(files[known.archive]) if known.archive else Raw(data_dir, files)
    return Raw(place / known.archive if (place / known.archive).is_file() else place)


def read_mnist(raw: Raw, name: str, about: str, homepage: str, labels: list[str], counts: Mapping[str, int]) -> Dataset:
    """MNIST and what has its form: idx files of 28 x 28 images and of their labels, `counts` by split.

    Raises:
        UserError: a file is missing or is not what it should be.
    """
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        count = counts[split]
        _, images = _idx(raw, f"{prefix}-images", (count, 28, 28))
        where, digits = _idx(raw, f"{prefix}-labels", (count,))
        check_labels(digits, where, 10)
        splits[split] = _examples(images[..., None], {"label": digits})
    features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(names=labels)}
    return Card(name, "3.0.1", features, about, homepage), splits


def read_cifar(
    raw: Raw,
    name: str,
    about: str,
    folder: str,
    files: Mapping[str, Mapping[str, int]],
    labels: Mapping[str, tuple[str, int]],
) -> Dataset:
    """CIFAR's binary version.

    Args:
        raw: its files, in `folder` or directly.
        name: the dataset's name.
        about: its description.
        folder: the archive's folder.
        files: by split, the files and how many images each has.
        labels: by feature, in the order of the labels in a record: the file of its names, and how many there are.

    Raises:
        UserError: a file is missing or is not what it should be.
    """
    features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(32, 32, 3))}
    for label, (file, classes) in labels.items():
        found = names(*raw.read(f"{folder}/{file}", file, most=_MOST_NAMES), classes)
        features[label] = tfds.features.ClassLabel(names=found)
    splits = {}
    for split, parts in files.items():
        images, columns = [], []
        for part, count in parts.items():
            where, content = raw.read(f"{folder}/{part}", part, most=count * cifar_record(len(labels)))
            pixels, table = cifar(where, content, count, len(labels))
            for column, (_, classes) in zip(table.T, labels.values(), strict=True):
                check_labels(column, where, classes)
            images.append(pixels)
            columns.append(table)
        table = np.concatenate(columns)
        ids = [f"{split}_{index:05d}" for index in range(len(table))]
        splits[split] = _examples(np.concatenate(images), {"id": ids, **dict(zip(labels, table.T, strict=True))})
    return Card(name, "3.0.2", features, about, "https://www.cs.toronto.edu/~kriz/cifar.html"), splits


def _examples(images: np.ndarray, columns: Mapping[str, np.ndarray | list[str]]) -> Iterator[Example]:
    for image, *values in zip(images, *columns.values(), strict=True):
        plain = (value if isinstance(value, str) else int(value) for value in values)
        yield {"image": png(image), **dict(zip(columns, plain, strict=True))}


def _idx(raw: Raw, stem: str, shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
    """Where an idx file is, and its values."""
    where, content = raw.read(*_idx_names(stem, len(shape)), most=4 + 4 * len(shape) + math.prod(shape))
    return where, idx(where, content, shape)


def _idx_names(stem: str, axes: int) -> list[str]:
    return [f"{stem}{dot}idx{axes}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]


def _idx_urls(base: str) -> tuple[str, ...]:
    stems = (("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1))
    return tuple(f"{base}/{stem}-idx{axes}-ubyte.gz" for stem, axes in stems)


KNOWN = {
    "mnist": Known(
        _idx_urls("https://storage.googleapis.com/cvdf-datasets/mnist"),
        "",
        partial(
            read_mnist,
            name="mnist",
            about="MNIST: handwritten digits, by LeCun, Cortes and Burges (CC BY-SA 3.0).",
            homepage="http://yann.lecun.com/exdb/mnist/",
            labels=PUBLISHED["mnist"].label_names,
            counts=PUBLISHED["mnist"].splits,
        ),
    ),
    "fashion_mnist": Known(
        _idx_urls("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
        "",
        partial(
            read_mnist,
            name="fashion_mnist",
            about="Fashion-MNIST: Zalando's article images in the form of MNIST, by Xiao, Rasul and Vollgraf (MIT).",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            labels=PUBLISHED["fashion_mnist"].label_names,
            counts=PUBLISHED["fashion_mnist"].splits,
        ),
    ),
    "cifar10": Known(
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "cifar-10-binary.tar.gz",
        partial(
            read_cifar,
            name="cifar10",
            about="CIFAR-10: colour images of 10 classes, by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton.",
            folder="cifar-10-batches-bin",
            files={"train": {f"data_batch_{k}.bin": 10000 for k in range(1, 6)}, "test": {"test_batch.bin": 10000}},
            labels={"label": ("batches.meta.txt", 10)},
        ),
    ),
    "cifar100": Known(
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        "cifar-100-binary.tar.gz",
        partial(
            read_cifar,
            name="cifar100",
            about="CIFAR-100: colour images of 100 classes in 20 groups, by Krizhevsky, Nair and Hinton.",
            folder="cifar-100-binary",
            files={"train": {"train.bin": 50000}, "test": {"test.bin": 10000}},
            labels={"coarse_label": ("coarse_label_names.txt", 20), "label": ("fine_label_names.txt", 100)},
        ),
    ),
}
"""By name."""
