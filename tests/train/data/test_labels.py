"""Which labels are known if only some are."""

import dataclasses

import numpy as np
import pytest

from configs.base import Data
from train.data import open_source
from train.data.labels import UNKNOWN, balanced_weights, known_labels
from train.data.source import InMemorySource, StreamingSource
from train.process.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [10, 20, 30])).astype(np.int32)
SOURCE = InMemorySource("shapes", "train", (2, 3, 1), 3, ["a", "b", "c"], np.zeros((60, 2, 3, 1), np.uint8), LABELS)


def test_each_class_has_the_same_number_of_known_labels_chosen_by_the_seed():
    known = known_labels(SOURCE, 12, seed=0)
    shown = known != UNKNOWN
    np.testing.assert_array_equal(known[shown], LABELS[shown])
    assert np.bincount(known[shown]).tolist() == [4, 4, 4]
    np.testing.assert_array_equal(known, known_labels(SOURCE, 12, seed=0))
    assert not np.array_equal(known, known_labels(SOURCE, 12, seed=1))


def test_all_labels_are_known_unless_a_number_is_given():
    np.testing.assert_array_equal(known_labels(SOURCE, None, seed=0), LABELS)
    assert (known_labels(SOURCE, 0, seed=0) == UNKNOWN).all()
    assert (known_labels(SOURCE, 30, seed=0) != UNKNOWN).sum() == 30


@pytest.mark.parametrize("count", [33, 61, 10, -3])
def test_too_many_labels_or_an_uneven_number_is_refused(count):
    with pytest.raises(
        UserError,
        match=rf"must be a multiple of 3 \(the number of classes\) up to 30, got {count}.* shapes, split train, has 10",
    ):
        known_labels(SOURCE, count, seed=0)


def test_the_weight_of_a_class_is_inverse_to_its_size():
    np.testing.assert_allclose(balanced_weights(SOURCE), [60 / (3 * 10), 60 / (3 * 20), 60 / (3 * 30)])
    rare = dataclasses.replace(SOURCE, labels=np.minimum(LABELS, 1))
    with pytest.raises(UserError, match=r"needs an example of each class, but shapes, split train, has none of c"):
        balanced_weights(rare)


def test_the_labels_of_a_streamed_split_are_read_without_its_images(monkeypatch):
    data = Data(memory_limit=0)
    stream, whole = open_source(data, "train[:50]"), open_source(Data(), "train[:50]")
    assert isinstance(stream, StreamingSource) and isinstance(whole, InMemorySource)
    monkeypatch.setattr("train.data.source.decode", None)
    indices = np.array([7, 3, 49, 7])
    np.testing.assert_array_equal(stream.gather_labels(indices), whole.labels[indices])
    np.testing.assert_array_equal(known_labels(stream, None, 0), whole.labels)
