"""Batches as a pure function of (seed, step), so that nothing but the step need be kept to go on."""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np

from train.data.prefetch import Batch, MakeBatch, prefetch
from train.data.source import Source, StreamingSource


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    rows: np.ndarray | None = None,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Training batches of steps start_step..stop_step-1.

    The examples of each epoch come in an order of their own, every example once; the epochs follow one another without
    a gap, so a batch may lie across two, or hold several if it is larger than the split.

    Args:
        source: where the examples come from.
        batch_size: examples a step, over all hosts.
        seed: the batch of a step depends on the seed and the step alone, not on where the iteration began.
        start_step: first step; the steps before it cost nothing.
        stop_step: one more than the last step.
        rows: int [m], rising: which positions of each batch are wanted; no other examples are read. None: all.
        workers: processes that decode ahead, each its part of every batch, for a streamed source; one in memory needs
            none and takes none.

    Yields:
        `{"image": uint8 [m, h, w, C], "label": int32 [m], "index": int32 [m]}`; the index is the example's number in
        the split.

    Raises:
        ValueError: rows that do not rise, or lie outside of the batch.
        UserError: what `Source.gather` raises.
        RunStopped: a worker was ended from outside.
    """
    rows = _rows(rows, batch_size)
    make = partial(_train_batch, source, example_order(len(source), batch_size, seed), batch_size, seed)
    return _steps(source, make, rows, range(start_step, stop_step), workers)


def example_order(count: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """From a step to the examples of its training batch: int32 [batch_size], each below `count`."""
    import grain  # Imported late: it takes seconds.

    return partial(_examples, grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(batch_size))


def _examples(order: Any, step: int) -> np.ndarray:
    return np.asarray(order[step], np.int32)


def _train_batch(
    source: Source, order: Callable[[int], np.ndarray], batch_size: int, seed: int, step: int, rows: np.ndarray
) -> Batch:
    indices, draws = order(step)[rows], None
    if source.draws:  # Those of the whole batch, so that a row's do not depend on which others are wanted.
        generator = np.random.Generator(np.random.Philox(key=(seed, step)))
        draws = generator.random((batch_size, source.draws))[rows]
    return {**source.gather(indices, draws), "index": indices}


def eval_batches(
    source: Source, batch_size: int, rows: np.ndarray | None = None, workers: int = 0
) -> Generator[Batch, None, None]:
    """Every example once, in order; the arguments are those of `batches`.

    Yields:
        `{"image": uint8 [m, h, w, C], "label": int32 [m], "mask": bool [m]}`. The last batch is filled up with the
        last example, and the mask is False there.

    Raises:
        As `batches`.
    """
    rows = _rows(rows, batch_size)

    steps = range(-(-len(source) // batch_size))
    return _steps(source, partial(_eval_batch, source, batch_size), rows, steps, workers)


def _eval_batch(source: Source, batch_size: int, step: int, rows: np.ndarray) -> Batch:
    indices = step * batch_size + rows
    return {**source.gather(np.minimum(indices, len(source) - 1)), "mask": indices < len(source)}


def _rows(rows: np.ndarray | None, batch_size: int) -> np.ndarray:
    """The rows of a batch that are wanted, all where none are named."""
    if rows is None:
        return np.arange(batch_size)
    if np.any(np.diff(rows, prepend=-1) < 1) or np.any(rows >= batch_size):
        raise ValueError(f"wanted rising rows of a batch of {batch_size}, got {rows}")
    return rows


def _steps(
    source: Source, make: MakeBatch, rows: np.ndarray, steps: range, workers: int
) -> Generator[Batch, None, None]:
    """The batches of the steps, in order: made here, or ahead of time by worker processes."""
    if not workers or not isinstance(source, StreamingSource):
        yield from (make(step, rows) for step in steps)
        return
    yield from prefetch(make, rows, source.image_shape, steps, workers)
