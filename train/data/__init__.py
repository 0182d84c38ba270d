"""Labeled images. A source returns examples by index. Each batch is a pure function of the seed and the step.

Importing this package is quick, because TFDS and grain are imported only by the functions that need them.
"""

from train.data.batches import batches, eval_batches, example_order
from train.data.open import abstract_source, open_source
from train.data.source import Source

__all__ = ["Source", "abstract_source", "batches", "eval_batches", "example_order", "open_source"]
