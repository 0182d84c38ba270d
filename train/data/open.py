"""From a config to a source: of a prepared dataset, or of the facts alone."""

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.base import Data
from train.data.dataset_info import Shards, describe
from train.data.decode import MOST_PIXELS
from train.data.locate import find
from train.data.published import PUBLISHED, Facts
from train.data.source import AbstractSource, InMemorySource, Source, StreamingSource
from train.process.errors import UserError

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
            different sizes or a crop without `config.image_size`; a file or record is missing, damaged or not what is
            declared. Of a streamed split, each file's end and the first record are looked at here.
    """
    found = describe(config.name, config.dir)
    part = _part(config.name, split, found.shards, found.folder, found.prefix)
    about = _about(config, split, found.facts, part.num_examples)
    # Imported late: they take a while, and a wrong name must not.
    from train.data.decoded_cache import cached
    from train.data.records import Records

    records = Records(f"dataset {config.name}, split {split}", part.file_instructions)
    ours = {"open_split": partial(open_source, config), "records": records}
    stream = StreamingSource(**about, **ours, resize=config.image_size, crop=config.crop, train=train)
    if not stream.draws and len(stream) * math.prod(stream.image_shape) <= config.memory_limit * 2**20:
        settings = stream.image_shape, stream.num_classes, config.image_size
        shape = (len(stream), *stream.image_shape)
        held = cached(part.file_instructions, settings, shape, partial(_decoded, stream))
        shared = {item.name: getattr(stream, item.name) for item in fields(Source)}
        return InMemorySource(**shared, images=held["image"], labels=held["label"])
    stream.gather(np.zeros(1, int))
    return stream


def abstract_source(config: Data, split: str) -> Source:
    """A source like the one that `open_source` opens, without its images: all that a step's compilation needs.

    The facts are those of the prepared dataset if it is there, else of a few that are published.

    Args:
        config: name, dir, image_size and crop are used.
        split: in TFDS notation, such as `config.train_split`.

    Raises:
        UserError: nothing is known of the dataset; or as `open_source`.
    """
    try:
        find(config.name, config.dir)
    except UserError as error:
        if config.name not in PUBLISHED:
            known = ", ".join(sorted(PUBLISHED))
            raise UserError(f"{error}; without being prepared only these are known: {known}") from error
        facts = PUBLISHED[config.name]
        shards = {name: Shards("", [count]) for name, count in facts.splits.items()}
    else:
        found = describe(config.name, config.dir)
        facts, shards = found.facts, found.shards
    count = _part(config.name, split, shards).num_examples
    return AbstractSource(
        **_about(config, split, facts, count), open_split=partial(abstract_source, config), count=count
    )


def _about(config: Data, split: str, facts: Facts, count: int) -> dict[str, Any]:
    """The fields that every Source has, of a split of `count` examples."""
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
    if height * width > MOST_PIXELS:
        raise UserError(f"--data.image-size: wanted at most {MOST_PIXELS:,} pixels, got {height} x {width}")
    if not count:
        splits = ", ".join(facts.splits)
        raise UserError(f"dataset {config.name}: split {split!r} has no examples; its splits are {splits}")
    return {
        "name": config.name,
        "split": split,
        "image_shape": (height, width, channels),
        "num_classes": len(facts.label_names),
        "label_names": facts.label_names,
    }


def _part(name: str, split: str, shards: Mapping[str, Shards], folder: Path = Path(), prefix: str = "any") -> Any:
    """TFDS's SplitInfo of `split`, in TFDS notation, of a dataset of those files."""
    import tensorflow_datasets as tfds  # Imported late, as it takes a while.

    def info(whole: str, files: Shards) -> tfds.core.SplitInfo:
        template = tfds.core.ShardedFileTemplate(
            tfds.core.Path(folder),
            template=files.template,
            dataset_name=prefix,
            split=whole,
            filetype_suffix="array_record",
        )
        return tfds.core.SplitInfo(whole, files.lengths, num_bytes=0, filename_template=template)

    try:
        return tfds.core.SplitDict([info(*item) for item in shards.items()])[split]
    except (ValueError, KeyError) as error:
        raise UserError(
            f"dataset {name}: wanted a split such as train[:90%] of {', '.join(shards)}, got {split!r}"
        ) from error


def _decoded(stream: StreamingSource) -> dict[str, np.ndarray]:
    """A whole split."""
    images, labels = np.empty((len(stream), *stream.image_shape), np.uint8), np.empty(len(stream), np.int32)
    for start in range(0, len(stream), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(stream)))
        part = stream.gather(indices)
        images[indices], labels[indices] = part["image"], part["label"]
    return {"image": images, "label": labels}
