"""The training loop, shared by all tasks: config → data → task → steps → checkpoints and report.

The loop uses only the task, so a new model needs no change here.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

from configs.base import Config
from train.engine.calls import no_calls, train_calls
from train.engine.checkpoint import Checkpoints
from train.engine.describe import describe
from train.engine.evaluator import Evaluator
from train.engine.placement import show_placement
from train.engine.publisher import Publisher
from train.engine.setup import MakeTask, Setup, set_up
from train.loggers.jsonl import checksum
from train.loggers.trackers import Trackers
from train.loggers.window import FINITE_REMEDY, MetricWindow, check_finite_metrics
from train.process.distributed import barrier, is_main_process
from train.process.errors import Interrupted, RunStopped, UserError
from train.process.signals import DeferredSignals, set_handled
from train.report.mistakes import Predictions
from train.run.files import RENAMED_METRICS
from train.run.folder import ImageInfo, RunFolder
from train.run.patience import best_step, is_over
from train.task import InitialParams, State, named_leaves
from w2jax.text import count_of, first_few, one_line, shorten


@dataclass
class Progress:
    """The progress of a run: its state, and the values that the loop has accumulated."""

    state: State
    done: int = 0
    """Training steps that earlier processes completed."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the metrics over the `count` steps since the last training row of metrics.jsonl."""
    count: int = 0
    skipped_in_a_row: int = 0
    """Number of skipped steps in a row up to `done` (`--run.on-nonfinite skip`)."""
    seconds: float = 0.0
    """Wall time of earlier processes."""
    lines: int = 0
    """Number of rows in metrics.jsonl when the checkpoint was saved."""
    checksum: str | None = None
    """SHA-256 of these rows; None in a new run, and if an older version saved the checkpoint."""
    scores: dict[int, float] = field(default_factory=dict)
    """The metric that decides the best checkpoint, at each evaluated step up to the checkpoint."""
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
    config = setup.config  # with the number of steps
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
        images = ImageInfo(setup.source.image_shape, list(setup.source.label_names))
        folder.record_data(images, {"train": setup.source.fingerprint, "test": setup.test_source.fingerprint})
        info = describe(setup, folder, None if initial is None else initial.adapted)
        folder.write_task_info(info)
        progress, evaluator = start_or_resume(setup, initial, checkpoints), Evaluator(setup)
        note = None if initial is None else initial.note
        del initial  # Its parameters may be as large as the model.
        with Publisher(setup, folder, info, trackers, progress.done, progress.seconds) as publisher:
            checkpoints.scores.update(_scores(setup, publisher.lines.restored, progress))
            _announce(setup, note, folder, checkpoints, progress, publisher)
            predictions = train(setup, progress, checkpoints, evaluator, publisher, signals)
            publisher.finish(evaluator, progress.state, predictions)
            _announce_early_stop(setup, checkpoints, publisher)
            barrier("finish")
    return progress.state


def start_or_resume(setup: Setup, initial: InitialParams | None, checkpoints: Checkpoints) -> Progress:
    """Restores the state and progress of the last checkpoint, or starts a new run."""
    program = setup.program
    if (done := checkpoints.latest_step()) is not None:
        state, saved = checkpoints.restore(done, program.state_shapes)
        if done > setup.config.run.steps:
            raise UserError(
                f"--run.steps must be at least {done}, the step of the last checkpoint, got {setup.config.run.steps}. "
                "Choose another --run.dir"
            )
        return _saved_progress(state, done, saved)
    # The parameters are an argument, because arrays in the closure would be compiled into the program as constants.
    arguments = () if initial is None else (placed_params(initial.params, program.places),)
    init = jax.jit(setup.task.init, out_shardings=program.places, compiler_options=program.run_once)
    return Progress(init(*arguments))


def _saved_progress(state: State, done: int, saved: dict[str, Any]) -> Progress:
    """Raises UserError if `saved` is not what `train` saves. The checkpoint may come from someone else."""
    try:
        progress = Progress(
            state,
            done,
            sums={RENAMED_METRICS.get(str(name), str(name)): float(value) for name, value in saved["sums"].items()},
            count=int(saved["count"]),
            skipped_in_a_row=int(saved.get("skipped_in_a_row", 0)),
            seconds=float(saved["seconds"]),
            lines=int(saved.get("lines", 0)),
            checksum=saved.get("checksum"),
            scores={int(step): float(score) for step, score in saved.get("scores", {}).items()},
            devices=None if saved.get("devices") is None else shorten(one_line(str(saved["devices"])), 200),
        )
        numbers = [*progress.sums.values(), *progress.scores.values(), progress.seconds, progress.count]
        if not all(map(math.isfinite, numbers)) or not 0 <= progress.count <= done:
            raise ValueError("a number is negative, too large, NaN or infinite")
        return progress
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"the progress in the checkpoint of step {done} is damaged ({error}). Choose another --run.dir"
        ) from error


def _scores(setup: Setup, restored: Iterable[Mapping[str, Any]], progress: Progress) -> dict[int, float]:
    """Returns the metric that decides the best checkpoint, at each step that was evaluated before."""
    best = setup.task.best
    tests = {line["step"]: line[best] for line in restored if line.get("split") == "test" and best in line}
    # The checkpoint has a checksum, so its scores count more than those of metrics.jsonl.
    return tests | progress.scores


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
        run.log_every,
        run.steps,
        publisher.train_line,
        progress.sums,
        progress.count,
        parameters,
        run.on_nonfinite,
        run.max_skipped_steps,
        progress.skipped_in_a_row,
    )
    predictions = None

    def save(step: int) -> None:
        if names := evaluator.nonfinite_names(progress.state):
            raise RunStopped(f"step {step}: NaN or infinite after the update: {first_few(names)}. {FINITE_REMEDY}")
        saved = {
            "sums": window.sums,
            "count": window.count,
            "skipped_in_a_row": window.skipped_in_a_row,
            "seconds": publisher.seconds,
            "lines": publisher.lines.count,
            "checksum": publisher.lines.checksum,
            "scores": {str(evaluated): score for evaluated, score in checkpoints.scores.items()},
            "devices": setup.program.devices,
        }
        with publisher.phases.measure("saving"):
            checkpoints.save(step, progress.state, saved, before=publisher.sync)

    def evaluate(step: int) -> None:
        nonlocal predictions
        with publisher.phases.measure("evaluation"), signals.let_through():
            metrics, predictions = evaluator.evaluate(progress.state)
            if _has_ended(setup, step, checkpoints.scores | {step: metrics[task.best]}):
                metrics |= evaluator.final_metrics(progress.state)
        try:
            check_finite_metrics(step, metrics)
        except RunStopped:
            checkpoints.drop(step)  # A run that resumes from it would stop in the same way.
            raise
        publisher.test_line(step, metrics)
        checkpoints.scores[step] = metrics[task.best]

    def is_due(step: int, every: int) -> bool:
        return step == run.steps or step % every == 0

    with signals.deferred(), ExitStack() as stack:
        is_tested = progress.done in (line["step"] for line in publisher.lines.restored if line.get("split") == "test")
        if progress.done and is_due(progress.done, run.eval_every) and not is_tested:
            evaluate(progress.done)  # An earlier process ended after it saved this checkpoint, before the evaluation.
        if _has_ended(setup, progress.done, checkpoints.scores):
            calls = no_calls()
        else:
            with signals.let_through():
                examples = setup.examples(setup.source, progress.state)
            with publisher.phases.measure("compilation"):
                calls = train_calls(setup, examples, progress.state, progress.done)
        stack.enter_context(closing(calls))
        window.resume()  # The time of the compilation and of the evaluation does not count.
        for progress.state, step, count, metrics in calls:
            window.add(step, metrics, count)
            publisher.console.step(step)
            publisher.save_failed(checkpoints.failure())
            signal = signals.after(step, count)
            evaluates = is_due(step, run.eval_every)
            saves = is_due(step, run.save_every) or (evaluates and run.patience is not None)
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
                if _has_ended(setup, step, checkpoints.scores):
                    break
                publisher.report(evaluator, progress.state)
            window.resume()
        with publisher.phases.measure("saving"):
            failure = checkpoints.failure(wait=True)
        if failure is not None:
            raise failure
        publisher.sync()
    if predictions is None and task.probabilities is not None:
        predictions = evaluator.evaluate(progress.state).predictions  # A finished run has no step left that evaluates.
    return predictions


def _has_ended(setup: Setup, step: int, scores: Mapping[int, float]) -> bool:
    """Returns whether a run ends after this step: at its last step, or early."""
    run = setup.config.run
    return step == run.steps or is_over(scores, setup.task.best_mode, run.patience)


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
    run, has_ended = setup.config.run, _has_ended(setup, progress.done, checkpoints.scores)
    if run.epochs is not None:
        say(f"{run.steps:,} steps: {run.epochs:g} × {len(setup.source):,} images / {run.batch_size:,}, rounded up")
    if note is not None:
        say(note)
    if setup.features.note is not None and not has_ended:
        say(setup.features.note)
    if setup.steps_per_call.note is not None and not has_ended:
        say(setup.steps_per_call.note)
    if folder.left_by is not None:
        say(f"the last process in {folder.path} ({folder.left_by}) was killed or crashed")
    for message in checkpoints.notes:
        say(message)
    if not progress.done:
        return
    moved = "" if progress.devices in (None, program.devices) else f"; the checkpoint was saved on {progress.devices}"
    start = "Training already finished at" if has_ended else "Resumed from"
    say(f"{start} step {progress.done:,} in {folder.path}{moved}")
    saved = [line for line in publisher.lines.restored if (line["step"], line.get("split")) != (progress.done, "test")]
    rows = f"the first {progress.lines} rows of {folder.metrics}"
    if len(saved) < progress.lines:
        say(f"warning: {progress.lines - len(saved)} of {rows} are missing. Training continues without them")
    elif progress.checksum not in (None, checksum(saved[: progress.lines])):
        say(
            f"warning: {rows} changed after the checkpoint was saved. The best checkpoint is chosen by the scores in "
            "the checkpoint, not by these rows"
        )


def _announce_early_stop(setup: Setup, checkpoints: Checkpoints, publisher: Publisher) -> None:
    """Says why a run ended before its last step, and which checkpoint was the best."""
    run, task, scores = setup.config.run, setup.task, checkpoints.scores
    if run.patience is None or run.steps in scores or not is_over(scores, task.best_mode, run.patience):
        return
    best = best_step(scores, task.best_mode)
    name, evaluations = task.best.replace("_", " "), count_of(run.patience, "evaluation")
    publisher.console.say(
        f"Stopped early at step {max(scores):,} of {run.steps:,}: the last {evaluations} had no better {name} than "
        f"step {best:,}, {scores[best]:.4f}. To use that checkpoint, add --checkpoint best to train.predict or "
        "train.export. To train on, set a larger --run.patience"
    )


@contextmanager
def _what_is_saved(folder: RunFolder, checkpoints: Checkpoints, signals: DeferredSignals) -> Iterator[None]:
    """Adds the step of the last checkpoint to an error that ends the run, after a save in progress."""

    def saved() -> str:
        step = checkpoints.latest_step()
        return f"No checkpoint in {folder.path}" if step is None else f"Last checkpoint: step {step:,} in {folder.path}"

    try:
        yield
    except RunStopped as error:
        folder.check_in_place()
        raise RunStopped(f"{error}. {saved()}") from error.__cause__
    except OSError as error:
        folder.check_in_place()
        place = error.filename or folder.path
        raise RunStopped(f"cannot use {place}: {error.strerror or error}. {saved()}") from error
    except Interrupted as error:
        signals.defer_after(error)
        failure = None
        try:
            failure = checkpoints.failure(wait=not signals.is_urgent)
        except Interrupted as third:  # the third signal, while the run waits for a save
            set_handled(third)
        if signals.is_urgent:
            checkpoints.abandon()
        prefix = "" if failure is None else f"{failure}. "
        raise Interrupted(error.number, f"{prefix}{saved()}. Run the same command to resume") from None


def placed_params(params: Mapping[str, Any], places: State) -> dict[str, Any]:
    """Places each parameter on its devices. `params` may contain only some of the model's parameters."""
    return jax.device_put(dict(params), {name: places.params[name] for name in params})
