"""Batches as a pure function of (seed, step), so that resuming needs nothing but the step."""

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

    Each epoch has every example once, in its own order. Epochs follow one another without a gap, so a batch may span
    two, or several if it is larger than the split.

    Args:
        source: where the examples come from.
        batch_size: examples a step, over all hosts.
        seed: the batch of a step depends on the seed and the step alone, not on the first step.
        start_step: first step; the steps before it cost nothing.
        stop_step: one more than the last step.
        rows: int [m], increasing: which rows of each batch to return; no other examples are read. None: all.
        workers: processes that decode ahead, each its share of every batch. Only a streamed source uses them.

    Yields:
        `{"image": uint8 [m, h, w, C], "label": int32 [m], "index": int32 [m]}`; the index is the example's number in
        the split.

    Raises:
        ValueError: rows do not increase, or are outside of the batch.
        UserError: as `Source.gather`.
        RunStopped: a worker process was killed.
    """
    rows = _checked_rows(rows, batch_size)
    make = partial(_train_batch, source, example_order(len(source), batch_size, seed), batch_size, seed)
    return _make_batches(source, make, rows, range(start_step, stop_step), workers)


def example_order(count: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """From a step to the examples of its training batch: int32 [batch_size], each below `count`."""
    import grain  # Imported late: it takes seconds.

    return partial(_examples, grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(batch_size))


def _examples(order: Any, step: int) -> np.ndarray:
    return np.asarray(order[step], np.int32)


def _train_batch(
    source: Source, order: Callable[[int], np.ndarray], batch_size: int, seed: int, step: int, rows: np.ndarray
) -> Batch:
    indices, uniforms = order(step)[rows], None
    if source.uniforms_per_example:  # Drawn for the whole batch, so that a row's do not depend on the rows wanted.
        generator = np.random.Generator(np.random.Philox(key=(seed, step)))
        uniforms = generator.random((batch_size, source.uniforms_per_example))[rows]
    return {**source.gather(indices, uniforms), "index": indices}


def eval_batches(
    source: Source, batch_size: int, rows: np.ndarray | None = None, workers: int = 0
) -> Generator[Batch, None, None]:
    """Every example once, in order; the arguments are those of `batches`.

    Yields:
        `{"image": uint8 [m, h, w, C], "label": int32 [m], "mask": bool [m]}`. The last batch is padded with the last
        example, where the mask is False.

    Raises:
        As `batches`.
    """
    rows = _checked_rows(rows, batch_size)
    steps = range(-(-len(source) // batch_size))
    return _make_batches(source, partial(_eval_batch, source, batch_size), rows, steps, workers)


def _eval_batch(source: Source, batch_size: int, step: int, rows: np.ndarray) -> Batch:
    indices = step * batch_size + rows
    return {**source.gather(np.minimum(indices, len(source) - 1)), "mask": indices < len(source)}


def _checked_rows(rows: np.ndarray | None, batch_size: int) -> np.ndarray:
    """The rows of a batch to return; all of them for None."""
    if rows is None:
        return np.arange(batch_size)
    if np.any(np.diff(rows, prepend=-1) < 1) or np.any(rows >= batch_size):
        raise ValueError(f"rows must be increasing rows of a batch of {batch_size}, got {rows}")
    return rows


def _make_batches(
    source: Source, make: MakeBatch, rows: np.ndarray, steps: range, workers: int
) -> Generator[Batch, None, None]:
    """The batches of the steps, in order: made here, or ahead of time by worker processes."""
    if not workers or not isinstance(source, StreamingSource):
        yield from (make(step, rows) for step in steps)
        return
    yield from prefetch(make, rows, source.image_shape, steps, workers)
