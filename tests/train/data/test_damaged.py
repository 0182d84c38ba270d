"""A damaged dataset is never read as a different one: the error names the file or record, in memory or streamed."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny import SHAPE, prepare

from configs.base import Data
from train.data import open_source
from train.data.dataset_info import read_dataset_info
from train.data.prepare.tfds_writer import DatasetMetadata, encode_png, write
from train.process.errors import UserError
from train.run.folder import read_image_info

CLASS = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Data, Path]:
    """Returns the config and folder of a dataset to damage."""
    return Data(name="tiny", dir=str(tmp_path)), prepare(tmp_path)


def refused(config: Data, match: str) -> None:
    """Asserts that the dataset is rejected with a one-line error, both in memory and streamed."""
    for memory_limit in (1024, 0):
        with pytest.raises(UserError, match=match) as caught:
            source = open_source(replace(config, memory_limit=memory_limit), "train")
            source.gather(np.arange(len(source)))
        assert str(caught.value).isprintable()


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def train_split(info: dict[str, Any]) -> dict[str, Any]:
    return next(split for split in info["splits"] if split["name"] == "train")


BLOCK = 65_536  # block size of ArrayRecord; a file cut between two blocks is a Riegeli file without its end


@pytest.mark.parametrize("kept", [0, 10, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 60_000, 2 * BLOCK - 1])
def test_a_truncated_file_is_named(dataset: tuple[Data, Path], kept: int) -> None:
    (file,) = dataset[1].glob("*train*")
    file.write_bytes(file.read_bytes()[:kept])
    refused(dataset[0], rf"split train: .*{file.name} is damaged.*Prepare the dataset again")


@pytest.mark.parametrize("content", [b"<html>\n" * 10_000, bytes(2 * BLOCK), None])
def test_a_replaced_or_missing_file_is_named(dataset: tuple[Data, Path], content: bytes | None) -> None:
    (file,) = dataset[1].glob("*train*")
    file.unlink() if content is None else file.write_bytes(content)
    refused(dataset[0], rf"{file.name} is damaged or missing \(.*\)\. Prepare the dataset again")


def test_a_file_with_a_wrong_number_of_records_is_named(dataset: tuple[Data, Path]) -> None:
    for length in ("22", "24", str(2**62)):
        changed(dataset[1] / "dataset_info.json", lambda info, n=length: train_split(info).update(shardLengths=[n]))
        refused(dataset[0], rf"train.array_record.* must have {length} records, got 23. The file is damaged")


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(dataset: tuple[Data, Path]) -> None:
    (file,) = dataset[1].glob("*train*")
    content = file.read_bytes()
    source = open_source(dataset[0], "train")
    whole = source.gather(np.arange(len(source)))
    rng = np.random.default_rng(0)
    held = np.flatnonzero(np.frombuffer(content, np.uint8))
    refusals = 0
    for place in (*rng.choice(held, 60, replace=False), 0, len(content) - 1):
        place = int(place)
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1 :])
        for memory_limit in (1024, 0):
            try:
                source = open_source(replace(dataset[0], memory_limit=memory_limit), "train")
                found = source.gather(np.arange(len(source)))
            except UserError as error:
                refusals += 1
                assert "Prepare the dataset again" in str(error)
                assert str(error).isprintable()
            else:
                for key in whole:
                    np.testing.assert_array_equal(found[key], whole[key])
    assert refusals > 60


def test_a_damaged_record_is_named_among_those_of_a_batch(dataset: tuple[Data, Path]) -> None:
    source = open_source(replace(dataset[0], memory_limit=0), "train")
    (file,) = dataset[1].glob("*train*")
    content = bytearray(file.read_bytes())
    stored = source.records.read([17])[0].image  # type: ignore[attr-defined]
    content[content.index(stored[20:60])] ^= 1
    file.write_bytes(content)
    source = open_source(replace(dataset[0], memory_limit=0), "train")
    source.gather(np.array([3, 16, 18]))
    with pytest.raises(UserError, match=r"dataset tiny, split train, record 17: .*\. Prepare the dataset again"):
        source.gather(np.array([3, 17, 18]))
    # as a worker process reads it and reports the error
    with pytest.raises(UserError, match="record 17") as caught:
        pickle.loads(pickle.dumps(source)).gather(np.array([17]))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_opening_a_streamed_split_checks_its_first_record(tmp_path: Path) -> None:
    features = {"image": tfds.features.Image(shape=SHAPE), "label": tfds.features.ClassLabel(num_classes=1)}
    image = encode_png(np.zeros((7, 11, 3), np.uint8))
    write(DatasetMetadata("odd", "1.0.0", features, ""), {"train": [{"image": image, "label": 0}]}, tmp_path)
    with pytest.raises(UserError, match=r"record 0: the image must have shape \(11, 7, 3\), got \(7, 11, 3\)"):
        open_source(Data(name="odd", dir=str(tmp_path), memory_limit=0), "train")


@pytest.mark.parametrize(("feature", "other"), [("label", "sublabel"), ("image", "picture")])
def test_a_record_without_an_image_or_a_label_is_named(tmp_path: Path, feature: str, other: str) -> None:
    features = {"image": tfds.features.Image(shape=SHAPE), "label": tfds.features.ClassLabel(num_classes=1)}
    written = {other if key == feature else key: value for key, value in features.items()}
    example = dict(zip(written, (encode_png(np.zeros(SHAPE, np.uint8)), 0), strict=True))
    file = write(DatasetMetadata("odd", "1.0.0", written, ""), {"train": [example]}, tmp_path) / "features.json"
    file.write_text(file.read_text().replace(f'"{other}"', f'"{feature}"'))
    refused(Data(name="odd", dir=str(tmp_path)), "split train, record 0 must have one image and one label")


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"NaN", b'"text"', b"[" * 10_000, b'{"a":' * 10_000, b"1" * 5_000, None],
)
def test_an_invalid_description_is_named(dataset: tuple[Data, Path], file: str, content: bytes | None) -> None:
    path = dataset[1] / file
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    refused(dataset[0], rf"{file} cannot be read .*\. Prepare the dataset again")


@pytest.mark.parametrize(
    "change",
    [
        {"splits": {}},
        {"splits": ["train"]},
        {"name": ["tiny"]},
        {"name": "../tiny"},
        {"name": "tiny\n"},
        {"fileFormat": {}},
        {"fileFormat": "\n"},
        {"splits": [{"name": "train", "shardLengths": ["x"]}]},
        {"splits": [{"name": "train", "shardLengths": ["-23"]}]},
        {"splits": [{"name": "train", "shardLengths": [23.5]}]},
        {"splits": [{"name": "train", "shardLengths": [str(2**64)]}]},
        {"splits": [{"name": "train", "shardLengths": ["1" * 5000]}]},
        {"splits": [{"name": "train", "shardLengths": "23"}]},
        {"splits": [{"name": "train/../x", "shardLengths": ["23"]}]},
        {"splits": [{"name": "train", "shardLengths": ["23"], "filepathTemplate": "../{DATASET}-{SPLIT}"}]},
        {"splits": [{"name": "train", "shardLengths": ["23"], "filepathTemplate": "{DATASET:>999999999}"}]},
        {"splits": [{"name": "train", "shardLengths": ["23"], "filepathTemplate": "{DATASET.__class__}"}]},
    ],
)
def test_impossible_splits_are_refused(dataset: tuple[Data, Path], change: dict[str, Any]) -> None:
    changed(dataset[1] / "dataset_info.json", lambda info: info.update(change))
    refused(dataset[0], r"dataset_info.json cannot be read \(.*\)\. Prepare the dataset again")


def test_a_split_without_records_has_no_examples(dataset: tuple[Data, Path]) -> None:
    changed(dataset[1] / "dataset_info.json", lambda info: train_split(info).update(shardLengths=[]))
    refused(dataset[0], "each part of a split must select at least 1 example, but 'train' selects none")


@pytest.mark.parametrize("dimensions", [["11", "7"], ["0", "7", "3"], [str(2**40)] * 2 + ["3"], [{}]])
def test_impossible_image_shapes_are_refused(dataset: tuple[Data, Path], dimensions: list[Any]) -> None:
    def change(features: dict[str, Any]) -> None:
        features["featuresDict"]["features"]["image"]["image"]["shape"]["dimensions"] = dimensions

    changed(dataset[1] / "features.json", change)
    refused(dataset[0], r"features.json cannot be read \((images must|Failed to parse)")


@pytest.mark.parametrize(
    ("dtype", "channels", "told"),
    [
        ("uint16", "1", "uint16 and 1 channel"),
        ("float32", "3", "float32 and 3 channels"),
        ("uint8", "2", "uint8 and 2 channels"),
        ("uint8", "-1", "uint8 and any number of channels"),
    ],
)
def test_images_that_are_not_supported_are_not_called_damaged(
    dataset: tuple[Data, Path], dtype: str, channels: str, told: str
) -> None:
    def change(features: dict[str, Any]) -> None:
        image = features["featuresDict"]["features"]["image"]["image"]
        image["dtype"], image["shape"]["dimensions"] = dtype, ["11", "7", channels]

    changed(dataset[1] / "features.json", change)
    with pytest.raises(UserError) as caught:
        open_source(dataset[0], "train")
    assert str(caught.value) == (
        f"dataset tiny must have uint8 images with 1 (gray), 3 (RGB) or 4 (RGBA) channels, got {told}. "
        "Convert the images to 8-bit gray or RGB, and write the dataset again or run `python -m train.prepare folder`."
    )


@pytest.mark.parametrize("classes", ["0", "-1", str(2**62), "4.5", None, ["4"]])
def test_impossible_numbers_of_classes_are_refused(dataset: tuple[Data, Path], classes: object) -> None:
    def change(features: dict[str, Any]) -> None:
        features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = classes

    changed(dataset[1] / "features.json", change)
    refused(dataset[0], r"features.json cannot be read ")


@pytest.mark.parametrize("content", [b"a\nb\nc\n", b"a\nb\nc\nc\n", b"a\nb\nc\nd\ne\n", b"\xff\n"])
def test_label_names_that_do_not_match_the_classes_are_refused(dataset: tuple[Data, Path], content: bytes) -> None:
    (dataset[1] / "label.labels.txt").write_bytes(content)
    refused(dataset[0], r"label.labels.txt cannot be read .*\. Prepare the dataset again")


def test_descriptions_may_begin_with_a_byte_order_mark(dataset: tuple[Data, Path]) -> None:
    """As editors on Windows write it."""
    for name in ("label.labels.txt", "features.json", "dataset_info.json"):
        (dataset[1] / name).write_bytes(b"\xef\xbb\xbf" + (dataset[1] / name).read_bytes())
    assert open_source(dataset[0], "train").label_names == list("abcd")


def test_names_of_a_dataset_and_of_a_run_are_in_nfc(dataset: tuple[Data, Path], tmp_path: Path) -> None:
    """A run resumes if only the code points of a name changed."""
    (dataset[1] / "label.labels.txt").write_text("a\nb\ncafe\u0301\nd\n")
    source = open_source(dataset[0], "train")
    assert source.label_names == ["a", "b", "caf\xe9", "d"]
    (tmp_path / "images.json").write_text(json.dumps({"image_shape": SHAPE, "label_names": ["a", "cafe\u0301"]}))
    assert read_image_info(tmp_path).label_names == ["a", "caf\xe9"]
    (dataset[1] / "label.labels.txt").write_text("caf\xe9\nb\ncafe\u0301\nd\n")
    refused(dataset[0], "the file must have 4 lines with different label names, got 3")


def test_no_code_named_in_a_description_is_run(
    dataset: tuple[Data, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_features.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(str(tmp_path))

    def change(features: dict[str, Any]) -> None:
        inner = features["featuresDict"]["features"]
        inner["more"] = {"pythonClassName": "hostile_features.Feature", "tensor": {}}
        inner["label"]["pythonClassName"] = features["pythonClassName"] = "hostile_features.Feature"

    changed(dataset[1] / "features.json", change)
    changed(dataset[1] / "dataset_info.json", lambda info: info.update(moduleName="hostile_features"))
    assert len(open_source(dataset[0], "train")) == 23


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_published_dataset_described_by_tfds_is_read_alike(name: str, tmp_path: Path) -> None:
    builder = tfds.builder_cls(name)(data_dir=str(tmp_path), file_format="array_record")
    features = builder.info.features
    image, label = features["image"], features["label"]
    metadata = DatasetMetadata(name, str(builder.version), features, "")
    example = dict.fromkeys(features, "text") | {
        "image": encode_png(np.zeros(image.shape, np.uint8)),
        "label": label.names[1],
    }
    folder = write(metadata, {"train": [example]}, tmp_path)
    ours, theirs = read_dataset_info(name, str(tmp_path)), tfds.builder_from_directory(folder).info
    assert ours.image_shape == theirs.features["image"].shape
    assert ours.label_names == theirs.features["label"].names == label.names
    assert ours.splits == {split: info.num_examples for split, info in theirs.splits.items()}
