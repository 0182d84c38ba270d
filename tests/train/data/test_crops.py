"""A crop is the stated part of a photograph, and depends only on seed, step and row."""

import io
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs.base import Data
from train.data import abstract_source, batches, eval_batches, open_source
from train.data.crops import UNIFORMS_PER_BOX, Box, central_box, random_box
from train.data.decode import decode
from train.data.prepare.tfds_writer import DatasetMetadata, write
from train.data.source import InMemorySource, StreamingSource
from train.process.errors import UserError

RNG = np.random.default_rng(0)
SIZE = (14, 21)


def ramps(width: int, height: int) -> np.ndarray:
    """An image with values from 0 to 255: the first channel rises from left to right, the second from top to bottom."""
    x, y = (255 * (np.arange(side) + 0.5) / side for side in (width, height))
    channels = np.broadcast_arrays(x, y[:, None], np.full((height, width), 80.0))
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def encoded(image: np.ndarray, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Config of 11 train and 5 test JPEGs of different sizes, cropped to SIZE."""
    data_dir = tmp_path_factory.mktemp("photos")
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
    splits = {
        split: [
            {"image": encoded(ramps(40 + 9 * k, 90 - 5 * k), "JPEG", quality=95), "label": k % 3} for k in range(count)
        ]
        for split, count in (("train", 11), ("test", 5))
    }
    write(DatasetMetadata("photos", "1.0.0", features, ""), splits, data_dir)
    return Data(name="photos", dir=str(data_dir), image_size=SIZE, crop=0.1)


def boxes(width: int, height: int, min_area: float, count: int = 4000) -> np.ndarray:
    """Returns [count, 4] random boxes."""
    uniforms = RNG.random((count, UNIFORMS_PER_BOX))
    return np.array([random_box(width, height, SIZE, min_area, row) for row in uniforms])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (90, 200)])
def test_random_boxes_stay_in_the_image_the_area_and_the_aspect_ratio(width: int, height: int) -> None:
    left, top, right, bottom = boxes(width, height, 0.2).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width + 1e-9).all()
    assert (bottom <= height + 1e-9).all()
    area = (right - left) * (bottom - top) / (width * height)
    stretch = (right - left) / (bottom - top) * SIZE[0] / SIZE[1]
    assert 0.2 <= area.min() < 0.21
    assert 0.75 - 1e-9 <= stretch.min() < 0.76
    assert 1.32 < stretch.max() <= 4 / 3 + 1e-9


def test_small_boxes_are_uniform_in_area_position_and_log_aspect_ratio() -> None:
    found = boxes(630, 420, 1e-6)  # With this aspect ratio, every box of up to 3/4 of the area fits.
    wide, high = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    area, stretch = wide * high / (630 * 420), np.log(wide / high * SIZE[0] / SIZE[1]) / np.log(4 / 3)
    small = area < 0.75
    for values in (
        area[small] / 0.75,
        (stretch[small] + 1) / 2,
        found[:, 0] / (630 - wide),
        found[:, 1] / (420 - high),
    ):
        parts, _ = np.histogram(values, 4, (0, 1))
        np.testing.assert_allclose(parts / len(values), 0.25, atol=0.035)


def test_an_image_in_which_no_crop_fits_gets_the_largest_box() -> None:
    """It is the largest allowed box of full height or width."""
    for width, height, wide, high in ((900, 100, 200, 100), (100, 900, 100, 100 / 1.5 / 0.75)):
        found = boxes(width, height, 0.9, count=50)
        np.testing.assert_allclose(found[:, 2] - found[:, 0], wide)
        np.testing.assert_allclose(found[:, 3] - found[:, 1], high)
        assert np.ptp(found[:, :2].max(axis=1)) > 300  # The box moves along the longer side.


def test_the_central_box_is_the_middle_of_the_scaled_image() -> None:
    # The shorter side is scaled to 224 / 0.875 = 256; 16 pixels are then cropped on each side.
    left, top, right, bottom = np.array(central_box(1000, 512, (224, 224))) / 2
    np.testing.assert_allclose((top, bottom), (16, 240))
    np.testing.assert_allclose((left, right), (250 - 112, 250 + 112))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (120, 83, (17.5, 30.25, 101.0, 79.5)),
        (645, 403, (100.5, 20.0, 500.0, 390.5)),  # here the JPEG is decoded at 1/8 of its size
        (645, 403, (601.0, 3.0, 640.0, 33.0)),  # and here at full size, because the box is small
        (5, 4, (0.0, 0.0, 5.0, 4.0)),
    ],
)
def test_a_box_is_cut_out_and_resized(form: str, width: int, height: int, box: Box) -> None:
    image, _ = decode(encoded(ramps(width, height), form, quality=98, subsampling=0), 3, SIZE, lambda *found: box)
    left, top, right, bottom = box
    x, y = ((np.arange(side) + 0.5) / side for side in (SIZE[1], SIZE[0]))
    x, y = 255 * (left + x * (right - left)) / width, 255 * (top + y * (bottom - top)) / height
    inner = np.s_[1:-1, 2:-2] if width > 5 else np.s_[3:-3, 5:-5]  # At the border, the resampling has fewer pixels.
    np.testing.assert_allclose(image[..., 0][inner], np.broadcast_to(x, SIZE)[inner], atol=4)
    np.testing.assert_allclose(image[..., 1][inner], np.broadcast_to(y[:, None], SIZE)[inner], atol=4)


def test_the_box_is_chosen_from_the_size_of_the_full_image() -> None:
    seen = []
    decode(encoded(ramps(645, 403), "JPEG"), 3, SIZE, lambda *found: seen.append(found) or (0.0, 0.0, 645.0, 403.0))
    assert seen == [(645, 403)]


def test_gray_photographs_are_cropped_among_color_ones() -> None:
    gray = ramps(645, 403)[..., 0]
    image, _ = decode(encoded(gray, "JPEG"), 3, SIZE, lambda *found: (100.5, 20.0, 500.0, 390.5))
    assert image.shape == (*SIZE, 3)
    assert (np.ptp(image, axis=-1) == 0).all()
    assert 40 < image[:, 0].min() < image[:, -1].max() < 200


def test_a_truncated_photograph_is_refused_at_any_scale() -> None:
    cut = encoded(ramps(645, 403), "JPEG", quality=95)[:-2000]
    with pytest.raises(ValueError, match="is not a complete image"):
        decode(cut, 3, SIZE, lambda *found: (0.0, 0.0, 645.0, 403.0))


def test_training_crops_change_each_epoch_and_test_crops_are_central(photos: Data) -> None:
    train, test = open_source(photos, "train", train=True), open_source(photos, "train")
    assert isinstance(train, StreamingSource)
    assert isinstance(test, InMemorySource)
    epochs = [next(iter(batches(train, 11, 3, step, step + 1))) for step in range(2)]
    first, second = (batch["image"][np.argsort(batch["index"])] for batch in epochs)
    assert all(not np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    middle = test.gather(np.arange(11))["image"]
    np.testing.assert_array_equal(train.gather(np.arange(11))["image"], middle)
    (whole,) = eval_batches(train, 11)
    np.testing.assert_array_equal(whole["image"], middle)
    (fixed,) = batches(test, 11, 3, 0, 1)
    np.testing.assert_array_equal(fixed["image"], middle[fixed["index"]])


def test_crops_depend_only_on_seed_step_and_row(photos: Data) -> None:
    source = open_source(photos, "train", train=True)
    whole = list(batches(source, 6, 3, 0, 4))
    rows = np.array([1, 2, 5])
    for workers in (0, 2):
        late = list(batches(source, 6, 3, 2, 4, rows, workers))
        for one, other in zip(whole[2:], late, strict=True):
            assert all(np.array_equal(one[key][rows], other[key]) for key in one)
    (other_seed,) = batches(source, 6, 4, 0, 1)
    assert not np.array_equal(whole[0]["image"], other_seed["image"])


def test_a_crop_needs_a_size_and_a_fraction_of_the_area(photos: Data) -> None:
    for make in (open_source, abstract_source):
        with pytest.raises(
            UserError, match=r"--data.crop needs --data.image-size, the size of the resized crops. Set it"
        ):
            make(replace(photos, image_size=None), "train")
        for crop in (0.0, 1.5, float("nan")):
            with pytest.raises(
                UserError, match=r"--data.crop must be a fraction of the image area, above 0 and at most 1, got"
            ):
                make(replace(photos, crop=crop), "train")


def as_resized(photo: np.ndarray) -> np.ndarray:
    """Pillow's result for a JPEG of a photo: the shorter side becomes 24 pixels, then the center is cut out."""
    file = Image.open(io.BytesIO(encoded(photo, "JPEG", quality=95)))
    width, height = (24 * side // min(file.size) for side in file.size)
    top, left = round((height - SIZE[0]) / 2), round((width - SIZE[1]) / 2)
    resized = file.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)[top : top + SIZE[0], left : left + SIZE[1]]


@pytest.mark.parametrize("memory_limit", [0, 1024])
def test_with_resize_the_shorter_side_is_resized_and_the_center_cut_out(photos: Data, memory_limit: int) -> None:
    """Training images are prepared like test images, unless they get random crops."""
    config = replace(photos, crop=None, resize=24, interpolation="bicubic", memory_limit=memory_limit)
    expected = {as_resized(ramps(40 + 9 * k, 90 - 5 * k)).tobytes() for k in range(5)}
    for train in (False, True):
        source = open_source(config, "test", train=train)
        assert {image.tobytes() for image in source.gather(np.arange(5))["image"]} == expected
    cropped = open_source(replace(config, crop=0.1), "test", train=True)
    (batch,) = batches(cropped, 5, 3, 0, 1)
    assert not expected & {image.tobytes() for image in batch["image"]}
    assert {image.tobytes() for image in cropped.gather(np.arange(5))["image"]} == expected


def test_the_interpolation_is_that_of_random_crops_too(photos: Data) -> None:
    found = []
    for interpolation in (None, "bilinear", "nearest"):
        source = open_source(replace(photos, interpolation=interpolation), "train", train=True)
        (batch,) = batches(source, 4, 3, 0, 1)
        found.append(batch["image"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])


@pytest.mark.parametrize("resize", [20, (13, 30), (30, 20), 2**14 + 1])
def test_a_resized_image_must_cover_the_image_size(photos: Data, resize: int | tuple[int, int]) -> None:
    for make in (open_source, abstract_source):
        with pytest.raises(
            UserError, match=r"--data.resize must be at least --data.image-size, 14 21, and at most 16384, got"
        ):
            make(replace(photos, resize=resize), "train")
        with pytest.raises(UserError, match=r"--data.resize needs the size that is cut from the resized images"):
            make(replace(photos, crop=None, resize=resize, image_size=None), "train")
