"""Makes a source from a config: for a prepared dataset, or without its images."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from configs.base import Data
from train.data.dataset_info import PUBLISHED, DatasetInfo, Shards, read_dataset_info
from train.data.decode import MAX_PIXELS
from train.data.locate import locate_dataset
from train.data.source import AbstractSource, InMemorySource, Source, StreamingSource
from train.process.errors import UserError

_CHUNK = 4096  # Records decoded at a time, which limits how many images are in memory twice.


def open_source(config: Data, split: str, train: bool = False) -> Source:
    """Opens a split of a prepared dataset. It is decoded into memory if it fits `config.memory_limit`, else streamed.

    Both kinds return the same values. A split with random crops is always streamed.

    Args:
        config: its name, dir, image_size, crop and memory_limit are used.
        split: in TFDS notation, such as `config.train_split`.
        train: whether `batches` uses random crops if `config.crop` is set. False: all crops are central.

    Raises:
        UserError: the dataset or split does not exist; the split is empty; the examples are not labelled images;
            `config.image_size` is missing for images of different sizes or for a crop; a file or record is missing,
            damaged or does not match the dataset's metadata. If the split is streamed, this function checks only the
            end of each file and the first record.
    """
    info = read_dataset_info(config.name, config.dir)
    split_info = _split_info(config.name, split, info)
    common = _common_fields(config, split, info, split_info.num_examples, open_source)
    # Imported late, because they are slow and a wrong name should give an error immediately.
    from train.data.decoded_cache import cached
    from train.data.records import Records

    records = Records(f"dataset {config.name}, split {split}", split_info.file_instructions)
    stream = StreamingSource(**common, records=records, resize=config.image_size, crop=config.crop, train=train)
    if not stream.uniforms_per_example and len(stream) * math.prod(stream.image_shape) <= config.memory_limit * 2**20:
        settings = stream.image_shape, stream.num_classes, config.image_size
        shape = (len(stream), *stream.image_shape)
        examples = cached(split_info.file_instructions, settings, shape, partial(_decode_all, stream))
        return InMemorySource(**common, images=examples["image"], labels=examples["label"])
    stream.gather(np.zeros(1, int))
    return stream


def abstract_source(config: Data, split: str) -> Source:
    """Returns a source like `open_source`, but without images. It is enough to compile a step.

    The metadata comes from the prepared dataset, or from `PUBLISHED` if the dataset is not prepared.

    Args:
        config: its name, dir, image_size and crop are used.
        split: in TFDS notation, such as `config.train_split`.

    Raises:
        UserError: the dataset is neither prepared nor in `PUBLISHED`; otherwise see `open_source`.
    """
    try:
        locate_dataset(config.name, config.dir)
    except UserError as error:
        if config.name not in PUBLISHED:
            raise UserError(
                f"{error} Datasets that need no preparation here: {', '.join(sorted(PUBLISHED))}."
            ) from error
        info = PUBLISHED[config.name]
    else:
        info = read_dataset_info(config.name, config.dir)
    count = _split_info(config.name, split, info).num_examples
    return AbstractSource(**_common_fields(config, split, info, count, abstract_source), count=count)


def _common_fields(
    config: Data, split: str, info: DatasetInfo, count: int, open_split: Callable[[Data, str], Source]
) -> dict[str, Any]:
    """Checks the options, and returns the fields that every Source has, for a split of `count` examples."""
    if config.crop is not None and config.image_size is None:
        raise UserError(
            "--data.crop needs --data.image-size, the size of the resized crops. Set it, for example to 224 224."
        )
    if config.crop is not None and not 0 < config.crop <= 1:
        raise UserError(f"--data.crop must be a fraction of the image area, above 0 and at most 1, got {config.crop}.")
    height, width, channels = info.image_shape
    height, width = config.image_size or (height, width)
    if height is None or width is None:
        raise UserError(
            f"dataset {config.name} has images of different sizes. Set --data.image-size, for example to 64 64."
        )
    if height < 1 or width < 1:
        raise UserError(f"--data.image-size must be a height and a width of at least 1 pixel, got {height} {width}.")
    if height * width > MAX_PIXELS:
        raise UserError(f"--data.image-size must be at most {MAX_PIXELS:,} pixels, got {height} x {width}.")
    if not count:
        raise UserError(
            f"dataset {config.name}: split {split!r} has no examples. Its splits are {', '.join(info.splits)}."
        )
    return {
        "name": config.name,
        "split": split,
        "image_shape": (height, width, channels),
        "num_classes": len(info.label_names),
        "label_names": info.label_names,
        "open_split": partial(open_split, config),
    }


def _split_info(name: str, split: str, info: DatasetInfo) -> Any:
    """Returns TFDS's SplitInfo of `split`, which is in TFDS notation."""
    import tensorflow_datasets as tfds  # Imported late, because it is slow.

    def whole_split(whole: str, shards: Shards) -> tfds.core.SplitInfo:
        template = tfds.core.ShardedFileTemplate(
            tfds.core.Path(info.folder),
            template=shards.template,
            dataset_name=info.file_prefix,
            split=whole,
            filetype_suffix="array_record",
        )
        return tfds.core.SplitInfo(whole, shards.lengths, num_bytes=0, filename_template=template)

    try:
        return tfds.core.SplitDict([whole_split(*item) for item in info.shards.items()])[split]
    except (ValueError, KeyError) as error:
        raise UserError(
            f"dataset {name}: the split must be one of {', '.join(info.shards)} (or a part such as train[:90%]), "
            f"got {split!r}."
        ) from error


def _decode_all(stream: StreamingSource) -> dict[str, np.ndarray]:
    """Decodes every example of a split."""
    images, labels = np.empty((len(stream), *stream.image_shape), np.uint8), np.empty(len(stream), np.int32)
    for start in range(0, len(stream), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(stream)))
        examples = stream.gather(indices)
        images[indices], labels[indices] = examples["image"], examples["label"]
    return {"image": images, "label": labels}
