"""Several steps per call write the same rows, checkpoints and state as single steps."""

import dataclasses
from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.base import Config, Mesh, RunConfig
from train.data.source import InMemorySource
from train.engine.loop import Progress, train
from train.engine.program import Program
from train.engine.sharding import make_mesh
from train.engine.steps_per_call import StepsPerCall
from train.process.errors import RunStopped
from train.process.signals import DeferredSignals
from train.task import NONFINITE, State, Task

MOST_STEPS, BATCH = 24, 2
SIZE = 1000  # The order of a small split takes longer to compute.
IMAGES = np.arange(SIZE).astype(np.uint8).reshape(SIZE, 1, 1, 1)
LABELS = np.arange(SIZE, dtype=np.int32) % 2
SOURCE = InMemorySource("numbers", "train", (1, 1, 1), 2, ["a", "b"], images=IMAGES, labels=LABELS)


def init(broken):
    """The state of a model with two parameters. The gradients of `b` are not finite in the `broken` steps."""
    flags = np.isin(np.arange(MOST_STEPS), list(broken))
    return State(np.zeros((), np.int32), {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}, flags)


def step(state, batch):
    mean = batch["image"].astype(jnp.float32).mean()
    # Halving is exact, so the result does not depend on whether XLA fuses the product with the sum.
    params = jax.tree.map(lambda x: 0.5 * x + mean, state.params)
    metrics = {
        "loss": params["a"][0] + params["b"][0],
        NONFINITE: jnp.array([False, state.opt_state[state.step]]),
    }
    return state.replace(step=state.step + 1, params=params), metrics


@cache
def program(steps_per_call, on_nonfinite):
    """Compiled once for all runs of the test."""
    run = RunConfig(batch_size=BATCH, steps_per_call=steps_per_call, on_nonfinite=on_nonfinite)
    task = Task(
        init=lambda: jax.tree.map(jnp.asarray, init(())), step=step, evaluate=lambda *_: {}, figures=lambda *_: {}
    )
    result = Program(Config(run=run), task, SOURCE, make_mesh(Mesh(1, 1, 1), jax.devices()[:1]))
    single, many = result.lowered_step.compile(), result.lower_many(steps_per_call).compile()
    result.lowered_step = SimpleNamespace(compile=lambda: single)
    result.lower_many = lambda most: SimpleNamespace(compile=lambda: many)
    return result


class Recorder:
    """Replaces the checkpoints, the evaluator and the publisher, and records what the loop gives them.

    It copies the state and the sums, because the next step changes them.
    """

    def __init__(self):
        self.rows, self.saves, self.scores, self.seconds = [], {}, {}, 0.0
        self.lines = SimpleNamespace(restored=[], count=0, checksum="")
        self.console = SimpleNamespace(step=lambda step: None)
        self.phases = SimpleNamespace(measure=lambda phase: nullcontext())

    def train_line(self, step, means, _):
        self.rows.append((step, "train", means))

    def test_line(self, step, metrics):
        self.rows.append((step, "test", metrics))

    def evaluate(self, state):
        return {"accuracy": float(state.params["a"].sum())}, None

    def final_metrics(self, state):
        return {}

    def save(self, step, state, saved, before):
        self.saves[step] = jax.tree.map(np.array, state), dict(saved["sums"]), saved["count"], saved["skipped_in_a_row"]

    def nonfinite_names(self, state):
        return []

    def failure(self, wait=False):
        return None

    def save_failed(self, failure):
        assert failure is None

    def report(self, *_):
        pass

    def sync(self):
        pass


def run(options, broken, start=None):
    """The rows, saves, last state and error of a run. `start` is the step and save that it resumes from."""
    config = Config(run=dataclasses.replace(RunConfig(batch_size=BATCH, steps_per_call=1), **options))
    recorder = Recorder()
    traced = program(config.run.steps_per_call, config.run.on_nonfinite)
    setup = SimpleNamespace(
        config=config,
        source=SOURCE,
        examples=lambda source, state: source,
        program=traced,
        steps_per_call=StepsPerCall(config.run.steps_per_call),
        task=SimpleNamespace(best="accuracy", best_mode="max", probabilities=None),
    )
    done, (state, *window) = start or (0, (init(broken), {}, 0, 0))
    progress, error = Progress(jax.device_put(state, traced.places), done, *window), None
    try:
        with DeferredSignals() as signals:
            train(setup, progress, recorder, recorder, recorder, signals)
    except RunStopped as stopped:
        error = str(stopped)
    return recorder.rows, recorder.saves, None if error else jax.tree.map(np.array, progress.state), error


def assert_same(one, other):
    assert str(one) == str(other)  # with all digits of each number; nan equals nan


every = st.integers(1, 9)
step_numbers = st.integers(0, MOST_STEPS - 1)
on_nonfinite_values = st.sampled_from(["stop", "skip"])


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, MOST_STEPS), st.sampled_from([2, 3, 5]), every, every, every,
    st.frozensets(step_numbers, max_size=4) | st.builds(range, step_numbers, step_numbers), on_nonfinite_values,
    st.sampled_from([None, 1, 2, 3]), st.data(),
)  # fmt: skip
def test_any_number_of_steps_per_call_gives_the_rows_saves_and_state_of_single_steps(
    steps, steps_per_call, eval_every, save_every, log_every, broken, on_nonfinite, max_skipped_steps, data
):
    """Also if the run resumes from a step that is no multiple of the number of steps per call."""
    options = {
        "steps": steps, "eval_every": eval_every, "save_every": save_every, "log_every": log_every,
        "on_nonfinite": on_nonfinite, "max_skipped_steps": max_skipped_steps,
    }  # fmt: skip
    single = run(options, broken)
    assert_same(run(options | {"steps_per_call": steps_per_call}, broken), single)
    rows, saves, state, error = single
    if saves and (done := data.draw(st.sampled_from(sorted(saves)))) < steps:
        resumed = run(options | {"steps_per_call": steps_per_call}, broken, start=(done, saves[done]))
        # A resumed run evaluates first if the evaluation of its step is missing. The recorder has no scores.
        later = [row for row in rows if row[0] > done or (row[0], row[1]) == (done, "test")]
        assert_same(resumed[0], later)
        assert_same(resumed[2:], (state, error))
