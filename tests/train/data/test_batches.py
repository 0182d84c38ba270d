"""Batches are a pure function of seed and step, for any subset of rows and for both kinds of source."""

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from configs.base import Data
from train.data import Source, batches, eval_batches, open_source
from train.data.prefetch import prefetch
from train.process.errors import RunStopped, UserError


class Numbers(Source):
    """A source whose image is its index, so that a batch shows which examples were drawn."""

    def __init__(self, count: int) -> None:
        super().__init__("numbers", "train", (1, 1, 1), 10, list("0123456789"))
        object.__setattr__(self, "count", count)

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: np.ndarray, uniforms: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {"image": indices.astype(np.uint8).reshape(-1, 1, 1, 1), "label": (indices % 10).astype(np.int32)}


def drawn(iterator: Iterator[dict[str, np.ndarray]]) -> list[int]:
    return [int(index) for batch in iterator for index in batch["image"].ravel()]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in one
    )


def test_each_epoch_shows_every_example_once_in_a_new_order() -> None:
    order = drawn(batches(Numbers(35), 7, seed=3, start_step=0, stop_step=4 * 5))
    epochs = [order[start : start + 35] for start in range(0, 4 * 35, 35)]
    assert all(sorted(epoch) == list(range(35)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(35)) not in epochs


def test_a_batch_contains_the_index_of_each_example_in_the_split() -> None:
    for rows in (np.arange(4), np.arange(1, 8, 2)):
        (batch,) = batches(Numbers(35), 8, seed=3, start_step=4, stop_step=5, rows=rows)
        assert batch["index"].dtype == np.int32
        assert batch["index"].tolist() == batch["image"].ravel().tolist()


def test_epochs_follow_each_other_without_a_gap() -> None:
    """Also if the batch size does not divide the split."""
    order = drawn(batches(Numbers(10), 4, seed=3, start_step=0, stop_step=5))
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))


def test_a_batch_larger_than_the_split_contains_complete_epochs() -> None:
    (batch,) = batches(Numbers(5), 15, seed=3, start_step=0, stop_step=1)
    assert np.bincount(batch["image"].ravel()).tolist() == [3] * 5


def test_the_batch_of_a_step_does_not_depend_on_the_first_step() -> None:
    source = Numbers(35)
    whole = list(batches(source, 8, seed=3, start_step=0, stop_step=12))
    late = list(batches(source, 8, seed=3, start_step=5, stop_step=12))
    assert all(same(one, other) for one, other in zip(whole[5:], late, strict=True))


def test_a_distant_step_is_reached_at_once() -> None:
    (batch,) = batches(Numbers(35), 8, seed=3, start_step=10**9, stop_step=10**9 + 1)
    assert batch["image"].shape == (8, 1, 1, 1)


def test_another_seed_gives_another_order() -> None:
    one, other = (drawn(batches(Numbers(35), 7, seed, 0, 5)) for seed in (3, 4))
    assert one != other


def test_selected_rows_equal_those_of_the_full_batch_and_only_they_are_read() -> None:
    class Counted(Numbers):
        def gather(self, indices: np.ndarray, uniforms: np.ndarray | None = None) -> dict[str, np.ndarray]:
            read.append(len(indices))
            return super().gather(indices)

    source, read = Counted(35), []
    for make in (lambda rows: batches(source, 12, 3, 2, 7, rows), lambda rows: eval_batches(source, 12, rows)):
        whole = list(make(None))
        for rows in ([0, 1, 2, 3], [4, 9, 11], [5], []):
            read.clear()
            parts = list(make(np.array(rows, int)))
            assert all(
                same({key: value[rows] for key, value in one.items()}, part)
                for one, part in zip(whole, parts, strict=True)
            )
            assert read == [len(rows)] * len(whole)


@pytest.mark.parametrize("rows", [[0, 8], [-1, 3], [2, 1], [2, 2]])
def test_rows_that_do_not_rise_or_are_outside_the_batch_are_refused(rows: list[int]) -> None:
    for make in (
        lambda: batches(Numbers(35), 8, 3, 0, 1, np.array(rows)),
        lambda: eval_batches(Numbers(35), 8, np.array(rows)),
    ):
        with pytest.raises(ValueError, match="rows must be increasing row numbers below the batch size 8, got"):
            make()


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(35, 8, 5), (35, 7, 5), (3, 8, 1)])
def test_evaluation_shows_every_example_once_and_masks_the_padding(count: int, batch_size: int, steps: int) -> None:
    """The examples come in order."""
    found = list(eval_batches(Numbers(count), batch_size))
    assert len(found) == steps
    assert all(batch["image"].shape == (batch_size, 1, 1, 1) and batch["mask"].dtype == bool for batch in found)
    assert [int(i) for batch in found for i in batch["image"].ravel()[batch["mask"]]] == list(range(count))
    assert {int(i) for batch in found for i in batch["image"].ravel()[~batch["mask"]]} <= {count - 1}
    assert sum(int((~batch["mask"]).sum()) for batch in found) == steps * batch_size - count


def test_workers_decode_the_same_batches_and_a_caller_may_stop_early(tiny: Data) -> None:
    held, streamed = open_source(tiny, "train"), open_source(replace(tiny, memory_limit=0), "train")
    ahead = batches(streamed, 4, seed=3, start_step=7, stop_step=10**6, workers=2)
    found = list(islice(ahead, 9))
    ahead.close()
    assert not multiprocessing.active_children()
    assert all(same(one, other) for one, other in zip(batches(held, 4, 3, 7, 16), found, strict=True))


def test_a_worker_names_a_damaged_record_too(broken_label: Data) -> None:
    streamed = open_source(replace(broken_label, memory_limit=0), "train")
    with pytest.raises(UserError, match=r"dataset wrong, split train, record \d+: the label must be in 0..3, got 99"):
        list(batches(streamed, 23, 3, 0, 1, workers=1))


def test_a_killed_worker_stops_the_run_and_the_other_workers(tiny: Data) -> None:
    streamed = open_source(replace(tiny, memory_limit=0), "train")
    ahead = batches(streamed, 2, seed=3, start_step=0, stop_step=10**6, workers=3)
    next(ahead)
    one, _ = multiprocessing.active_children()  # a batch of 2 rows starts only two workers
    one.kill()
    with pytest.raises(RunStopped, match="a process that decodes images was killed"):
        list(islice(ahead, 100))
    assert not multiprocessing.active_children()


def signals_blocked(step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Returns, for each batch that a worker makes, the signals blocked since the worker's start."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {"image": np.zeros((len(rows), 1, 1, 1), np.uint8), "deaf": np.array([sorted(blocked)] * len(rows))}


def test_a_worker_blocks_signals_to_its_group_from_its_start() -> None:
    (batch,) = prefetch(signals_blocked, np.arange(2), (1, 1, 1), range(1), workers=2)
    assert batch["deaf"].tolist() == [sorted([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])] * 2
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_program_or_notebook_that_reads_batches_sees_no_warning_of_grain():
    program = "from train.data.batches import example_order; print(sorted(example_order(3, 3, 0)(0)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("[np.int32(0), np.int32(1), np.int32(2)]\n", "")
