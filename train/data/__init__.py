"""Labelled images: a source gathers examples by index; batches are a pure function of seed and step.

Importing this package is quick: TFDS and grain are imported by the functions that need them.
"""

from train.data.batches import batches, eval_batches
from train.data.source import Source, open_source

__all__ = ["Source", "batches", "eval_batches", "open_source"]
