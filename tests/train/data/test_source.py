"""A source returns the prepared examples, in memory or streamed, and names what is wrong with a dataset."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny import COUNTS, SHAPE

from configs.base import Data
from train.data import open_source
from train.data.prepare.tfds_writer import DatasetMetadata, encode_png, write
from train.data.source import InMemorySource, StreamingSource
from train.process.errors import UserError


def images_only(data_dir: Path, encoded: list[bytes], shape: tuple[int | None, int | None, int]) -> Data:
    """Writes a dataset `odd` with one class and these images as its train split."""
    features = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=1)}
    write(
        DatasetMetadata("odd", "1.0.0", features, ""),
        {"train": [{"image": image, "label": 0} for image in encoded]},
        data_dir,
    )
    return Data(name="odd", dir=str(data_dir))


def blank(height: int, width: int) -> bytes:
    return encode_png(np.full((height, width, 3), 100, np.uint8))


def test_a_source_gathers_the_images_and_labels_that_were_written(tiny: Data) -> None:
    rng = np.random.default_rng(0)
    written = {rng.integers(0, 256, SHAPE, np.uint8).tobytes(): index % 4 for index in range(COUNTS["train"])}
    source = open_source(tiny, "train")
    assert (source.name, source.split, source.image_shape, source.num_classes) == ("tiny", "train", SHAPE, 4)
    assert source.label_names == list("abcd")
    batch = source.gather(np.arange(len(source)))
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert {image.tobytes(): label for image, label in zip(batch["image"], batch["label"], strict=True)} == written


@pytest.mark.parametrize("size", [None, (5, 13)])
def test_a_streamed_split_gives_the_bits_of_one_in_memory(tiny: Data, size: tuple[int, int] | None) -> None:
    held = open_source(replace(tiny, image_size=size), "train")
    streamed = open_source(replace(tiny, image_size=size, memory_limit=0), "train")
    assert isinstance(held, InMemorySource)
    assert isinstance(streamed, StreamingSource)
    indices = np.array([22, 0, 7, 7, 13])
    one, other = held.gather(indices), streamed.gather(indices)
    assert one["image"].shape == (5, *(size or SHAPE[:2]), 3)
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key])


def test_image_size_is_height_then_width_and_resizes_bilinearly(tmp_path: Path) -> None:
    image = np.zeros((3, 2, 3), np.uint8)
    image[:, 1] = 200  # dark on the left, bright on the right
    config = images_only(tmp_path, [encode_png(image)], (3, 2, 3))
    (found,) = open_source(replace(config, image_size=(5, 4)), "train").gather(np.array([0]))["image"]
    np.testing.assert_array_equal(found, np.broadcast_to(np.array([[[0], [50], [150], [200]]]), (5, 4, 3)))


def test_tfds_split_notation_selects_a_part_of_a_split(tiny: Data) -> None:
    whole, first, rest = (open_source(tiny, split) for split in ("train", "train[:9]", "train[9:]"))
    parts = [source.gather(np.arange(len(source)))["image"] for source in (first, rest)]
    assert len(first) == 9
    np.testing.assert_array_equal(whole.gather(np.arange(23))["image"], np.concatenate(parts))


@pytest.mark.parametrize("split", ["val", "train[:90", "train[50:]", ""])
def test_for_an_unknown_split_the_error_lists_the_splits(tiny: Data, split: str) -> None:
    with pytest.raises(UserError, match=r"tiny: the split must be one of train, test .*, got") as caught:
        open_source(tiny, split)
    assert repr(split) in str(caught.value)


def test_an_empty_split_is_refused(tiny: Data) -> None:
    with pytest.raises(UserError, match=r"split 'train\[:0\]' has no examples"):
        open_source(tiny, "train[:0]")


def test_a_label_out_of_range_is_refused_with_its_record(broken_label: Data) -> None:
    with pytest.raises(UserError, match=r"dataset wrong, split train, record \d+: the label must be in 0..3, got 99"):
        open_source(broken_label, "train")


def test_images_of_different_sizes_need_an_image_size(tmp_path: Path) -> None:
    config = images_only(tmp_path, [blank(4, 6), blank(5, 3)], (None, None, 3))
    with pytest.raises(UserError, match=r"odd has images of different sizes. Set --data.image-size"):
        open_source(config, "train")
    assert open_source(replace(config, image_size=(5, 7)), "train").image_shape == (5, 7, 3)


def test_an_image_of_another_size_than_declared_is_named(tmp_path: Path) -> None:
    config = images_only(tmp_path, [blank(4, 6), blank(5, 3)], (4, 6, 3))
    with pytest.raises(
        UserError, match=r"odd, split train, record \d: .* must have shape \(4, 6, 3\), got \(5, 3, 3\). Set --data"
    ):
        open_source(config, "train")


def test_a_gray_image_among_colour_images_is_expanded(tmp_path: Path) -> None:
    gray = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    (found,) = open_source(images_only(tmp_path, [encode_png(gray)], (4, 6, 3)), "train").gather(np.array([0]))["image"]
    np.testing.assert_array_equal(found, np.repeat(gray, 3, axis=-1))


def test_a_record_that_is_not_an_image_or_has_other_channels_is_named(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (6, 4)).save(file, "PNG")
    for case, encoded, wrong in (
        ("cut", blank(4, 6)[:-30], "is not a complete image"),
        ("text", b"no image", "is not a complete image"),
        ("rgba", file.getvalue(), "must be an image of mode RGB, got RGBA"),
    ):
        config = images_only(tmp_path / case, [encoded], (4, 6, 3))
        with pytest.raises(UserError, match=f"dataset odd, split train, record 0 {wrong}"):
            open_source(config, "train")


@pytest.mark.parametrize("feature", ["label", "image"])
def test_a_dataset_without_images_or_classes_is_refused(tmp_path: Path, feature: str) -> None:
    features = {"image": tfds.features.Image(shape=(4, 6, 3)), "label": tfds.features.ClassLabel(num_classes=1)}
    example = {"image": blank(4, 6), "label": 0, feature: "text"}
    write(
        DatasetMetadata("odd", "1.0.0", {**features, feature: tfds.features.Text()}, ""), {"train": [example]}, tmp_path
    )
    with pytest.raises(
        UserError, match="dataset odd must have an Image feature named image and a ClassLabel feature named label"
    ):
        open_source(Data(name="odd", dir=str(tmp_path)), "train")
