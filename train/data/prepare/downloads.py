"""Published datasets that can be prepared by name. Versions, features, label order and URLs are the same as in TFDS."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from train.data.dataset_info import PUBLISHED
from train.data.prepare.idx_and_cifar import (
    RawFiles,
    check_labels,
    cifar_record_bytes,
    parse_cifar,
    parse_idx,
    parse_label_names,
)
from train.data.prepare.tfds_writer import Dataset, DatasetMetadata, Example, download, encode_png

_MAX_NAMES_BYTES = 2**16


@dataclass(frozen=True)
class Download:
    """The URLs of a published dataset, and the function that reads its files."""

    urls: tuple[str, ...]
    archive: str
    """File name of the archive; "" if the files are not in an archive."""
    read: Callable[[RawFiles], Dataset]
    """Function that reads and checks all raw files. It encodes each example when the example is iterated over."""


def open_raw_files(source: Download, place: Path | None, data_dir: Path) -> RawFiles:
    """Opens the raw files in `place`, a folder or an archive. None downloads them.

    Raises:
        UserError: `place` does not exist.
        RunStopped: the download failed.
    """
    if place is None:
        files = download(source.urls, data_dir)
        return RawFiles(files[source.archive]) if source.archive else RawFiles(data_dir, files)
    return RawFiles(place / source.archive if (place / source.archive).is_file() else place)


def read_mnist(
    raw: RawFiles, name: str, description: str, homepage: str, labels: list[str], counts: Mapping[str, int]
) -> Dataset:
    """Reads MNIST, or a dataset in its format: idx files of 28 x 28 images and their labels.

    `counts` is the number of images in each split.

    Raises:
        UserError: a file is missing or damaged.
    """
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        count = counts[split]
        _, images = _idx(raw, f"{prefix}-images", (count, 28, 28))
        path, labels_of_split = _idx(raw, f"{prefix}-labels", (count,))
        check_labels(labels_of_split, path, 10)
        splits[split] = _examples(images[..., None], {"label": labels_of_split})
    features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(names=labels)}
    return DatasetMetadata(name, "3.0.1", features, description, homepage), splits


def read_cifar(
    raw: RawFiles,
    name: str,
    description: str,
    folder: str,
    files: Mapping[str, Mapping[str, int]],
    labels: Mapping[str, tuple[str, int]],
) -> Dataset:
    """Reads the binary version of CIFAR-10 or CIFAR-100.

    Args:
        raw: the raw files, in `folder` or at the top level.
        name: the dataset's name.
        description: the dataset's description.
        folder: the folder inside the archive.
        files: for each split, the file names and the number of images in each file.
        labels: for each label feature, the file of its label names and the number of classes. The order is the order
            of the labels in a record.

    Raises:
        UserError: a file is missing or damaged.
    """
    features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(32, 32, 3))}
    for label, (file, classes) in labels.items():
        names = parse_label_names(*raw.read(f"{folder}/{file}", file, max_bytes=_MAX_NAMES_BYTES), classes)
        features[label] = tfds.features.ClassLabel(names=names)
    splits = {}
    for split, parts in files.items():
        images, columns = [], []
        for part, count in parts.items():
            max_bytes = count * cifar_record_bytes(len(labels))
            path, content = raw.read(f"{folder}/{part}", part, max_bytes=max_bytes)
            pixels, table = parse_cifar(path, content, count, len(labels))
            for column, (_, classes) in zip(table.T, labels.values(), strict=True):
                check_labels(column, path, classes)
            images.append(pixels)
            columns.append(table)
        table = np.concatenate(columns)
        ids = [f"{split}_{index:05d}" for index in range(len(table))]
        splits[split] = _examples(np.concatenate(images), {"id": ids, **dict(zip(labels, table.T, strict=True))})
    return DatasetMetadata(name, "3.0.2", features, description, "https://www.cs.toronto.edu/~kriz/cifar.html"), splits


def _examples(images: np.ndarray, columns: Mapping[str, np.ndarray | list[str]]) -> Iterator[Example]:
    for image, *values in zip(images, *columns.values(), strict=True):
        plain = (value if isinstance(value, str) else int(value) for value in values)
        yield {"image": encode_png(image), **dict(zip(columns, plain, strict=True))}


def _idx(raw: RawFiles, stem: str, shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
    """Returns the path and the values of an idx file."""
    path, content = raw.read(*_idx_names(stem, len(shape)), max_bytes=4 + 4 * len(shape) + math.prod(shape))
    return path, parse_idx(path, content, shape)


def _idx_names(stem: str, axes: int) -> list[str]:
    return [f"{stem}{dot}idx{axes}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]


def _idx_urls(base: str) -> tuple[str, ...]:
    stems = (("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1))
    return tuple(f"{base}/{stem}-idx{axes}-ubyte.gz" for stem, axes in stems)


DOWNLOADS = {
    "mnist": Download(
        _idx_urls("https://storage.googleapis.com/cvdf-datasets/mnist"),
        "",
        partial(
            read_mnist,
            name="mnist",
            description="MNIST: handwritten digits, by LeCun, Cortes and Burges (CC BY-SA 3.0).",
            homepage="http://yann.lecun.com/exdb/mnist/",
            labels=PUBLISHED["mnist"].label_names,
            counts=PUBLISHED["mnist"].splits,
        ),
    ),
    "fashion_mnist": Download(
        _idx_urls("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
        "",
        partial(
            read_mnist,
            name="fashion_mnist",
            description="Fashion-MNIST: Zalando's article images in MNIST's format, by Xiao, Rasul and Vollgraf (MIT).",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            labels=PUBLISHED["fashion_mnist"].label_names,
            counts=PUBLISHED["fashion_mnist"].splits,
        ),
    ),
    "cifar10": Download(
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "cifar-10-binary.tar.gz",
        partial(
            read_cifar,
            name="cifar10",
            description="CIFAR-10: color images of 10 classes, by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton.",
            folder="cifar-10-batches-bin",
            files={"train": {f"data_batch_{k}.bin": 10000 for k in range(1, 6)}, "test": {"test_batch.bin": 10000}},
            labels={"label": ("batches.meta.txt", 10)},
        ),
    ),
    "cifar100": Download(
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        "cifar-100-binary.tar.gz",
        partial(
            read_cifar,
            name="cifar100",
            description="CIFAR-100: color images of 100 classes in 20 groups, by Krizhevsky, Nair and Hinton.",
            folder="cifar-100-binary",
            files={"train": {"train.bin": 50000}, "test": {"test.bin": 10000}},
            labels={"coarse_label": ("coarse_label_names.txt", 20), "label": ("fine_label_names.txt", 100)},
        ),
    ),
}
"""The downloads by dataset name."""
