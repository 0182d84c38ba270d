"""From a config to a source: of a prepared dataset, or of the facts alone."""

from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from configs.base import Data
from train.data.facts import PUBLISHED, Facts
from train.data.find import find
from train.data.images import MODES
from train.data.source import Blank, Memory, Source, Stream
from train.errors import UserError

_CHUNK = 4096  # Records decoded at a time when a split is taken into memory: bounds the memory held twice.


def open_source(config: Data, split: str, train: bool = False) -> Source:
    """Opens a split of a prepared dataset: in memory when it fits `config.memory_limit`, else streamed.

    Both kinds gather the same values. A split whose crops are random is always streamed.

    Args:
        config: name, dir, image_size, crop and memory_limit are used.
        split: in TFDS notation, such as `config.train_split`.
        train: whether `batches` draws random crops, where there is a `config.crop`; else all crops are central.

    Raises:
        UserError: no such dataset or split, an empty split, features other than images and labels, images of
            different sizes or a crop without `config.image_size`, or (for a split held in memory) a damaged record.
    """
    folder = find(config.name, config.dir)
    import tensorflow_datasets as tfds  # Imported late: it takes seconds, and a wrong name must not.

    builder: Any = tfds.builder_from_directory(folder)  # Any: TFDS's decorators hide its signatures.
    about, count = _about(config, split, _facts(config.name, builder))
    records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    ours = {"sibling": partial(open_source, config), "records": records}
    stream = Stream(**about, **ours, resize=config.image_size, crop=config.crop, train=train)
    fits = not stream.draws and count * np.prod(stream.image_shape) <= config.memory_limit * 2**20
    return _hold(stream) if fits else stream


def declare(config: Data, split: str) -> Source:
    """A source like the one that `open_source` opens, without its images: all that a step's compilation needs.

    The facts are those of the prepared dataset if it is there, else of a few that are published.

    Args:
        config: name, dir, image_size and crop are used.
        split: in TFDS notation, such as `config.train_split`.

    Raises:
        UserError: nothing is known of the dataset; or as `open_source`.
    """
    try:
        folder = find(config.name, config.dir)
    except UserError as error:
        if config.name not in PUBLISHED:
            known = ", ".join(sorted(PUBLISHED))
            raise UserError(f"{error}; without being prepared only these are known: {known}") from error
        facts = PUBLISHED[config.name]
    else:
        import tensorflow_datasets as tfds

        facts = _facts(config.name, tfds.builder_from_directory(folder))
    about, count = _about(config, split, facts)
    return Blank(**about, sibling=partial(declare, config), count=count)


def _facts(name: str, builder: Any) -> Facts:
    """What a TFDS builder says of its dataset; UserError unless these are labelled images."""
    import tensorflow_datasets as tfds

    features, splits = builder.info.features, builder.info.splits
    known = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = (known.get(key) for key in ("image", "label"))
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        got = " ".join(str(features).split())
        raise UserError(f"dataset {name}: wanted an Image called image and a ClassLabel called label, got {got}")
    shape: Any = image.shape
    if shape[-1] not in MODES or image.np_dtype != np.uint8:
        raise UserError(f"dataset {name}: wanted uint8 images of 1, 3 or 4 channels, got {image}")
    return Facts(shape, label.names, {split: info.num_examples for split, info in splits.items()})


def _about(config: Data, split: str, facts: Facts) -> tuple[dict[str, Any], int]:
    """The fields that every Source has, and how many examples the split has."""
    if config.crop is not None and config.image_size is None:
        raise UserError("--data.crop: wanted a size that crops are resized to; set it by --data.image-size, as 224 224")
    if config.crop is not None and not 0 < config.crop <= 1:
        raise UserError(f"--data.crop: wanted a part of the area above 0 and up to 1, got {config.crop}")
    height, width, channels = facts.image_shape
    height, width = config.image_size or (height, width)
    if height is None or width is None:
        raise UserError(f"dataset {config.name} has images of different sizes; set one by --data.image-size, as 64 64")
    if height < 1 or width < 1:
        raise UserError(f"--data.image-size: wanted a height and a width of at least 1, got {height} {width}")
    try:
        count = _examples(facts.splits, split)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"dataset {config.name}: wanted a split such as train[:90%] of {', '.join(facts.splits)}, got {split!r}"
        ) from error
    if not count:
        splits = ", ".join(facts.splits)
        raise UserError(f"dataset {config.name}: split {split!r} has no examples; its splits are {splits}")
    about = {
        "name": config.name,
        "split": split,
        "image_shape": (height, width, channels),
        "num_classes": len(facts.label_names),
        "label_names": facts.label_names,
    }
    return about, count


def _examples(splits: dict[str, int], split: str) -> int:
    """How many examples `split`, in TFDS notation, has of whole splits of these lengths."""
    import tensorflow_datasets as tfds

    def info(name: str, count: int) -> tfds.core.SplitInfo:
        file = tfds.core.ShardedFileTemplate(
            tfds.core.Path("."), dataset_name="any", split=name, filetype_suffix="array_record"
        )
        return tfds.core.SplitInfo(name, [count], num_bytes=0, filename_template=file)

    return tfds.core.SplitDict([info(*item) for item in splits.items()])[split].num_examples


def _hold(stream: Stream) -> Memory:
    """Decodes a whole split into memory."""
    images, labels = np.empty((len(stream), *stream.image_shape), np.uint8), np.empty(len(stream), np.int32)
    for start in range(0, len(stream), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(stream)))
        part = stream.gather(indices)
        images[indices], labels[indices] = part["image"], part["label"]
    shared = {item.name: getattr(stream, item.name) for item in fields(Source)}
    return Memory(**shared, images=images, labels=labels)
