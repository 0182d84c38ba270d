"""Evaluates a state on the test split: metrics, predictions and pictures."""

from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.data import Source, eval_batches
from train.engine.setup import Setup
from train.engine.step import nonfinite_leaves
from train.report.mistakes import Predictions, balanced_accuracy, confusion_matrix
from train.task import Batch, Picture, State, Task, named_leaves


class Evaluation(NamedTuple):
    """The results of a model on the test split."""

    metrics: dict[str, float]
    predictions: Predictions | None
    """None if the model is not a classifier."""


class Evaluator:
    """Evaluates a task with compiled functions, on the mesh that trains it."""

    def __init__(self, setup: Setup):
        """Compiles nothing yet: each function is compiled when it is first used."""
        self._setup, program, task = setup, setup.program, setup.task
        self._examples: Source | None = None  # the test images, or their features
        once = program.run_once
        self._eval_step = program.jit(partial(eval_step, task), program.replicated)
        self._nonfinite = program.jit(nonfinite_leaves, program.replicated, compiler_options=once)
        self._figures = program.jit(task.figures, program.replicated, compiler_options=once)

    def evaluate(self, state: State) -> Evaluation:
        """Returns the metrics of the whole test split, and the predictions of a classifier."""
        setup = self._setup
        if self._examples is None:
            self._examples = setup.examples(setup.test_source, state)
        with closing(self._batches(self._examples, setup.config.run.batch_size)) as feed:
            sums, predictions = zip(*(jax.device_get(self._eval_step(state, batch)) for batch in feed), strict=True)
        metrics = {name: sum(float(part[name]) for part in sums) / len(setup.test_source) for name in sums[0]}
        if predictions[0] is None:
            return Evaluation(metrics, None)
        labels, predicted, probability = map(np.concatenate, zip(*predictions, strict=True))
        is_real = predicted >= 0
        made = Predictions(*(x[is_real] for x in (labels, predicted, probability)))
        metrics["balanced_accuracy"] = balanced_accuracy(confusion_matrix(made, setup.test_source.num_classes))
        return Evaluation(metrics, made)

    def final_metrics(self, state: State) -> dict[str, float]:
        """Returns the metrics that a task computes only after its last step; {} if it has none."""
        compute = self._setup.task.final_metrics
        return {} if compute is None else compute(self._setup.program.gather(state), self._setup.test_source)

    def figures(self, state: State) -> Mapping[str, Picture]:
        """Returns the pictures of the report, as arrays on the host."""
        parts = self._setup.batch_parts
        examples = -(-self._setup.task.figure_examples // parts) * parts
        with closing(self._batches(self._setup.test_source, examples)) as feed:
            return jax.device_get(self._figures(state, next(feed)))

    def nonfinite_names(self, state: State) -> list[str]:
        """Returns the names of the leaves of the state that have a NaN or infinite value."""
        names = list(named_leaves(state))
        return [names[i] for i in np.flatnonzero(self._nonfinite(state))]

    def _batches(self, source: Source, size: int) -> Generator[Batch]:
        """Yields the batches of the test split, sharded over the devices."""
        setup, rows = self._setup, self._setup.program.rows(size)
        with closing(eval_batches(source, size, rows, setup.config.data.workers)) as feed:
            for batch in feed:
                yield setup.program.place(batch, rows, size)


def eval_step(task: Task, state: State, batch: Batch) -> tuple[dict[str, jax.Array], tuple[jax.Array, ...] | None]:
    """Returns the sums of the metrics over a batch, and the fields of a classifier's Predictions.

    The predicted class of a padding example is -1.
    """
    sums = masked_sums(task.evaluate(state, batch), batch["mask"])
    if task.probabilities is None:
        return sums, None
    probabilities = task.probabilities(state, batch)  # XLA does not repeat what `evaluate` computes.
    predicted = jnp.where(batch["mask"], probabilities.argmax(axis=-1), -1)
    return sums, (batch["label"], predicted, probabilities.max(axis=-1))


def masked_sums(values: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
    """Returns the sum of each metric over the examples where the mask is True."""
    return {name: jnp.where(mask, value, 0).sum() for name, value in values.items()}
