"""One split of a prepared dataset as a table of examples that is read by index."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from configs.base import Data
from train.data.find import find
from train.data.images import MODES, decode
from train.errors import UserError

_CHUNK = 4096  # Records decoded at a time when a split is taken into memory: bounds the memory held twice.


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

    @abstractmethod
    def __len__(self) -> int:
        """Examples in the split."""

    @abstractmethod
    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, int [n], as `{"image": uint8 [n, h, w, C], "label": int32 [n]}`.

        Raises:
            UserError: a record is damaged or is not what the dataset declares; the text names it.
        """


@dataclass(frozen=True)
class Memory(Source):
    """A split held decoded in memory."""

    images: np.ndarray = field(repr=False)
    """uint8 [N, h, w, C]."""
    labels: np.ndarray = field(repr=False)
    """int32 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self.images[indices], "label": self.labels[indices]}


class Records(Protocol):
    """Records read by index, many at a time."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[int]) -> Sequence[dict[str, Any]]: ...


@dataclass(frozen=True)
class Stream(Source):
    """A split that is read and decoded by need."""

    records: Records = field(repr=False)
    """A TFDS data source whose records hold the encoded image and the label."""
    resize: tuple[int, int] | None
    """(h, w) that images are resized to."""

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        try:
            records = self.records.__getitems__(indices.tolist())
        except (RuntimeError, IndexError) as error:  # ArrayRecord's errors
            raise UserError(f"{self._where()}: a file is damaged or missing; prepare it again ({error})") from error
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for row, (index, record) in enumerate(zip(indices, records, strict=True)):
            images[row] = self._image(record["image"], index)
            labels[row] = label = record["label"]
            if not 0 <= label < self.num_classes:
                raise UserError(f"{self._where(index)}: wanted a label in 0..{self.num_classes - 1}, got {label}")
        return {"image": images, "label": labels}

    def _image(self, encoded: bytes, index: int) -> np.ndarray:
        try:
            image = decode(encoded, self.image_shape[-1], self.resize)
        except ValueError as error:
            raise UserError(f"{self._where(index)}: {error}") from error
        if image.shape != self.image_shape:
            raise UserError(
                f"{self._where(index)}: wanted an image of {self.image_shape}, got {image.shape}; "
                "set --data.image-size to resize all"
            )
        return image

    def _where(self, index: int | None = None) -> str:
        return f"dataset {self.name}, split {self.split}" + ("" if index is None else f", record {index}")


def open_source(config: Data, split: str) -> Source:
    """Opens a split of a prepared dataset: in memory when it fits `config.memory_limit`, else streamed.

    Both kinds gather the same values.

    Args:
        config: name, dir, image_size and memory_limit are used.
        split: in TFDS notation, such as `config.train_split`.

    Raises:
        UserError: no such dataset or split, an empty split, features other than images and labels, images of
            different sizes without `config.image_size`, or (for a split held in memory) a damaged record.
    """
    folder = find(config.name, config.dir)
    import tensorflow_datasets as tfds  # Imported late: it takes seconds, and a wrong name must not.

    builder: Any = tfds.builder_from_directory(folder)  # Any: TFDS's decorators hide its signatures.
    features, splits = builder.info.features, builder.info.splits
    known = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = (known.get(name) for name in ("image", "label"))
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        got = " ".join(str(features).split())
        raise UserError(f"dataset {config.name}: wanted an Image called image and a ClassLabel called label, got {got}")
    shape: Any = image.shape
    height, width, channels = shape
    if channels not in MODES or image.np_dtype != np.uint8:
        raise UserError(f"dataset {config.name}: wanted uint8 images of 1, 3 or 4 channels, got {image}")
    height, width = config.image_size or (height, width)
    if height is None or width is None:
        raise UserError(f"dataset {config.name} has images of different sizes; set one by --data.image-size, as 64 64")
    if height < 1 or width < 1:
        raise UserError(f"--data.image-size: wanted a height and a width of at least 1, got {height} {width}")
    try:
        count = splits[split].num_examples
    except (ValueError, KeyError) as error:
        raise UserError(
            f"dataset {config.name}: wanted a split such as train[:90%] of {', '.join(splits)}, got {split!r}"
        ) from error
    if not count:
        raise UserError(f"dataset {config.name}: split {split!r} has no examples; its splits are {', '.join(splits)}")
    stream = Stream(
        name=config.name,
        split=split,
        image_shape=(height, width, channels),
        num_classes=len(label.names),
        label_names=label.names,
        records=builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()}),
        resize=config.image_size,
    )
    fits = count * np.prod(stream.image_shape) <= config.memory_limit * 2**20
    return _hold(stream) if fits else stream


def _hold(stream: Stream) -> Memory:
    """Decodes a whole split into memory."""
    images, labels = np.empty((len(stream), *stream.image_shape), np.uint8), np.empty(len(stream), np.int32)
    for start in range(0, len(stream), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(stream)))
        part = stream.gather(indices)
        images[indices], labels[indices] = part["image"], part["label"]
    shared = {item.name: getattr(stream, item.name) for item in fields(Source)}
    return Memory(**shared, images=images, labels=labels)
