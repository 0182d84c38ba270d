"""A user's folder of images becomes a dataset; errors name the file or folder."""

import os
import warnings
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from image_files import SIZE, classes, save
from PIL import Image

from configs.base import Data
from train.data.decode import IMAGE_ERRORS, decode, inspect_image
from train.data.open import open_source
from train.data.prepare.image_folder import ImageFolder, dataset, scan
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


@pytest.mark.parametrize("memory_limit", [0, 1])
def test_each_image_keeps_the_name_of_its_file(tmp_path: Path, memory_limit: int) -> None:
    """The name is relative to the folder. A character that is not printable is an escape code."""
    saved = {save(tmp_path / "raw" / name).tobytes(): name for name in ("고양이/a b.png", "고양이/c.png", "قطة/1.png")}
    saved[save(tmp_path / "raw/قطة/2\n\udcff.png").tobytes()] = "قطة/2\\n\\udcff.png"
    write(*dataset("own", scan(tmp_path / "raw", 0.25, 0)), tmp_path / "data")
    found = {}
    for split in ("train", "test"):
        source = open_source(Data(name="own", dir=str(tmp_path / "data"), memory_limit=memory_limit), split)
        order = [*range(len(source))][::-1]
        images = source.gather(np.array(order))["image"]
        found |= {x.tobytes(): name for x, name in zip(images, source.read_file_names(order), strict=True)}
    assert found == saved


def test_a_dataset_without_names_of_files_or_with_damaged_records_has_empty_names(tmp_path: Path) -> None:
    assert open_source(Data(), "test[:9]").read_file_names([3, 1]) == ["", ""]
    classes(tmp_path / "raw", {"cat": 3, "dog": 2})
    prepared = write(*dataset("own", scan(tmp_path / "raw", 0.25, 0)), tmp_path / "data")
    source = open_source(Data(name="own", dir=str(tmp_path / "data")), "train")
    for file in prepared.glob("*.array_record*"):
        file.write_bytes(bytes(file.stat().st_size))
    assert source.read_file_names([1, 0]) == ["", ""]


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
    stored, _ = decode((tmp_path / "raw/cat/photo.JPG").read_bytes(), 3)
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
    Image.fromarray(np.zeros(SIZE, np.float32)).save(tmp_path / "dog/float.tif")
    (tmp_path / "dog/empty.png").write_text("")
    (tmp_path / "dog/phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")  # some programs only rename HEIC files
    (tmp_path / "dog/notes.txt").write_text("text")
    folder = scan(tmp_path, 0.25, 0)
    errors = {Path(path).name: error for path, error in (line.split(" (", 1) for line in folder.corrupt)}
    assert list(errors) == ["cut.png", "empty.png", "float.tif", "phone.jpg", "text.jpg"]
    assert "must have 8 or 16 bits per channel, and be gray or in color, got Pillow's mode F" in errors["float.tif"]
    assert errors["empty.png"] == "is empty)"
    assert "convert them to JPEG" in errors["phone.jpg"]
    assert errors["text.jpg"] == "is not one of BMP, GIF, JPEG, PNG, TIFF, WEBP)"
    left_out = {path.name: reason for path, reason in folder.left_out}
    assert left_out.pop("notes.txt") == "not a format that is read"
    assert left_out == dict.fromkeys(errors, "cannot be read as an image")
    assert len(folder.splits["train"] + folder.splits["test"]) == 8


def test_a_folder_without_classes_or_with_too_few_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r'--from must be a folder with one folder of images for each class, but ".*absent" is not a folder',
    ):
        scan(tmp_path / "absent", 0.25, 0)
    classes(tmp_path, {"cat": 4})
    with pytest.raises(
        UserError, match=r"--from: .* must contain at least 2 folders, one for each class, got 1 \(cat\)\."
    ):
        scan(tmp_path, 0.25, 0)
    classes(tmp_path, {"dog": 1})
    with pytest.raises(
        UserError,
        match=r"class dog must have at least 2 readable images \(one for training, one for testing\), got 1",
    ):
        scan(tmp_path, 0.25, 0)
    classes(tmp_path, {"dog": 2})
    for fraction in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(UserError, match=r"--test-fraction must be between 0 and 1"):
            scan(tmp_path, fraction, 0)


def test_a_train_or_test_folder_without_images_is_refused(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"cat": 2, "dog": 2})
    (tmp_path / "test/cat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"the class folders in .*test contain no readable image\. There is no"):
        scan(tmp_path, 0.25, 0)


def test_a_record_has_the_same_bytes_in_each_process(tmp_path: Path) -> None:
    """Its features are sorted by name. Else protobuf's order of them depends on the process."""
    classes(tmp_path / "raw", {"cat": 2, "dog": 2})
    (file, *_) = write(*dataset("own", scan(tmp_path / "raw", 0.5, 0)), tmp_path / "data").glob("*train*")
    content = ArrayRecordReader(str(file)).read([0])[0]
    places = [content.index(name) for name in (b"file_name", b"image", b"label")]
    assert places == sorted(places)


def test_a_fingerprint_depends_on_the_files_and_not_on_their_place(tmp_path: Path) -> None:
    """Preparing the same images again gives the same fingerprint."""
    classes(tmp_path / "raw", {"cat": 6, "dog": 5})

    def fingerprints(place: str, name: str) -> list[str]:
        write(*dataset(name, scan(tmp_path / "raw", 0.25, 0)), tmp_path / place)
        config = Data(name=name, dir=str(tmp_path / place))
        return [open_source(config, split).fingerprint for split in ("train", "test", "train[:3]")]

    first = fingerprints("data", "own")
    assert len(set(first)) == 3
    assert fingerprints("elsewhere", "other") == first
    save(tmp_path / "raw" / "cat" / "0.png")  # another image with the same name
    assert fingerprints("data2", "own") != first


def paths(folder: ImageFolder, split: str, place: Path) -> list[str]:
    """Names of the files of a split, relative to `place`."""
    return [str(path.relative_to(place)) for path, _ in folder.splits[split]]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ({"train": 3, "val": 2}, {"train": 3, "test": 2}),
        ({"Training": 3, "Testing": 2}, {"train": 3, "test": 2}),
        ({"TRAIN": 3, "dev": 2, "Test": 1}, {"train": 3, "validation": 2, "test": 1}),
        ({"train": 3, "valid": 2, "testing": 1}, {"train": 3, "validation": 2, "test": 1}),
        ({"training": 3, "eval": 2, "test": 1}, {"train": 3, "validation": 2, "test": 1}),
        ({"train": 3, "validation": 2}, {"train": 3, "test": 2}),
    ],
)
def test_folders_with_the_names_of_splits_are_splits(
    tmp_path: Path, names: dict[str, int], splits: dict[str, int]
) -> None:
    for name, count in names.items():
        classes(tmp_path / "raw" / name, {"cat": count, "dog": 1})
    folder = scan(tmp_path / "raw", 0.25, 0)
    assert folder.classes == ["cat", "dog"]
    assert {split: len(files) - 1 for split, files in folder.splits.items()} == splits
    assert folder.left_out == [] and set(folder.roots) == set(splits)
    write(*dataset("own", folder), tmp_path / "data")
    for split, count in splits.items():
        assert len(open_source(Data(name="own", dir=str(tmp_path / "data")), split)) == count + 1


def test_what_is_beside_the_splits_and_the_classes_is_left_out_by_name(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"cat": 2, "dog": 2})
    classes(tmp_path / "test", {"cat": 1})
    for name in ("unlabeled/0.png", "loose.png", "train/loose.jpg", "test/readme"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    folder = scan(tmp_path, 0.25, 0)
    assert {path.relative_to(tmp_path).as_posix() for path, _ in folder.left_out} == {
        "unlabeled/0.png",
        "loose.png",
        "train/loose.jpg",
        "test/readme",
    }
    assert {reason for _, reason in folder.left_out} == {"not in the folder of a class"}


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (
            ["train/cat", "train/dog", "holdout/cat", "holdout/dog"],
            "train has the name of a split and contains folders",
        ),
        (["test/cat", "test/dog", "val/cat", "val/dog"], "test has the name of a split and contains folders"),
        (["train/cat", "train/dog", "val/cat", "valid/cat"], r"one folder for the split validation, got val, valid"),
        (
            ["cat/train", "cat/test", "dog/train", "dog/test"],
            "a class must not contain splits, but .*cat contains test, ",
        ),
        (["train/cat", "train/dog"], r"got 1 \(train\)\. If the classes are in that folder, pass --from .*/train"),
        (
            ["pets/cat", "pets/dog", "__MACOSX/pets"],
            r"got 1 \(pets\)\. If the classes are in that folder, pass --from ",
        ),
        (["train/cat", "train/dog", "val/cat", "val/fox"], "val has classes that are missing in train: fox"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path: Path, folders: list[str], told: str) -> None:
    for folder in folders:
        classes(tmp_path, {folder: 2})
    with pytest.raises(UserError, match=told) as caught:
        scan(tmp_path, 0.25, 0)
    assert str(caught.value).isprintable()


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    classes(tmp_path, {"train": 2, "bus": 2, "car": 2})
    assert scan(tmp_path, 0.25, 0).classes == ["bus", "car", "train"]


def test_hidden_copies_are_no_images_and_system_folders_no_classes(tmp_path: Path) -> None:
    classes(tmp_path, {"cat": 2, "dog": 2})
    hidden = [
        "cat/.ipynb_checkpoints/0.png",
        "cat/more/@eaDir/0.png/thumb.jpg",
        "dog/._0.png",
        "__MACOSX/cat/._0.png",
        "@eaDir/0.png",
        ".git/0.png",
        ".DS_Store",
    ]
    for name in hidden:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "cat/0.png").read_bytes())
    folder = scan(tmp_path, 0.25, 0)
    assert folder.classes == ["cat", "dog"]
    assert sorted(paths(folder, "train", tmp_path) + paths(folder, "test", tmp_path)) == [
        "cat/0.png",
        "cat/1.png",
        "dog/0.png",
        "dog/1.png",
    ]
    assert {path.relative_to(tmp_path).as_posix() for path, _ in folder.left_out} == set(hidden)
    assert {reason for _, reason in folder.left_out} == {"hidden"}
    assert folder.corrupt == []


def test_equal_files_in_two_splits_or_two_classes_are_counted(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"cat": 4, "dog": 3})
    classes(tmp_path / "test", {"cat": 2, "dog": 2})
    assert scan(tmp_path, 0.25, 0).copies == []
    for source, copy in {"cat/0": "cat/same", "cat/1": "cat/again", "dog/2": "cat/wrong"}.items():
        (tmp_path / "test" / f"{copy}.png").write_bytes((tmp_path / "train" / f"{source}.png").read_bytes())
    splits, labels = scan(tmp_path, 0.25, 0).copies
    assert splits.startswith("images of test that are also in train: 3 of 7. ")
    assert labels.startswith("images that are in more than one class: 1. ") and labels.endswith(
        "/dog/2.png in cat and dog"
    )


def test_linked_folders_are_read_once_and_links_in_a_circle_end(tmp_path: Path) -> None:
    classes(tmp_path / "raw", {"cat": 2, "dog": 2})
    classes(tmp_path, {"elsewhere/more": 2, "store/ant": 2})
    (tmp_path / "raw/cat/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw/cat/twice").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/circle").symlink_to(tmp_path / "raw/cat")
    (tmp_path / "raw/ant").symlink_to(tmp_path / "store/ant")
    (tmp_path / "raw/dog/itself").symlink_to(tmp_path / "raw/dog/itself")
    folder = scan(tmp_path / "raw", 0.5, 0)
    assert folder.classes == ["ant", "cat", "dog"]
    assert sorted(paths(folder, "train", tmp_path / "raw") + paths(folder, "test", tmp_path / "raw")) == [
        "ant/0.png",
        "ant/1.png",
        "cat/0.png",
        "cat/1.png",
        "cat/linked/more/0.png",
        "cat/linked/more/1.png",
        "dog/0.png",
        "dog/1.png",
    ]
    assert sorted(path.name for path, reason in folder.left_out if "listed already" in reason) == ["circle", "twice"]


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """Opening it would wait for a writer forever."""
    classes(tmp_path, {"cat": 2, "dog": 2})
    os.mkfifo(tmp_path / "cat/pipe.png")
    (tmp_path / "dog/linked.png").symlink_to(tmp_path / "cat/pipe.png")
    assert {(path.name, reason) for path, reason in scan(tmp_path, 0.5, 0).left_out} == {
        ("pipe.png", "not a file"),
        ("linked.png", "not a file"),
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webp", {"lossless": True}),
        ("a.bmp", {}),
        ("a.gif", {}),
        ("a.tif", {}),
        ("a.TIFF", {"compression": "tiff_lzw"}),
        ("a.tif", {"compression": "tiff_deflate"}),
    ],
)
def test_each_format_is_stored_with_the_same_pixels(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    classes(tmp_path / "raw/train", {"cat": 2, "dog": 2})
    pixels = np.repeat(save(tmp_path / "gray.png", "L"), 3, axis=-1)
    (tmp_path / "raw/test/cat").mkdir(parents=True)
    image = Image.fromarray(pixels)
    (image.convert("L") if name.endswith("gif") else image).save(tmp_path / "raw/test/cat" / name, **options)
    assert read(tmp_path / "raw", tmp_path / "data", "test").keys() == {pixels.tobytes()}


def test_sixteen_bits_of_gray_keep_the_upper_eight(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for index, kind in enumerate(("png", "tif")):
            deep = np.full(SIZE, 256 * (100 * index + len(list(tmp_path.rglob("*.*")))) + 77, np.uint16)
            (tmp_path / "raw" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(deep).save(tmp_path / "raw" / name / f"a.{kind}")
    train, test = (read(tmp_path / "raw", tmp_path / "data", split) for split in ("train", "test"))
    values = {0: "cat", 101: "cat", 2: "dog", 103: "dog"}
    assert {**train, **test} == {bytes([value]) * 15: name for value, name in values.items()}


def test_a_tiff_is_turned_upright_once(tmp_path: Path) -> None:
    classes(tmp_path / "raw/train", {"cat": 2, "dog": 2})
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = save(tmp_path / "raw/test/cat/lying.tif", size=SIZE[::-1], exif=exif)
    assert read(tmp_path / "raw", tmp_path / "data", "test").keys() == {np.rot90(lying, -1).tobytes()}


def test_a_cut_tiff_is_refused_at_any_length(tmp_path: Path) -> None:
    save(tmp_path / "whole.tif", compression="tiff_lzw")
    content = (tmp_path / "whole.tif").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.tif").write_bytes(content[:length])
        try:
            with warnings.catch_warnings(action="ignore"):  # Pillow warns about a cut list of tags, then refuses it.
                inspect_image(tmp_path / "cut.tif")
        except IMAGE_ERRORS:
            continue
        assert length >= len(content) - 1  # The last byte may be padding.


def test_an_error_for_too_few_images_names_what_is_there_instead(tmp_path: Path) -> None:
    classes(tmp_path, {"cat": 4, "dog": 1})
    for name in ("0.heic", "1.HEIC", "notes.txt", "cut.png", ".hidden.png"):
        (tmp_path / "dog" / name).write_text("text")
    with pytest.raises(UserError) as caught:
        scan(tmp_path, 0.25, 0)
    message = str(caught.value)
    assert "class dog must have at least 2 readable images" in message and "got 1. Left out in" in message
    assert (
        "HEIC and AVIF are not read, convert them to JPEG (magick photo.heic photo.jpg): 2 .heic, such as " in message
    )
    for part in ("cannot be read as an image: 1 .png", "not a format that is read: 1 .txt", "hidden: 1 .png"):
        assert part in message
    classes(tmp_path / "splits/train", {"cat": 2, "dog": 0, "fox": 1})
    classes(tmp_path / "splits/test", {"cat": 2})
    (tmp_path / "splits/train/dog").mkdir()
    with pytest.raises(
        UserError, match=r"class dog must have at least 1 readable image, got 0\. There is no other file"
    ):
        scan(tmp_path / "splits", 0.25, 0)


def test_the_table_counts_each_class_in_each_split(tmp_path: Path) -> None:
    classes(tmp_path / "train", {"cat": 12, "elephant": 2})
    classes(tmp_path / "val", {"cat": 3})
    classes(tmp_path / "test", {"elephant": 1})
    assert [line.split() for line in scan(tmp_path, 0.25, 0).table()] == [
        ["class", "train", "validation", "test"],
        ["cat", "12", "3", "0"],
        ["elephant", "2", "0", "1"],
        ["(all)", "14", "3", "1"],
    ]


NFC, NFD = "caf\xe9", "cafe\u0301"
"""The same name, with one and with two code points for its last letter."""


def test_a_class_has_one_name_in_all_splits_even_if_its_folders_have_other_code_points(tmp_path: Path) -> None:
    written = classes(tmp_path / "raw/train", {NFD: 2, "zoo": 1}) | classes(tmp_path / "raw/test", {NFC: 1, "zoo": 1})
    folder = scan(tmp_path / "raw", 0.25, 0)
    assert folder.classes == [NFC, "zoo"] and not folder.left_out
    found = {
        decode(path.read_bytes(), 3)[0].tobytes(): folder.classes[label]
        for files in folder.splits.values()
        for path, label in files
    }
    assert found == {pixels: normalize("NFC", name) for pixels, name in written.items()}


def test_two_classes_whose_names_look_the_same_are_refused_with_their_code_points(tmp_path: Path) -> None:
    classes(tmp_path, {NFC: 2, NFD: 2})
    with pytest.raises(UserError) as caught:
        scan(tmp_path, 0.25, 0)
    assert str(caught.value) == (
        f"--from: the classes in {tmp_path} must have different names, got 'cafe\\u0301' and 'caf\\xe9', which look "
        "the same. Put their images into one folder."
    )
