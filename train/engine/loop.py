"""The training loop, shared by all tasks: config → data → task → steps → checkpoints and report.

The loop uses only the task, so a new model needs no change here.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import jax

from configs.base import Config
from train.engine.calls import train_calls
from train.engine.checkpoint import Checkpoints
from train.engine.evaluator import Evaluator
from train.engine.placement import show_placement
from train.engine.publisher import Publisher
from train.engine.setup import MakeTask, Setup, set_up
from train.loggers.trackers import Trackers
from train.loggers.window import FINITE_REMEDY, MetricWindow, check_finite_metrics, first_few
from train.process.distributed import barrier, is_main_process
from train.process.errors import Interrupted, RunStopped, cannot_write
from train.process.signals import DeferredSignals
from train.report.mistakes import Predictions
from train.run.files import RENAMED_METRICS
from train.run.folder import RunFolder
from train.task import InitialParams, State, named_leaves


@dataclass
class Progress:
    """The progress of a run: its state, and the values that the loop has accumulated."""

    state: State
    done: int = 0
    """Training steps that earlier processes completed."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the metrics over the `count` steps since the last training row of metrics.jsonl."""
    count: int = 0
    seconds: float = 0.0
    """Wall time of earlier processes."""
    lines: int = 0
    """Number of rows in metrics.jsonl when the checkpoint was saved."""
    devices: str | None = None
    """The devices of the process that saved the checkpoint; None in a new run."""


def fit(config: Config, make_task: MakeTask) -> State | None:
    """Trains a task to its last step and writes the run folder. Resumes from the last checkpoint if there is one.

    `fit` changes no settings of the process. The training programs change them with
    `train.process.setup.prepare_process`. With `config.mesh.show`, `fit` only prints how the parameters would be
    sharded, and returns None.

    Raises:
        UserError: if options of the config contradict each other, the data, the devices or the run folder.
        RunStopped: if a step is not finite, a checkpoint cannot be saved, or every checkpoint is damaged.
        Interrupted: if a signal ended the run. The completed steps are saved.
    """
    setup, initial = set_up(config, make_task)
    if config.mesh.show:
        if is_main_process():
            show_placement(setup.program.state_shapes)
        return None
    with (
        DeferredSignals() as signals,
        RunFolder(config) as folder,
        Trackers(config, folder) as trackers,
        Checkpoints(folder.checkpoints, setup.task.best_mode) as checkpoints,
        _what_is_saved(folder, checkpoints, signals),
    ):
        folder.write_image_info(setup.source.image_shape, setup.source.label_names)
        folder.write_task_info(setup.task.best, setup.task.best_mode, setup.task.metric_descriptions)
        progress, evaluator = start_or_resume(setup, initial, checkpoints), Evaluator(setup)
        note = None if initial is None else initial.note
        del initial  # Its parameters may be as large as the model.
        with Publisher(setup, folder, trackers, progress.done, progress.seconds) as publisher:
            _announce(setup, note, folder, checkpoints, progress, publisher)
            predictions = train(setup, progress, checkpoints, evaluator, publisher, signals)
            publisher.finish(evaluator, progress.state, predictions)
            barrier("finish")
    return progress.state


def start_or_resume(setup: Setup, initial: InitialParams | None, checkpoints: Checkpoints) -> Progress:
    """Restores the state and progress of the last checkpoint, or starts a new run."""
    program = setup.program
    if (done := checkpoints.latest_step()) is not None:
        state, saved = checkpoints.restore(done, program.state_shapes)
        sums = {RENAMED_METRICS.get(str(name), str(name)): value for name, value in saved["sums"].items()}
        lines, devices = saved.get("lines", 0), saved.get("devices")
        return Progress(state, done, sums, saved["count"], saved["seconds"], lines, devices)
    # The parameters are an argument, because arrays in the closure would be compiled into the program as constants.
    arguments = () if initial is None else (placed_params(initial.params, program.places),)
    init = jax.jit(setup.task.init, out_shardings=program.places, compiler_options=program.run_once)
    return Progress(init(*arguments))


def train(
    setup: Setup,
    progress: Progress,
    checkpoints: Checkpoints,
    evaluator: Evaluator,
    publisher: Publisher,
    signals: DeferredSignals,
) -> Predictions | None:
    """Runs the remaining steps, with logging, checkpoints and evaluations. Updates `progress.state`.

    Returns:
        The predictions of the last evaluation; None if the model is not a classifier.
    """
    run, task = setup.config.run, setup.task
    parameters = list(named_leaves(setup.program.state_shapes.params))
    window = MetricWindow(
        run.log_every, run.steps, publisher.train_line, progress.sums, progress.count, parameters, run.on_nonfinite
    )
    tests = [line for line in publisher.lines.restored if line.get("split") == "test" and task.best in line]
    checkpoints.scores.update({line["step"]: line[task.best] for line in tests})
    predictions = None

    def save(step: int) -> None:
        if names := evaluator.nonfinite_names(progress.state):
            raise RunStopped(f"step {step}: NaN or infinite after the update: {first_few(names)}. {FINITE_REMEDY}")
        saved = {"sums": window.sums, "count": window.count, "seconds": publisher.seconds}
        saved |= {"devices": setup.program.devices, "lines": publisher.lines.count}
        checkpoints.save(step, progress.state, saved, before=publisher.sync)

    def evaluate(step: int) -> None:
        nonlocal predictions
        with signals.let_through():
            metrics, predictions = evaluator.evaluate(progress.state, is_last=step == run.steps)
        try:
            check_finite_metrics(step, metrics)
        except RunStopped:
            checkpoints.drop(step)  # A run that resumes from it would stop in the same way.
            raise
        publisher.test_line(step, metrics)
        checkpoints.scores[step] = metrics[task.best]

    def is_due(step: int, every: int) -> bool:
        return step == run.steps or step % every == 0

    with signals.deferred(), closing(train_calls(setup, progress.state, progress.done)) as calls:
        if progress.done and is_due(progress.done, run.eval_every) and progress.done not in checkpoints.scores:
            evaluate(progress.done)  # An earlier process ended after it saved this checkpoint, before the evaluation.
        for progress.state, step, count, metrics in calls:
            window.add(step, metrics, count)
            publisher.console.step(step)
            publisher.save_failed(checkpoints.failure())
            signal = signals.after(step, count)
            saves, evaluates = is_due(step, run.save_every), is_due(step, run.eval_every)
            if not (saves or evaluates or signal):
                continue
            window.drain()
            if saves or signal:
                save(step)
            if signal:
                raise Interrupted(signal)
            if evaluates:
                try:
                    evaluate(step)
                except Interrupted:
                    if not saves:
                        save(step)
                    raise
                if step != run.steps:
                    publisher.report(evaluator, progress.state)
            window.resume()
        if (failure := checkpoints.failure(wait=True)) is not None:
            raise failure
        publisher.sync()
    if predictions is None and task.probabilities is not None:
        predictions = evaluator.evaluate(progress.state).predictions  # A finished run has no step left that evaluates.
    return predictions


def _announce(
    setup: Setup,
    note: str | None,
    folder: RunFolder,
    checkpoints: Checkpoints,
    progress: Progress,
    publisher: Publisher,
) -> None:
    """Prints the data, the model and the devices, where the run resumes, and anything unusual in the run folder."""
    say, program = publisher.console.say, setup.program
    parameters = sum(x.size for x in jax.tree.leaves(program.state_shapes.params))
    say(
        f"{setup.source.name}: {len(setup.source):,} train and {len(setup.test_source):,} test images; "
        f"{parameters:,} parameters on {program.devices}"
    )
    if note is not None:
        say(note)
    if folder.left_by is not None:
        say(f"the last process in {folder.path} ({folder.left_by}) was killed or crashed")
    for message in checkpoints.notes:
        say(message)
    if not progress.done:
        return
    moved = "" if progress.devices in (None, program.devices) else f"; the checkpoint was saved on {progress.devices}"
    is_finished = progress.done == setup.config.run.steps
    start = "Training already finished at" if is_finished else "Resumed from"
    say(f"{start} step {progress.done:,} in {folder.path}{moved}")
    kept = publisher.lines.restored
    found = sum((line["step"], line.get("split")) != (progress.done, "test") for line in kept)
    if found < progress.lines:
        missing = f"{progress.lines - found} of the first {progress.lines} rows of {folder.metrics} are missing"
        say(f"warning: {missing}. Training continues without them")


@contextmanager
def _what_is_saved(folder: RunFolder, checkpoints: Checkpoints, signals: DeferredSignals) -> Iterator[None]:
    """Adds the step of the last checkpoint to an error that ends the run, after a save in progress."""

    def saved() -> str:
        step = checkpoints.latest_step()
        return f"No checkpoint in {folder.path}" if step is None else f"Last checkpoint: step {step:,} in {folder.path}"

    try:
        yield
    except RunStopped as error:
        raise RunStopped(f"{error}. {saved()}") from error.__cause__
    except OSError as error:
        if not cannot_write(error):
            raise
        place = error.filename or folder.path
        raise RunStopped(f"cannot write {place}: {error.strerror}. {saved()}") from error
    except Interrupted as error:
        signals.defer_after(error)
        failure = None
        with suppress(Interrupted):  # the third signal, while the run waits for a save
            failure = checkpoints.failure(wait=not signals.is_urgent)
        if signals.is_urgent:
            checkpoints.abandon()
        prefix = "" if failure is None else f"{failure}. "
        raise Interrupted(error.number, f"{prefix}{saved()}. Run the same command to resume") from None


def placed_params(params: Mapping[str, Any], places: State) -> dict[str, Any]:
    """Places each parameter on its devices. `params` may contain only some of the model's parameters."""
    return jax.device_put(dict(params), {name: places.params[name] for name in params})
