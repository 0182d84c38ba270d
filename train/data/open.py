"""Makes a source from a config: for a prepared dataset, or without its images."""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.base import Data
from train.data.dataset_info import PUBLISHED, DatasetInfo, Shards, read_dataset_info
from train.data.decode import MAX_PIXELS
from train.data.locate import locate_dataset
from train.data.source import AbstractSource, InMemorySource, Source, StreamingSource, tell_converted
from train.process.errors import UserError, as_user_error
from w2jax.image_spec import MAX_SIDE, ImageSpec

_EDGE = 2**16  # bytes; an ArrayRecord file ends with the position of each of its chunks
_CHUNK = 4096  # Records decoded at a time, which limits how many images are in memory twice.


def open_source(config: Data, split: str, train: bool = False) -> Source:
    """Opens a split of a prepared dataset. It is decoded into memory if it fits `config.memory_limit`, else streamed.

    Both kinds return the same values. A split with random crops is always streamed.

    Args:
        config: its name, dir, memory_limit and the options for resizing are used.
        split: in TFDS notation, such as `config.train_split`.
        train: whether `batches` uses random crops if `config.crop` is set. False: all crops are central.

    Raises:
        UserError: the dataset or split does not exist; the split is empty; the examples are not labeled images;
            `config.image_size` is missing for images of different sizes or for a crop; a file or record is missing,
            damaged or does not match the dataset's metadata. If the split is streamed, this function checks only the
            end of each file and the first record.
    """
    info = read_dataset_info(config.name, config.dir)
    split_info = _split_info(config.name, split, info)
    common = _common_fields(config, split, info, open_source)
    # Imported late, because they are slow and a wrong name should give an error immediately.
    from train.data.decoded_cache import cached
    from train.data.records import Records

    records = Records(f"dataset {config.name}, split {split}", split_info.file_instructions)
    common["fingerprint"] = _fingerprint(split_info.file_instructions)
    common["read_file_names"] = records.read_file_names
    spec, interpolation = resizing_spec(config, common["image_shape"]), config.interpolation or "bilinear"
    stream = StreamingSource(
        **common,
        records=records,
        resize=config.image_size,
        crop=config.crop,
        train=train,
        interpolation=interpolation,
        spec=spec,
    )
    if not stream.uniforms_per_example and len(stream) * math.prod(stream.image_shape) <= config.memory_limit * 2**20:
        settings = stream.image_shape, stream.num_classes, config.image_size
        if config.resize or config.interpolation:  # Otherwise the key is that of older versions.
            settings = *settings, interpolation, spec
        shape = (len(stream), *stream.image_shape)
        examples = cached(split_info.file_instructions, settings, shape, partial(_decode_all, stream))
        if converted := int(examples["converted"]):
            tell_converted(stream, f"{converted:,} of {len(stream):,} images are")
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
    return AbstractSource(**_common_fields(config, split, info, abstract_source), count=count)


def resizing_spec(config: Data, image_shape: tuple[int, int, int]) -> ImageSpec | None:
    """Returns how `--data.resize` prepares images, without a normalization; None if it is not set.

    Raises:
        UserError: `--data.resize` or `--data.interpolation` is wrong, for example in the config of a run folder.
    """
    if config.resize is None and config.interpolation is None:
        return None
    size, unused = image_shape[:2], (0.5,) * image_shape[2]
    with as_user_error({"resize": "--data.resize", "interpolation": "--data.interpolation"}):
        spec = ImageSpec(size, config.resize or size, config.interpolation or "bilinear", unused, unused, upright=False)
    return None if config.resize is None else spec


def has_one_size(config: Data) -> bool:
    """Returns whether all images of a dataset have the same size before they are resized.

    Raises:
        UserError: the dataset is not found or damaged.
    """
    info = PUBLISHED.get(config.name) or read_dataset_info(config.name, config.dir)
    return None not in info.image_shape


def _common_fields(
    config: Data, split: str, info: DatasetInfo, open_split: Callable[[Data, str], Source]
) -> dict[str, Any]:
    """Checks the options, and returns the fields that every Source has."""
    if config.crop is not None and config.image_size is None:
        raise UserError(
            "--data.crop needs --data.image-size, the size of the resized crops. Set it, for example to 224 224."
        )
    if config.crop is not None and not 0 < config.crop <= 1:
        raise UserError(f"--data.crop must be a fraction of the image area, above 0 and at most 1, got {config.crop}.")
    if config.resize is not None:
        _check_resize(config.resize, config.image_size)
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
    return {
        "name": config.name,
        "split": split,
        "image_shape": (height, width, channels),
        "num_classes": len(info.label_names),
        "label_names": info.label_names,
        "open_split": partial(open_split, config),
    }


def _check_resize(resize: int | tuple[int, int], size: tuple[int, int] | None) -> None:
    """Raises UserError if the resized image may be smaller than the part that is cut from it."""
    if size is None:
        raise UserError("--data.resize needs the size that is cut from the resized images. Set --data.image-size.")
    least = max(size) if isinstance(resize, int) else size
    if np.any(np.less(resize, least)) or np.max(resize) > MAX_SIDE:
        raise UserError(
            f"--data.resize must be at least --data.image-size, {size[0]} {size[1]}, and at most {MAX_SIDE}, got "
            f"{resize}. Set another --data.resize or --data.image-size."
        )


def _split_info(name: str, split: str, info: DatasetInfo) -> Any:
    """Returns TFDS's SplitInfo of `split`, which is in TFDS notation.

    Raises:
        UserError: there is no such split, or one of its parts selects no examples.
    """
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
        splits = tfds.core.SplitDict([whole_split(*item) for item in info.shards.items()])
        counts = {part: splits[part].num_examples for part in map(str.strip, split.split("+"))}
        selected = splits[split]
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"dataset {name}: the split must be one of {', '.join(info.shards)} (or a part such as train[:90%]), "
            f"got {split!r}."
        ) from error
    for part, count in counts.items():
        if count < 1:  # It is negative if a part ends before it begins.
            known = ", ".join(f"{whole} ({examples:,} examples)" for whole, examples in info.splits.items())
            raise UserError(
                f"dataset {name}: each part of a split must select at least 1 example, but {part!r} selects none. "
                f"The splits are {known}. The second number of a part must be the larger one, as in train[10%:50%]."
            )
    return selected


def _fingerprint(files: Sequence[Any]) -> str:
    """Returns a hash of the files of a split: their sizes, their first and last bytes, and which records are used.

    `files` are TFDS's file instructions. The names of the files do not count, so that a dataset may be moved.
    """
    digest = hashlib.sha256()
    for file in files:
        with Path(file.filename).open("rb") as content:
            size = content.seek(0, os.SEEK_END)
            digest.update(f"{size} {file.skip} {file.take}\n".encode())
            for start in (0, max(0, size - _EDGE)):
                content.seek(start)
                digest.update(content.read(_EDGE))
    return digest.hexdigest()


def _decode_all(stream: StreamingSource) -> dict[str, np.ndarray]:
    """Decodes every example of a split, and counts the converted images."""
    images, labels = np.empty((len(stream), *stream.image_shape), np.uint8), np.empty(len(stream), np.int32)
    converted = np.zeros((), np.int64)
    for start in range(0, len(stream), _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, len(stream)))
        examples = stream.gather(indices)
        images[indices], labels[indices] = examples["image"], examples["label"]
        converted += examples["converted"].sum()
    return {"image": images, "label": labels, "converted": converted}
