"""An abstract source has the fields of the opened source, for prepared and for published datasets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny import SHAPE

from configs.base import Data
from train.data import Source, abstract_source, batches, eval_batches, open_source
from train.data.dataset_info import PUBLISHED
from train.data.source import InMemorySource, StreamingSource
from train.process.errors import UserError


def fields(source: Source) -> tuple:
    return (
        source.name,
        source.split,
        source.image_shape,
        source.num_classes,
        source.label_names,
        len(source),
    )


@pytest.mark.parametrize("split", ["train", "test[:60%]", "train[9:]", "train+test[:2]"])
@pytest.mark.parametrize("size", [None, (5, 13)])
def test_an_abstract_source_has_the_fields_of_the_opened_one(
    tiny: Data, split: str, size: tuple[int, int] | None
) -> None:
    config = replace(tiny, image_size=size)
    abstract, opened = abstract_source(config, split), open_source(config, split)
    assert fields(abstract) == fields(opened)
    ours, theirs = (next(iter(batches(source, 6, 3, 0, 1))) for source in (abstract, opened))
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    np.testing.assert_array_equal(ours["index"], theirs["index"])


def test_an_abstract_source_needs_no_records(tiny: Data, tmp_path: Path) -> None:
    for file in ("dataset_info.json", "features.json"):
        folder = tmp_path / "tiny" / "1.0.0"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes((Path(tiny.dir or "") / "tiny/1.0.0" / file).read_bytes())
    source = abstract_source(Data(name="tiny", dir=str(tmp_path)), "train[:9]")
    batch = source.gather(np.array([8, 2, 5, 3]))
    assert batch["image"].shape == (4, *SHAPE)
    assert batch["label"].tolist() == [0, 2, 1, 3]
    assert not batch["image"].any()
    assert {label for batch in eval_batches(source, 4) for label in batch["label"]} == set(range(4))


def test_imagenet_is_known_without_its_files(tmp_path: Path) -> None:
    config = Data(name="imagenet2012", dir=str(tmp_path), image_size=(224, 192))
    train, held_out, test = (
        abstract_source(config, split) for split in ("train[:99%]", "train[99%:]", "validation[-500:]")
    )
    assert len(train) + len(held_out) == 1_281_167
    assert len(held_out) == 12_812
    assert len(test) == 500
    assert (train.image_shape, train.num_classes) == ((224, 192, 3), 1000)
    with pytest.raises(UserError, match=r"imagenet2012 has images of different sizes. Set --data.image-size"):
        abstract_source(replace(config, image_size=None), "train")
    with pytest.raises(UserError, match=r"the split must be one of train, validation .*, got 'test'"):
        abstract_source(config, "test")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_and_labels_are_those_of_tfds(name: str, tmp_path: Path) -> None:
    features = tfds.builder_cls(name)(data_dir=str(tmp_path)).info.features
    assert PUBLISHED[name].image_shape == features["image"].shape
    assert len(PUBLISHED[name].label_names) == features["label"].num_classes


def test_a_dataset_of_which_nothing_is_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"there is no dataset pets .*Datasets that need no preparation here: cifar10, .*mnist"
    ):
        abstract_source(Data(name="pets", dir=str(tmp_path)), "train")


def test_another_split_is_opened_in_the_same_way(tiny: Data) -> None:
    config = replace(tiny, image_size=(5, 13))
    for source in (open_source(config, "train"), open_source(replace(config, memory_limit=0), "train")):
        opened, expected = source.open_split("test[1:]"), open_source(config, "test[1:]")
        assert type(opened) is type(source)
        assert fields(opened) == fields(expected)
        np.testing.assert_array_equal(opened.gather(np.arange(4))["image"], expected.gather(np.arange(4))["image"])
    assert isinstance(source, StreamingSource)
    abstract = abstract_source(config, "train").open_split("test[1:]")
    assert fields(abstract) == fields(expected)
    assert not abstract.gather(np.arange(4))["image"].any()


def test_a_source_made_in_python_has_no_other_split() -> None:
    images = np.zeros((2, 3, 4, 1), np.uint8)
    source = InMemorySource("own", "train", (3, 4, 1), 2, ["a", "b"], images, np.zeros(2, np.int32))
    with pytest.raises(UserError, match="must have open_split to open split 'test'"):
        source.open_split("test")
