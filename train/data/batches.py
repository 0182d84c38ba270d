"""Batches as a pure function of (seed, step), so that nothing but the step need be kept to go on."""

import sys
from collections.abc import Callable, Generator

import numpy as np

from train.data.source import Source, Stream
from train.errors import UserError

Batch = dict[str, np.ndarray]


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Training batches of steps start_step..stop_step-1.

    The examples of each epoch come in an order of their own, every example once; the epochs follow one another without
    a gap, so a batch may lie across two, or hold several if it is larger than the split.

    Args:
        source: where the examples come from.
        batch_size: examples a step, n, over all processes.
        seed: the batch of a step depends on the seed and the step alone, not on where the iteration began.
        start_step: first step; the steps before it cost nothing.
        stop_step: one more than the last step.
        process_index: which contiguous part of each batch is wanted; the parts in order make up the batch.
        process_count: parts a batch is cut into.
        workers: processes that decode ahead for a streamed source; a source in memory needs none and takes none.

    Yields:
        `{"image": uint8 [m, h, w, C], "label": int32 [m], "index": int32 [m]}` with m = n / process_count; the index is
        the example's number in the split.

    Raises:
        UserError: the batch cannot be cut into equal parts; or what `Source.gather` raises.
    """
    part = _part(batch_size, process_index, process_count)
    import grain  # Imported late: it takes seconds.

    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().batch(batch_size)

    def batch(step: int) -> Batch:
        indices = np.asarray(order[step], np.int32)[part]
        return {**source.gather(indices), "index": indices}

    return _steps(source, batch, start_step, stop_step, workers)


def eval_batches(
    source: Source, batch_size: int, process_index: int = 0, process_count: int = 1, workers: int = 0
) -> Generator[Batch, None, None]:
    """Every example once, in order; the arguments are those of `batches`.

    Yields:
        `{"image": uint8 [m, h, w, C], "label": int32 [m], "mask": bool [m]}` with m = batch_size / process_count. The
        last batch is filled up with the last example, and the mask is False there.

    Raises:
        UserError: as `batches`.
    """
    part = _part(batch_size, process_index, process_count)

    def batch(step: int) -> Batch:
        indices = np.arange(step * batch_size, (step + 1) * batch_size)[part]
        return {**source.gather(np.minimum(indices, len(source) - 1)), "mask": indices < len(source)}

    return _steps(source, batch, 0, -(-len(source) // batch_size), workers)


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"--run.batch-size: wanted a multiple of {process_count}, the processes, got {batch_size}")
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _steps(
    source: Source, batch: Callable[[int], Batch], start: int, stop: int, workers: int
) -> Generator[Batch, None, None]:
    """The batches of steps start..stop-1, in order: made here, or ahead of time by worker processes."""
    if not workers or not isinstance(source, Stream):
        yield from map(batch, range(start, stop))
        return
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which a program that is not absl's never parses.
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    # Batches come through pipes: shared memory is short in containers, and grain leaves some of it behind at exit.
    piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    made = grain.MapDataset.range(start, stop).map(batch).to_iter_dataset(ahead)
    made = grain.experimental.WithOptionsIterDataset(made, piped)
    steps = iter(made.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)))
    try:
        yield from steps
    finally:
        steps.close()  # Ends the workers, also when the caller stops early.
