"""A source returns the prepared examples, in memory or streamed, and names what is wrong with a dataset."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny import COUNTS, SHAPE

from configs.base import Data
from train.data import Source, abstract_source, eval_batches, open_source
from train.data.decode import MODES, read_image_bytes
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


@pytest.mark.parametrize("split", ["val", "train[:90", "train[50:]", "all[:3]", ""])
def test_for_an_unknown_split_the_error_lists_the_splits(tiny: Data, split: str) -> None:
    with pytest.raises(UserError, match=r"tiny: the split must be one of train, test .*, got") as caught:
        open_source(tiny, split)
    assert repr(split) in str(caught.value)


@pytest.mark.parametrize("open_split", [open_source, abstract_source])
@pytest.mark.parametrize(
    ("split", "part"),
    [
        ("train[:0]", "train[:0]"),
        ("train[:1%]", "train[:1%]"),
        ("train[50%:10%]", "train[50%:10%]"),
        ("test[4:2]", "test[4:2]"),
        ("train + test[-2:-4]", "test[-2:-4]"),
        ("train[100%:]+test", "train[100%:]"),
    ],
)
def test_a_split_with_a_part_that_selects_nothing_is_refused(
    tiny: Data, split: str, part: str, open_split: Callable[[Data, str], Source]
) -> None:
    with pytest.raises(UserError) as caught:
        open_split(tiny, split)
    assert str(caught.value) == (
        f"dataset tiny: each part of a split must select at least 1 example, but {part!r} selects none. The splits are "
        "train (23 examples), test (5 examples). The second number of a part must be the larger one, as in "
        "train[10%:50%]."
    )


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


def test_a_gray_image_among_color_images_is_expanded(tmp_path: Path) -> None:
    gray = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    (found,) = open_source(images_only(tmp_path, [encode_png(gray)], (4, 6, 3)), "train").gather(np.array([0]))["image"]
    np.testing.assert_array_equal(found, np.repeat(gray, 3, axis=-1))


OTHERS = {"RGBA": "PNG", "LA": "PNG", "CMYK": "JPEG", "I;16": "PNG"}
"""Pillow's modes that are neither RGB nor have the same pixels in RGB, and a format for each."""


def in_mode(mode: str) -> bytes:
    """Returns an encoded image of 4 x 6 pixels, of which some are half transparent if the mode has transparency."""
    levels = np.arange(24, dtype=np.uint8).reshape(4, 6, 1) * 10 + list(OTHERS).index(mode)
    image = Image.fromarray(np.concatenate([levels, levels[::-1], levels[:, ::-1], levels + 9], axis=-1), "RGBA")
    if mode == "I;16":
        image = Image.fromarray(levels[..., 0].astype(np.uint16) * 256 + 17)
    file = io.BytesIO()
    (image if image.mode == mode else image.convert(mode)).save(file, OTHERS[mode])
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_with_other_channels_become_what_prepare_folder_makes_of_them(
    tmp_path: Path, channels: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """In memory, streamed, and streamed by worker processes. Only the first such batch prints a message."""
    mode = MODES[channels]
    common = np.full((4, 6, channels), 100, np.uint8)
    plain, encoded = io.BytesIO(), {other: in_mode(other) for other in OTHERS if other != mode}
    Image.fromarray(common.squeeze(-1) if channels == 1 else common).save(plain, "PNG")
    config = images_only(tmp_path, [plain.getvalue(), *encoded.values()], (4, 6, channels))
    wanted = {common.tobytes()}
    for other, content in encoded.items():
        file = tmp_path / f"{other}.png"
        file.write_bytes(content)
        with Image.open(io.BytesIO(read_image_bytes(file, mode))) as image:
            assert image.mode == mode
            wanted.add(np.asarray(image).tobytes())
    count, dropped = len(encoded), "" if channels == 4 else " without transparency"
    assert len(wanted) == count + 1
    held, streamed = open_source(config, "train"), open_source(replace(config, memory_limit=0), "train[0:]")
    telling = f"dataset odd, split train: {count} of {count + 1} images are converted to {mode}{dropped}\n"
    assert capfd.readouterr().out == telling
    for source, workers in ((held, 0), (streamed, 0), (streamed, 2), (streamed, 2)):
        (batch,) = eval_batches(source, count + 1, workers=workers)
        assert {image.tobytes() for image in batch["image"]} == wanted
        assert batch.keys() == {"image", "label", "mask"}
        telling = f"dataset odd, split train[0:]: at least one image was converted to {mode}{dropped}\n"
        said = capfd.readouterr().out
        assert said == (telling if (source, workers) == (streamed, 0) else "")


def test_a_record_that_cannot_be_an_image_is_named(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("F", (6, 4)).save(file, "TIFF")
    for case, encoded, wrong in (
        ("cut", blank(4, 6)[:-30], "is not a complete image"),
        ("text", b"no image", "is not a complete image"),
        ("float", file.getvalue(), "must have 8 or 16 bits per channel, and be gray or in color, got Pillow's mode F"),
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
