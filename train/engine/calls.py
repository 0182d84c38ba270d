"""Runs the training steps on the device, one or several per call.

With one step per call, each batch comes from the host. With several, the training split is stored on the device.
"""

from collections.abc import Generator
from contextlib import closing

import jax
import numpy as np

from train.data import Source, batches, example_order
from train.engine.setup import Setup
from train.task import Metrics, State

Call = tuple[State, int, int, Metrics]
"""(state, number of the last step, number of steps, metrics of the steps). With several steps per call, the metrics
have a row for each step of a full call. If the call is shorter, its last rows are not used."""


def no_calls() -> Generator[Call]:
    """Returns a generator without calls, for a run that has ended. It compiles nothing."""
    return (call for call in ())


def train_calls(setup: Setup, source: Source, state: State, done: int) -> Generator[Call]:
    """Compiles the training step, and returns a generator that runs the steps after step `done`.

    `source` has the training images or their features. `state` is the state after step `done`. Each yielded state is
    valid until the next call.
    """
    program, most = setup.program, setup.steps_per_call.number
    if most == 1:
        return _single_steps(setup, source, program.lowered_step.compile(), state, done)
    return _several_steps(setup, source, program.lower_many(most).compile(), state, done)


def _single_steps(
    setup: Setup, source: Source, train_step: jax.stages.Compiled, state: State, done: int
) -> Generator[Call]:
    run, program = setup.config.run, setup.program
    rows = program.rows(run.batch_size)
    workers = setup.config.data.workers
    with closing(batches(source, run.batch_size, run.seed, done, run.steps, rows, workers)) as feed:
        for step, batch in enumerate(feed, done + 1):
            state, metrics = train_step(state, program.place(batch, rows, run.batch_size))
            yield state, step, 1, metrics


def _several_steps(
    setup: Setup, source: Source, train_steps: jax.stages.Compiled, state: State, done: int
) -> Generator[Call]:
    run, program = setup.config.run, setup.program
    most = setup.steps_per_call.number
    examples = {name: program.replicate(x) for name, x in source.gather(np.arange(len(source))).items()}
    order = example_order(len(source), run.batch_size, run.seed)
    while done < run.steps:
        # A call ends where an evaluation or a checkpoint is due.
        count = min(most, run.steps - done, *(every - done % every for every in (run.eval_every, run.save_every)))
        indices = np.zeros((most, run.batch_size), np.int32)
        indices[:count] = [order(step) for step in range(done, done + count)]
        arguments = program.replicate(indices), program.replicate(np.asarray(count, np.int32))
        state, metrics = train_steps(state, examples, *arguments)
        done += count
        yield state, done, count, metrics
