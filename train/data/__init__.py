"""Labelled images: a source gathers examples by index; batches are a pure function of seed and step.

Importing this package is quick: the functions that need TFDS and grain import them.
"""

from train.data.batches import batches, eval_batches, example_order
from train.data.open import abstract_source, open_source
from train.data.source import Source

__all__ = ["Source", "abstract_source", "batches", "eval_batches", "example_order", "open_source"]
