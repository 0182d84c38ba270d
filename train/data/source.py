"""A source: one split of a dataset, whose examples are read by index."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from train.data.crops import UNIFORMS_PER_BOX, central_box, random_box
from train.data.decode import MODES, decode
from train.process.errors import UserError
from w2jax.image_spec import ImageSpec, Interpolation
from w2jax.text import printable

if TYPE_CHECKING:
    from train.data.records import Records


def _no_other_splits(split: str) -> "Source":
    raise UserError(
        f"a source must have open_split to open split {split!r}, got one without it. "
        "Make the source with `open_source`, or set its field open_split."
    )


def _no_file_names(indices: Sequence[int]) -> list[str]:
    return [""] * len(indices)


_TOLD: set[tuple[str, str]] = set()


def tell_converted(source: "Source", which: str) -> None:
    """Prints that the images `which` of a split were converted. Only the first call for a split prints."""
    if (source.split, source.fingerprint) not in _TOLD:
        _TOLD.add((source.split, source.fingerprint))
        mode = MODES[source.image_shape[-1]]
        dropped = "" if mode == "RGBA" else " without transparency"
        print(
            printable(f"dataset {source.name}, split {source.split}: {which} converted to {mode}{dropped}"), flush=True
        )


@dataclass(frozen=True)
class Source(ABC):
    """Labeled images of one split, numbered from 0."""

    name: str
    """The dataset's name, such as mnist."""
    split: str
    """The split in TFDS notation, such as train[:90%]."""
    image_shape: tuple[int, int, int]
    """(h, w, C), the same for every image."""
    num_classes: int
    """Number of classes. Labels are in 0..num_classes-1."""
    label_names: list[str]
    """label_names[k] is the name of label k."""
    open_split: Callable[[str], "Source"] = field(default=_no_other_splits, kw_only=True, repr=False)
    """Opens another split of the same dataset, for evaluation. An abstract source opens another abstract source."""
    fingerprint: str = field(default="", kw_only=True)
    """Changes if the files of the split change; "" for a source without files."""
    read_file_names: Callable[[Sequence[int]], list[str]] = field(default=_no_file_names, kw_only=True, repr=False)
    """Reads the names of the files that the images at these indices were made from; "" if they are not known."""

    @property
    def uniforms_per_example(self) -> int:
        """How many uniform random numbers `gather` uses for each example; 0 if nothing is random."""
        return 0

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples in the split."""

    @abstractmethod
    def gather(self, indices: np.ndarray, uniforms: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the examples at `indices` as `{"image": uint8 [n, h, w, C], "label": int32 [n]}`.

        Args:
            indices: int [n], example numbers in any order; they may repeat.
            uniforms: float64 [n, self.uniforms_per_example] in [0, 1), which determine random crops. None: central
                crops.

        Raises:
            UserError: a record is damaged or does not match the dataset's metadata. The message gives its number.
        """

    def gather_labels(self, indices: np.ndarray) -> np.ndarray:
        """Returns the labels of the examples at `indices` as int32 [n]. A subclass may do so without their images."""
        return self.gather(indices)["label"]


@dataclass(frozen=True)
class InMemorySource(Source):
    """A split whose decoded examples are in memory."""

    images: np.ndarray = field(repr=False)
    """uint8 [N, h, w, C]."""
    labels: np.ndarray = field(repr=False)
    """int32 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray, uniforms: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {"image": self.images[indices], "label": self.labels[indices]}


@dataclass(frozen=True)
class FeatureSource(Source):
    """A split whose examples are features in memory that a model computed from the images."""

    features: np.ndarray = field(repr=False)
    """float [N, K, D]."""
    labels: np.ndarray = field(repr=False)
    """int32 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray, uniforms: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """See `Source.gather`. "features" (float [n, K, D]) replaces "image"."""
        return {"features": self.features[indices], "label": self.labels[indices]}


@dataclass(frozen=True)
class AbstractSource(Source):
    """A split without its data. It returns black images, and label i mod num_classes for example i."""

    count: int
    """Number of examples in the split."""

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: np.ndarray, uniforms: np.ndarray | None = None) -> dict[str, np.ndarray]:
        images = np.zeros((len(indices), *self.image_shape), np.uint8)
        return {"image": images, "label": (indices % self.num_classes).astype(np.int32)}


@dataclass(frozen=True)
class StreamingSource(Source):
    """A split whose examples are read and decoded in each call of `gather`."""

    records: "Records" = field(repr=False)
    """Encoded images and labels."""
    resize: tuple[int, int] | None
    """(h, w) that images are resized to; None: they are not resized."""
    crop: float | None = None
    """Smallest fraction of an image's area in a random crop; None: no crops, the whole image is resized."""
    train: bool = False
    """Whether `batches` uses random crops."""
    interpolation: Interpolation = "bilinear"
    """The method of resizing."""
    spec: ImageSpec | None = None
    """How images without a random crop are resized and cut; None: as `resize` and `crop` say."""

    @property
    def uniforms_per_example(self) -> int:
        return UNIFORMS_PER_BOX if self.train and self.crop is not None else 0

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: np.ndarray, uniforms: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """See `Source.gather`. "converted" (bool [n]) says which images lost colors, transparency or bits."""
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels, converted = np.empty(len(indices), np.int32), np.empty(len(indices), bool)
        for row, (index, record) in enumerate(zip(indices, self.records.read(indices.tolist()), strict=True)):
            images[row], converted[row] = self._decode(record.image, index, None if uniforms is None else uniforms[row])
            labels[row] = self._checked_label(record.label, index)
        return {"image": images, "label": labels, "converted": converted}

    def gather_labels(self, indices: np.ndarray) -> np.ndarray:
        records = zip(indices, self.records.read(indices.tolist()), strict=True)
        return np.array([self._checked_label(record.label, index) for index, record in records], np.int32)

    def _checked_label(self, label: int, index: int) -> int:
        if not 0 <= label < self.num_classes:
            raise UserError(f"{self._record_name(index)}: the label must be in 0..{self.num_classes - 1}, got {label}.")
        return label

    def _decode(self, encoded: bytes, index: int, uniforms: np.ndarray | None) -> tuple[np.ndarray, bool]:
        size, crop, crop_box, spec = self.resize, self.crop, None, self.spec
        if size is not None and crop is not None:
            crop_box = partial(central_box, size=size)
            if uniforms is not None:
                crop_box, spec = partial(random_box, size=size, min_area=crop, uniforms=uniforms), None
        try:
            image, is_converted = decode(encoded, self.image_shape[-1], size, crop_box, self.interpolation, spec)
        except ValueError as error:
            raise UserError(f"{self._record_name(index)} {error}.") from error
        if image.shape != self.image_shape:
            raise UserError(
                f"{self._record_name(index)}: the image must have shape {self.image_shape}, got {image.shape}. "
                "Set --data.image-size to resize all images."
            )
        return image, is_converted

    def _record_name(self, index: int) -> str:
        return f"dataset {self.name}, split {self.split}, record {index}"
