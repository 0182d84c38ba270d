"""The bundled sample is a balanced part of MNIST; anyone with MNIST can draw the same sample again."""

import json
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from benchmarks.makers.mnist_sample import DESCRIPTION, choose_examples, write_sample
from configs.base import Data
from train.data import open_source
from train.data.locate import locate_dataset
from train.data.prepare.tfds_writer import DatasetMetadata, encode_png, write


def test_the_sample_has_equally_many_images_of_each_digit_and_no_duplicates() -> None:
    seen: set[bytes] = set()
    for split, per_class in (("train", 1000), ("test", 200)):
        source = open_source(Data(), split)
        batch = source.gather(np.arange(len(source)))
        assert source.image_shape == (28, 28, 1)
        assert source.label_names == [str(digit) for digit in range(10)]
        assert np.bincount(batch["label"]).tolist() == [per_class] * 10
        seen |= {image.tobytes() for image in batch["image"]}
    assert len(seen) == 12_000


def test_the_sample_names_its_author_and_license_and_opens_with_tfds() -> None:
    """The sample is also small."""
    folder = locate_dataset("mnist_sample")
    assert sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file()) < 5_000_000
    license = (folder.parent / "LICENSE").read_text()
    assert json.loads((folder / "dataset_info.json").read_text())["description"] == DESCRIPTION
    assert all(word in license for word in ("CC BY-SA 3.0", "Yann LeCun", "Corinna Cortes", "Burges"))
    example = tfds.builder_from_directory(folder).as_data_source(
        "test", decoders={"image": tfds.decode.SkipDecoding()}
    )[0]
    assert example["image"].startswith(b"\x89PNG")


def test_the_same_seed_draws_the_same_examples_of_each_class() -> None:
    labels = np.repeat(np.arange(3), (7, 5, 9))
    drawn = choose_examples(labels, 4, seed=0)
    assert np.bincount(labels[drawn]).tolist() == [4, 4, 4]
    assert len(set(drawn.tolist())) == 12
    assert drawn.tolist() == choose_examples(labels, 4, seed=0).tolist() != choose_examples(labels, 4, seed=1).tolist()


def test_the_script_draws_examples_from_a_prepared_mnist(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = {"train": 1001, "test": 203}
    splits = {
        split: [{"image": encode_png(rng.integers(0, 256, (28, 28, 1), np.uint8)), "label": 4} for _ in range(count)]
        for split, count in counts.items()
    }
    features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
    write(DatasetMetadata("mnist", "3.0.1", features, ""), splits, tmp_path)
    folder = write_sample(tmp_path / "out", str(tmp_path))
    for split, kept in (("train", 1000), ("test", 200)):
        whole = {
            example["image"].tobytes()
            for example in tfds.builder_from_directory(tmp_path / "mnist/3.0.1").as_data_source(split)
        }
        part = {example["image"].tobytes() for example in tfds.builder_from_directory(folder).as_data_source(split)}
        assert part < whole
        assert len(part) == kept
