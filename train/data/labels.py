"""Semi-supervised learning: which labels of a training split are known."""

import numpy as np
from jaxtyping import Int

from train.data.source import InMemorySource, Source
from train.process.errors import UserError

_CHUNK = 4096  # Examples decoded at a time to read the labels of a streamed split.
UNKNOWN = -1


def known_labels(source: Source, count: int | None, seed: int) -> Int[np.ndarray, "N"]:
    """The label of each example, int32; `UNKNOWN` for all but `count` of them.

    Args:
        source: the training split.
        count: how many are known, the same number of each class; None: all.
        seed: chooses the examples.

    Raises:
        UserError: a class has too few examples, or `count` is not a multiple of the number of classes.
    """
    labels = _all_labels(source)
    if count is None:
        return labels
    classes = source.num_classes
    rarest = np.bincount(labels, minlength=classes).min()
    if not 0 <= count <= rarest * classes or count % classes:
        raise UserError(
            f"--num-labels must be a multiple of the {classes} classes up to {rarest * classes}, got {count}. "
            f"The rarest class of {source.name}, split {source.split}, has {rarest} examples."
        )
    rng = np.random.default_rng(seed)
    known = np.full_like(labels, UNKNOWN)
    for label in range(classes):
        chosen = rng.permutation(np.flatnonzero(labels == label))[: count // classes]
        known[chosen] = label
    return known


def _all_labels(source: Source) -> Int[np.ndarray, "N"]:
    if isinstance(source, InMemorySource):
        return source.labels
    chunks = [np.arange(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    return np.concatenate([source.gather(indices)["label"] for indices in chunks])
