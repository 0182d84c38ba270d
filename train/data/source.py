"""One split of a dataset as a table of examples that is read by index."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from train.data.crops import DRAWS, central_box, random_box
from train.data.decode import decode
from train.process.errors import UserError

if TYPE_CHECKING:
    from train.data.records import Records


def _alone(split: str) -> "Source":
    raise UserError(f"split {split!r}: wanted a split of a dataset that was opened by name, got one made by hand")


@dataclass(frozen=True)
class Source(ABC):
    """Labelled images of one split, numbered from 0."""

    name: str
    """The dataset's name, such as mnist."""
    split: str
    """The split in TFDS notation, such as train[:90%]."""
    image_shape: tuple[int, int, int]
    """(h, w, C) of every image."""
    num_classes: int
    """Labels lie in 0..num_classes-1."""
    label_names: list[str]
    """What each label is called."""
    open_split: Callable[[str], "Source"] = field(default=_alone, kw_only=True, repr=False)
    """Opens another split of the same dataset, to evaluate on; one that was declared gives a declared one."""

    @property
    def draws(self) -> int:
        """Random numbers that `gather` takes for each example; 0 if it changes nothing at random."""
        return 0

    @abstractmethod
    def __len__(self) -> int:
        """Examples in the split."""

    @abstractmethod
    def gather(self, indices: np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The examples at `indices`, int [n], as `{"image": uint8 [n, h, w, C], "label": int32 [n]}`.

        Args:
            indices: which examples, in any order, also repeated.
            draws: float64 [n, self.draws], uniform in [0, 1): what the random crops follow from. None: central crops.

        Raises:
            UserError: a record is damaged or is not what the dataset declares; the text names it.
        """


@dataclass(frozen=True)
class InMemorySource(Source):
    """A split held decoded in memory."""

    images: np.ndarray = field(repr=False)
    """uint8 [N, h, w, C]."""
    labels: np.ndarray = field(repr=False)
    """int32 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {"image": self.images[indices], "label": self.labels[indices]}


@dataclass(frozen=True)
class AbstractSource(Source):
    """A split of which nothing but its facts is at hand: black images, the labels in turn."""

    count: int
    """Examples in the split."""

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        images = np.zeros((len(indices), *self.image_shape), np.uint8)
        return {"image": images, "label": (indices % self.num_classes).astype(np.int32)}


@dataclass(frozen=True)
class StreamingSource(Source):
    """A split that is read and decoded by need."""

    records: "Records" = field(repr=False)
    """Each holds the encoded image and the label."""
    resize: tuple[int, int] | None
    """(h, w) that images are resized to."""
    crop: float | None = None
    """Smallest part of an image's area that a random crop takes; None: the whole image is resized."""
    train: bool = False
    """Whether `batches` crops at random."""

    @property
    def draws(self) -> int:
        return DRAWS if self.train and self.crop is not None else 0

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for row, (index, record) in enumerate(zip(indices, self.records.read(indices.tolist()), strict=True)):
            images[row] = self._image(record.image, index, None if draws is None else draws[row])
            if not 0 <= record.label < self.num_classes:
                raise UserError(
                    f"{self._where(index)}: wanted a label in 0..{self.num_classes - 1}, got {record.label}"
                )
            labels[row] = record.label
        return {"image": images, "label": labels}

    def _image(self, encoded: bytes, index: int, draws: np.ndarray | None) -> np.ndarray:
        size, crop, part = self.resize, self.crop, None
        if size is not None and crop is not None:
            part = partial(central_box, size=size)
            if draws is not None:
                part = partial(random_box, size=size, smallest=crop, draws=draws)
        try:
            image = decode(encoded, self.image_shape[-1], size, part)
        except ValueError as error:
            raise UserError(f"{self._where(index)}: {error}") from error
        if image.shape != self.image_shape:
            raise UserError(
                f"{self._where(index)}: wanted an image of {self.image_shape}, got {image.shape}; "
                "set --data.image-size to resize all"
            )
        return image

    def _where(self, index: int) -> str:
        return f"dataset {self.name}, split {self.split}, record {index}"
