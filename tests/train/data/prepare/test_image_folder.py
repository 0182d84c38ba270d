"""A user's folder of images becomes a dataset; errors name the file or folder."""

from pathlib import Path

import numpy as np
import pytest
from image_files import SIZE, classes, save
from PIL import Image

from configs.base import Data
from train.data.decode import decode
from train.data.open import open_source
from train.data.prepare.image_folder import dataset, scan
from train.data.prepare.tfds_writer import write
from train.process.errors import UserError


def read(place: Path, data_dir: Path, split: str, image_size: tuple[int, int] | None = None) -> dict[bytes, str]:
    """Reads the images from the prepared dataset; returns a map from an image's pixels to its class."""
    write(*dataset("own", scan(place, 0.25, 0)), data_dir)
    source = open_source(Data(name="own", dir=str(data_dir), image_size=image_size), split)
    batch = source.gather(np.arange(len(source)))
    labels = (source.label_names[label] for label in batch["label"])
    return {image.tobytes(): label for image, label in zip(batch["image"], labels, strict=True)}


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_each_image_keeps_its_pixels_and_its_class(tmp_path: Path, mode: str) -> None:
    held = classes(tmp_path / "raw", {"cat": 7, "dog": 4, "ant": 9}, mode)
    train, test = (read(tmp_path / "raw", tmp_path / "data", split) for split in ("train", "test"))
    assert {**train, **test} == held
    assert len(train) + len(test) == 20


def test_black_and_white_images_are_gray_ones(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for index in range(2):
            save(tmp_path / "raw" / name / f"{index}.png", "L")
    Image.new("1", SIZE[::-1], 1).save(tmp_path / "raw/dog/white.png")
    train, test = (read(tmp_path / "raw", tmp_path / "data", split) for split in ("train", "test"))
    assert {**train, **test}[b"\xff" * 15] == "dog"


def test_the_split_takes_a_fraction_of_each_class_and_depends_on_the_seed(tmp_path: Path) -> None:
    classes(tmp_path, {"cat": 20, "dog": 8, "ant": 2})
    folder = scan(tmp_path, 0.25, 3)
    assert folder.classes == ["ant", "cat", "dog"]
    assert np.bincount([label for _, label in folder.splits["test"]]).tolist() == [1, 5, 2]
    assert np.bincount([label for _, label in folder.splits["train"]]).tolist() == [1, 15, 6]
    assert folder.splits == scan(tmp_path, 0.25, 3).splits
    assert folder.splits != scan(tmp_path, 0.25, 4).splits


def test_train_and_test_folders_become_the_splits(tmp_path: Path) -> None:
    train = classes(tmp_path / "raw/train", {"cat": 3, "dog": 2})
    test = classes(tmp_path / "raw/test", {"dog": 4})
    assert read(tmp_path / "raw", tmp_path / "data", "train") == train
    assert read(tmp_path / "raw", tmp_path / "data", "test") == test
    save(tmp_path / "raw/test/fox/0.png")
    with pytest.raises(UserError, match="has classes that are missing in train: fox"):
        scan(tmp_path / "raw", 0.25, 0)


def test_jpegs_are_stored_unchanged(tmp_path: Path) -> None:
    classes(tmp_path / "raw", {"cat": 2, "dog": 2})
    save(tmp_path / "raw/cat/photo.JPG", quality=80)
    stored = decode((tmp_path / "raw/cat/photo.JPG").read_bytes(), 3)
    train, test = (read(tmp_path / "raw", tmp_path / "data", split) for split in ("train", "test"))
    assert {**train, **test}[stored.tobytes()] == "cat"


def test_images_are_rotated_upright_and_converted_to_gray_or_rgb(tmp_path: Path) -> None:
    classes(tmp_path / "raw/train", {"cat": 2, "dog": 2})
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was rotated: the top of the scene is on the right.
    lying = save(tmp_path / "raw/test/cat/lying.png", size=SIZE[::-1], exif=exif)
    clear = save(tmp_path / "raw/test/cat/clear.png", "RGBA")
    gray = save(tmp_path / "raw/test/cat/gray.png", "L")
    wanted = {np.rot90(lying, -1).tobytes(), clear[..., :3].tobytes(), np.repeat(gray, 3, axis=-1).tobytes()}
    assert read(tmp_path / "raw", tmp_path / "data", "test").keys() == wanted


def test_images_of_different_sizes_are_prepared_and_resized_when_opened(tmp_path: Path) -> None:
    classes(tmp_path / "raw", {"cat": 2, "dog": 2})
    save(tmp_path / "raw/dog/large.png", size=(9, 11))
    with pytest.raises(UserError, match=r"own has images of different sizes\. Set --data.image-size"):
        read(tmp_path / "raw", tmp_path / "data", "train")
    assert {len(pixels) for pixels in read(tmp_path / "raw", tmp_path / "data", "train", (4, 2))} == {4 * 2 * 3}


def test_damaged_images_are_found_and_other_files_are_skipped(tmp_path: Path) -> None:
    classes(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "cat/cut.png").write_bytes((tmp_path / "cat/0.png").read_bytes()[:-40])
    (tmp_path / "dog/text.jpg").write_text("text")
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(tmp_path / "dog/deep.png")
    (tmp_path / "dog/notes.txt").write_text("text")
    folder = scan(tmp_path, 0.25, 0)
    assert [Path(error.split(" (")[0]).name for error in folder.corrupt] == ["cut.png", "deep.png", "text.jpg"]
    assert "must have 8 bits per channel, got Pillow's mode I;16" in folder.corrupt[1]
    assert [path.name for path in folder.ignored] == ["notes.txt"]
    assert len(folder.splits["train"] + folder.splits["test"]) == 8


def test_a_folder_without_classes_or_with_too_few_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r'--from must be a folder with one folder of images for each class, but ".*absent" is not a folder',
    ):
        scan(tmp_path / "absent", 0.25, 0)
    classes(tmp_path, {"cat": 4})
    with pytest.raises(UserError, match=r"--from: .* must contain at least 2 folders, one for each class, got 1"):
        scan(tmp_path, 0.25, 0)
    classes(tmp_path, {"dog": 1})
    with pytest.raises(
        UserError, match=r"class dog must have at least 2 complete images \(one for training, one for testing\), got 1"
    ):
        scan(tmp_path, 0.25, 0)
    classes(tmp_path, {"dog": 2})
    for fraction in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(UserError, match=r"--test-fraction must be between 0 and 1"):
            scan(tmp_path, fraction, 0)


def test_a_train_or_test_folder_without_images_is_refused(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"cat": 2, "dog": 2})
    (tmp_path / "test/cat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"the class folders in .*test contain no complete JPEG or PNG image"):
        scan(tmp_path, 0.25, 0)
