"""Selects the known labels of a training split, for semi-supervised learning, and weights its classes."""

import numpy as np
from jaxtyping import Float, Int

from train.data.source import InMemorySource, Source
from train.process.errors import UserError
from w2jax.text import first_few

_CHUNK = 4096  # Records read at a time, for the labels of a streamed split.
UNKNOWN = -1


def known_labels(source: Source, count: int | None, seed: int) -> Int[np.ndarray, "N"]:
    """Returns the label of each example as int32, with `UNKNOWN` for all except `count` examples.

    Args:
        source: the training split.
        count: total number of known labels, with the same number for each class. None: all labels are known.
        seed: determines which examples are chosen.

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
            f"--num-labels must be a multiple of {classes} (the number of classes) up to {rarest * classes}, "
            f"got {count}. The smallest class of {source.name}, split {source.split}, has {rarest} examples."
        )
    rng = np.random.default_rng(seed)
    known = np.full_like(labels, UNKNOWN)
    for label in range(classes):
        chosen = rng.permutation(np.flatnonzero(labels == label))[: count // classes]
        known[chosen] = label
    return known


def balanced_weights(source: Source) -> Float[np.ndarray, "K"]:
    """Returns the weight N / (K · n) of each class, where n of N examples have it, for K classes.

    Raises:
        UserError: a class has no example, so its weight would be infinite.
    """
    counts = np.bincount(_all_labels(source), minlength=source.num_classes)
    if not counts.all():
        names = [str(source.label_names[k]) if source.label_names else str(k) for k in np.flatnonzero(counts == 0)]
        raise UserError(
            f"--class-weights balanced needs an example of each class, but {source.name}, split {source.split}, has "
            f"none of {first_few(names)}. Choose a larger split, or leave out --class-weights"
        )
    return (len(source) / (source.num_classes * counts)).astype(np.float32)


def _all_labels(source: Source) -> Int[np.ndarray, "N"]:
    if isinstance(source, InMemorySource):
        return source.labels
    chunks = [np.arange(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    return np.concatenate([source.gather_labels(indices) for indices in chunks])
