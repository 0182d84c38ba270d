"""Makes batches as a pure function of (seed, step), so a run can resume from the step number alone."""

from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np

from train.data.prefetch import Batch, MakeBatch, prefetch
from train.data.source import Source, StreamingSource, tell_converted
from train.process.absl_log import no_absl_warnings


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    rows: np.ndarray | None = None,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Yields the training batches of steps start_step..stop_step-1.

    Each epoch contains every example once, in a new random order. Epochs follow each other without a gap, so a batch
    may span two epochs, or more if the batch is larger than the split.

    Args:
        source: where the examples come from.
        batch_size: examples per step, summed over all hosts.
        seed: the batch of a step depends only on the seed and the step, not on `start_step`.
        start_step: the first step. Skipping the earlier steps costs no time.
        stop_step: the last step plus 1.
        rows: int [m], increasing: the rows of each batch to return. Other examples are not read. None: all rows.
        workers: number of processes that decode ahead. Each decodes its share of every batch. Only a streamed source
            uses them.

    Yields:
        `{"image": uint8 [m, h, w, C], "label": int32 [m], "index": int32 [m]}`, where `index` is the number of each
        example in the split.

    Raises:
        ValueError: `rows` is not increasing, or a row is outside the batch.
        UserError: see `Source.gather`.
        RunStopped: a worker process was killed.
    """
    rows = _checked_rows(rows, batch_size)
    make = partial(_train_batch, source, example_order(len(source), batch_size, seed), batch_size, seed)
    return _make_batches(source, make, rows, range(start_step, stop_step), workers)


def example_order(count: int, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Returns a function from a step to the example numbers of its batch: int32 [batch_size], each below `count`."""
    with no_absl_warnings():  # With jax before 0.11, grain warns that it cannot profile worker processes.
        import grain  # Imported late: it takes seconds.

    return partial(_examples, grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(batch_size))


def _examples(order: Any, step: int) -> np.ndarray:
    return np.asarray(order[step], np.int32)


def _train_batch(
    source: Source, order: Callable[[int], np.ndarray], batch_size: int, seed: int, step: int, rows: np.ndarray
) -> Batch:
    indices, uniforms = order(step)[rows], None
    if source.uniforms_per_example:  # Drawn for the whole batch, so a row's numbers do not depend on `rows`.
        generator = np.random.Generator(np.random.Philox(key=(seed, step)))
        uniforms = generator.random((batch_size, source.uniforms_per_example))[rows]
    return {**source.gather(indices, uniforms), "index": indices}


def eval_batches(
    source: Source, batch_size: int, rows: np.ndarray | None = None, workers: int = 0
) -> Generator[Batch, None, None]:
    """Yields every example once, in order. The arguments are the same as in `batches`.

    Yields:
        `{"image": uint8 [m, h, w, C], "label": int32 [m], "mask": bool [m]}`. The last batch is padded with copies
        of the last example, whose mask is False.

    Raises:
        ValueError: `rows` is not increasing, or a row is outside the batch.
        UserError: see `Source.gather`.
    """
    rows = _checked_rows(rows, batch_size)
    steps = range(-(-len(source) // batch_size))
    return _make_batches(source, partial(_eval_batch, source, batch_size), rows, steps, workers)


def _eval_batch(source: Source, batch_size: int, step: int, rows: np.ndarray) -> Batch:
    indices = step * batch_size + rows
    return {**source.gather(np.minimum(indices, len(source) - 1)), "mask": indices < len(source)}


def _checked_rows(rows: np.ndarray | None, batch_size: int) -> np.ndarray:
    """Checks `rows`; None becomes all rows of the batch."""
    if rows is None:
        return np.arange(batch_size)
    if np.any(np.diff(rows, prepend=-1) < 1) or np.any(rows >= batch_size):
        raise ValueError(f"rows must be increasing row numbers below the batch size {batch_size}, got {rows}")
    return rows


def _make_batches(
    source: Source, make: MakeBatch, rows: np.ndarray, steps: range, workers: int
) -> Generator[Batch, None, None]:
    """Yields the batches in order. They are made in this process, or ahead of time by worker processes."""
    if workers and isinstance(source, StreamingSource):
        made = prefetch(make, rows, source.image_shape, steps, workers)
    else:
        made = (make(step, rows) for step in steps)
    with closing(made):
        for batch in made:
            if batch.pop("converted", np.zeros(1, bool)).any():
                tell_converted(source, "at least one image was")
            yield batch
