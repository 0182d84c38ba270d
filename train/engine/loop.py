"""The only training loop. It knows tasks, never models: config → data → task → steps → checkpoints and report."""

import errno
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from configs.base import Config
from train.config.checks import check_batch, check_held, check_numbers, check_same
from train.data import Source, batches, eval_batches, example_order, open_source
from train.engine.checkpoint import Checkpoints
from train.engine.placement import show_placement
from train.engine.program import Program
from train.engine.sharding import batch_parts, make_mesh
from train.loggers.console import RunConsole
from train.loggers.jsonl import REMEDY, JsonLines, Window, check_finite, listed
from train.loggers.trackers import Trackers, check_trackers
from train.process.distributed import barrier, connect, is_main_process
from train.process.errors import Interrupted, RunStopped, as_user_error
from train.process.malloc import keep_freed_memory, trim_after_compiling
from train.process.setup import enable_compilation_cache, silence_libraries, split_cpu_into_devices
from train.process.signals import DeferredSignals
from train.report.mistakes import Predictions, write_mistakes
from train.report.page import write_report
from train.report.pictures import write_pictures
from train.run.files import format_duration, read_lines
from train.run.folder import RunFolder, has_checkpoint
from train.task import Batch, Metrics, Picture, State, Task, named_leaves, nonfinite_leaves

# A full disk, a used-up quota, a read-only or a failing file system.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

AnyConfig = TypeVar("AnyConfig", bound=Config)


def fit(config: AnyConfig, make_task: Callable[[AnyConfig, Source], Task]) -> State | None:
    """Trains a task to its last step, from its last checkpoint if there is one, and writes the run folder.

    With `config.mesh.show` it prints where the parameters would lie instead, and returns None.

    Raises:
        UserError: if the config does not fit itself, the data, the devices or the run folder.
        RunStopped: if a step is not finite, nothing can be saved, or every checkpoint is damaged.
        Interrupted: if a signal asked it to end. What was done is saved.
    """
    run = _Run(config, make_task)
    if config.mesh.show:
        if is_main_process():
            show_placement(run.program.state_shapes)
        return None
    run.claim()
    with run.folder, run.trackers, Checkpoints(run.folder.checkpoints, run.task.best_mode) as checkpoints:
        try:
            run.begin(checkpoints)
            with run.lines, run.timing, RunConsole(config.run.steps, run.done, is_main_process()) as console:
                run.trackers.begin(run.lines.kept, run.timing.kept, run.seconds(), console.say)
                run.greet(checkpoints, console)
                run.train(checkpoints, console)
                run.finish(console)
        except RunStopped as error:
            raise RunStopped(f"{error}. {run.kept(checkpoints)}") from error.__cause__
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            where = error.filename or run.folder.path
            raise RunStopped(f"{where} cannot be written: {error.strerror}. {run.kept(checkpoints)}") from error
        except Interrupted as error:
            failure = checkpoints.look(wait=True)
            told = "" if failure is None else f"{failure}. "
            raise Interrupted(error.number, f"{told}{run.kept(checkpoints)}; the same command goes on") from None
    return run.state


class _Run:
    """One run: what is fixed once its config is checked, and what changes as it goes on (`state`, `progress`)."""

    def __init__(self, config: AnyConfig, make_task: Callable[[AnyConfig, Source], Task]):
        """Checks everything that can be checked before the first step."""
        self.started = time.perf_counter()
        silence_libraries()
        keep_freed_memory()
        trim_after_compiling()
        check_numbers(config)
        check_trackers(config)
        connect(config.distributed)
        split_cpu_into_devices(config)
        check_same(config)
        enable_compilation_cache(config.run.compilation_cache)
        self.config = config
        self.mesh = make_mesh(config.mesh)
        check_batch(config, batch_parts(self.mesh))
        self.source = open_source(config.data, config.data.train_split, train=True)
        self.test_source = open_source(config.data, config.data.test_split)
        check_held(config, self.source)
        with as_user_error():
            self.task = make_task(config, self.source)
        # Read before the folder is claimed, as a file may be wrong; a run that goes on needs none of it.
        self.start = None if self.task.start is None or has_checkpoint(config) else self.task.start()
        self.program = Program(config, self.task, self.source, self.mesh)
        self.evaluate = self.program.jit(partial(evaluated, self.task), self.program.everywhere)
        self.predictions: Predictions | None = None
        once = self.program.run_once
        self.broken = self.program.jit(nonfinite_leaves, self.program.everywhere, compiler_options=once)
        self.draw = self.program.jit(self.task.figures, self.program.everywhere, compiler_options=once)

    def claim(self) -> None:
        """Makes the run folder, or takes it up."""
        self.folder = RunFolder(self.config)
        self.trackers = Trackers(self.config, self.folder)

    def begin(self, checkpoints: Checkpoints) -> None:
        """Sets state, progress and the number of steps done, from the last checkpoint or anew."""
        self.folder.write_image_info(self.source.image_shape, self.source.label_names)
        self.done = checkpoints.latest_step() or 0
        self.lines = JsonLines(self.folder.metrics, self.done, is_main_process())
        self.timing = JsonLines(self.folder.timing, self.done, is_main_process())
        start, self.start = self.start, None  # It may be as large as the model.
        self.note = None if start is None else start.note
        if self.done:
            self.state, self.progress = checkpoints.restore(self.done, self.program.state_shapes)
        else:
            places = self.program.places
            # An argument, as what a jitted function closes over is compiled into it.
            given = () if start is None else (placed_params(start.params, places),)
            self.state = jax.jit(self.task.init, out_shardings=places, compiler_options=self.program.run_once)(*given)
            self.progress = {"sums": {}, "count": 0, "seconds": 0.0}

    def kept(self, checkpoints: Checkpoints) -> str:
        """Says what is left of the run."""
        step = checkpoints.latest_step()
        return f"{self.folder.path} is saved up to step {step or 0:,}"

    def greet(self, checkpoints: Checkpoints, console: RunConsole) -> None:
        """Says what is about to run, and all that is strange about what was found of it."""
        parameters = sum(x.size for x in jax.tree.leaves(self.program.state_shapes.params))
        console.say(
            f"{self.source.name}: {len(self.source):,} train and {len(self.test_source):,} test images; "
            f"{parameters:,} parameters on {self.program.devices}"
        )
        if self.note is not None:
            console.say(self.note)
        if self.folder.left_by is not None:
            console.say(f"{self.folder.path} was left by {self.folder.left_by}, which ended without a word")
        for note in checkpoints.notes:
            console.say(note)
        if not self.done:
            return
        before, now = self.progress.get("devices"), self.program.devices
        moved = "" if before in (None, now) else f"; it comes from {before}"
        does = "is finished" if self.done == self.config.run.steps else "goes on"
        console.say(f"{self.folder.path} {does} at step {self.done:,}{moved}")
        wanted = self.progress.get("lines", 0)
        found = sum((line["step"], line.get("split")) != (self.done, "test") for line in self.lines.kept)
        if found < wanted:
            console.say(f"warning: {self.folder.metrics} has lost {wanted - found} of its first {wanted} lines")

    def train(self, checkpoints: Checkpoints, console: RunConsole) -> None:
        """All that is left to do: steps, with their lines, checkpoints and evaluations."""
        run = self.config.run
        window = self.window(console)
        tests = [line for line in self.lines.kept if line.get("split") == "test" and self.task.best in line]
        checkpoints.scores.update({line["step"]: line[self.task.best] for line in tests})
        with DeferredSignals() as signals, closing(self.calls()) as calls:
            if self.done and self.is_due(self.done, run.eval_every) and self.done not in checkpoints.scores:
                # The process before this one ended between the checkpoint and its evaluation.
                with signals.let_through():
                    scores = self.assess(self.done, checkpoints)
                self.write_scores(self.done, scores, checkpoints, console)
            for step, count, metrics in calls:
                window.add(step, metrics, count)
                console.step(step)
                self.heed(checkpoints.look(), console)
                signal = signals.after(step, count)
                saves, tests = self.is_due(step, run.save_every), self.is_due(step, run.eval_every)
                if not (saves or tests or signal):
                    continue
                window.drain()
                if saves or signal:
                    self.save(step, window, checkpoints)
                if signal:
                    raise Interrupted(signal)
                if tests:
                    try:
                        with signals.let_through():
                            scores = self.assess(step, checkpoints)
                    except Interrupted:
                        if not saves:
                            self.save(step, window, checkpoints)
                        raise
                    self.write_scores(step, scores, checkpoints, console)
                    if step != run.steps:
                        self.show(console)
                window.go_on()
        if (failure := checkpoints.look(wait=True)) is not None:
            raise failure
        self.sync()

    def window(self, console: RunConsole) -> Window:
        """Gathers the steps' metrics into lines, from where the checkpoint stands."""
        run = self.config.run

        def train_line(step: int, means: dict[str, float], steps_per_second: float) -> None:
            self.lines.write(step=step, split="train", **means)
            speed = steps_per_second * run.batch_size
            on = self.program.devices
            self.timing.write(step=step, seconds=self.seconds(), examples_per_second=speed, devices=on)
            left = format_duration((run.steps - step) / steps_per_second)
            self.trackers.line(step, "train", means | {"examples_per_second": speed})
            console.speed(speed)
            console.line(step, "train", means, f"{speed:,.0f} examples/s  {left} left")

        begun = self.progress["sums"], self.progress["count"]
        parameters = list(named_leaves(self.program.state_shapes.params))
        return Window(run.log_every, run.steps, train_line, *begun, parameters, run.on_nan)

    def is_due(self, step: int, every: int) -> bool:
        """Whether what is done every so many steps, and after the last, is done after this one."""
        return step == self.config.run.steps or step % every == 0

    def save(self, step: int, window: Window, checkpoints: Checkpoints) -> None:
        """Starts to save the state after `step`, once all lines up to it are on disk.

        Raises:
            RunStopped: if it is not finite.
        """
        if (broken := np.flatnonzero(self.broken(self.state))).size:
            names = list(named_leaves(self.state))
            raise RunStopped(
                f"step {step}: not finite after the update: {listed([names[i] for i in broken])}; {REMEDY}"
            )
        progress = {"sums": window.sums, "count": window.count, "seconds": self.seconds()}
        progress |= {"devices": self.program.devices, "lines": self.lines.count}
        checkpoints.save(step, self.state, progress, self.sync)

    def sync(self) -> None:
        """Returns when all lines are on disk; OSError if they cannot be."""
        self.lines.sync()
        self.timing.sync()

    def heed(self, failure: RunStopped | None, console: RunConsole) -> None:
        """Stops the run, or goes on, if a checkpoint could not be written."""
        if failure is not None:
            if self.config.run.on_save_error == "stop":
                raise RunStopped(f"{failure}; once that is mended, the same command goes on")
            console.say(f"warning: {failure}; going on, and trying again at the next checkpoint")

    def assess(self, step: int, checkpoints: Checkpoints) -> dict[str, float]:
        """The metrics of the test split, after the last step with those that are no mean over examples.

        Raises:
            RunStopped: if one is not finite. Then the state is worth nothing, and its checkpoint is removed.
        """
        scores, self.predictions = self.test()
        if step == self.config.run.steps and self.task.assess is not None:
            scores |= self.task.assess(self.program.gathered(self.state), self.test_source)
        try:
            check_finite(step, scores)
        except RunStopped:
            checkpoints.drop(step)
            raise
        return scores

    def write_scores(self, step: int, scores: dict[str, float], checkpoints: Checkpoints, console: RunConsole) -> None:
        """One line, and what the checkpoints are judged by."""
        self.lines.write(step=step, split="test", **scores)
        self.trackers.line(step, "test", scores)
        console.line(step, "test", scores)
        checkpoints.scores[step] = scores[self.task.best]

    def calls(self) -> Generator[tuple[int, int, Metrics]]:
        """Does the steps that are left, in calls of one or of several.

        Yields the last one's number, how many they were, and their metrics, stacked if there are several.
        """
        if self.done < self.config.run.steps:  # Else nothing need be compiled.
            yield from self.steps() if self.config.run.steps_per_call == 1 else self.steps_by_call()

    def steps(self) -> Generator[tuple[int, int, Metrics]]:
        """The calls of one step each, on batches from the host."""
        run = self.config.run
        train_step = self.program.lowered_step.compile()
        rows = self.program.rows(run.batch_size)
        workers = self.config.data.workers
        with closing(batches(self.source, run.batch_size, run.seed, self.done, run.steps, rows, workers)) as feed:
            for step, batch in enumerate(feed, self.done + 1):
                self.state, metrics = train_step(self.state, self.program.place(batch, rows, run.batch_size))
                yield step, 1, metrics

    def steps_by_call(self) -> Generator[tuple[int, int, Metrics]]:
        """The calls of several steps, on images that lie on the device."""
        run, most = self.config.run, self.config.run.steps_per_call
        train_steps = self.program.lower_many(most).compile()
        held = self.source.gather(np.arange(len(self.source)))
        images, labels = (self.program.copied(held[name]) for name in ("image", "label"))
        order = example_order(len(self.source), run.batch_size, run.seed)
        done = self.done
        while done < run.steps:
            # A call ends where an evaluation or a checkpoint is due.
            count = min(most, run.steps - done, *(every - done % every for every in (run.eval_every, run.save_every)))
            indices = np.zeros((most, run.batch_size), np.int32)
            indices[:count] = [order(step) for step in range(done, done + count)]
            given = self.program.copied(indices), self.program.copied(np.asarray(count, np.int32))
            self.state, metrics = train_steps(self.state, images, labels, *given)
            done += count
            yield done, count, metrics

    def test(self) -> tuple[dict[str, float], Predictions | None]:
        """Means over every example of the test split, and what a classifier says of each."""
        with closing(self.test_batches(self.config.run.batch_size)) as feed:
            sums, predictions = zip(*(jax.device_get(self.evaluate(self.state, batch)) for batch in feed), strict=True)
        means = {name: sum(float(part[name]) for part in sums) / len(self.test_source) for name in sums[0]}
        if predictions[0] is None:
            return means, None
        labels, said, probability = map(np.concatenate, zip(*predictions, strict=True))
        return means, Predictions(*(x[said >= 0] for x in (labels, said, probability)))

    def test_batches(self, size: int) -> Generator[Batch]:
        """The test split, cut over the devices."""
        rows = self.program.rows(size)
        with closing(eval_batches(self.test_source, size, rows, self.config.data.workers)) as feed:
            for batch in feed:
                yield self.program.place(batch, rows, size)

    def show(self, console: RunConsole) -> None:
        """Writes the report of a run that goes on, which a browser may be watching."""
        try:
            self.report()
        except OSError as error:
            if error.errno not in _CANNOT_WRITE or self.config.run.on_save_error == "stop":
                raise
            console.say(f"warning: {error.filename or self.folder.path} cannot be written: {error.strerror}; going on")

    def report(self) -> Mapping[str, Picture]:
        """Writes the pictures, which it returns, and report.html."""
        parts = batch_parts(self.mesh)
        examples = -(-self.task.figure_examples // parts) * parts
        with closing(self.test_batches(examples)) as feed:
            pictures = jax.device_get(self.draw(self.state, next(feed)))
        if is_main_process():
            write_pictures(self.folder.path, pictures, self.source.label_names)
            write_report(self.folder.path)
        return pictures

    def finish(self, console: RunConsole) -> None:
        """Writes mistakes, pictures and report.html, and prints the end table."""
        if self.task.probabilities is not None:
            # A run that was finished when it was taken up has tested nothing.
            predictions = self.predictions or self.test()[1]
            if is_main_process() and predictions is not None:
                write_mistakes(self.folder.path, predictions, self.test_source)
        pictures = self.report()
        if is_main_process():
            self.trackers.pictures(pictures)
            wall = self.progress["seconds"] if self.done == self.config.run.steps else self.seconds()
            last = [line for line in read_lines(self.folder.metrics) if line.get("split") == "test"][-1]
            scores = {f"test {name}": f"{value:.4f}" for name, value in last.items() if name not in ("step", "split")}
            console.table(scores | {"wall time": format_duration(wall), "run folder": str(self.folder.path)})
        barrier("finish")

    def seconds(self) -> float:
        """Wall time of the run so far, over all its resumptions."""
        return self.progress["seconds"] + time.perf_counter() - self.started


def placed_params(params: Mapping[str, Any], places: State) -> dict[str, Any]:
    """Some of the parameters, each on its devices."""
    return jax.device_put(dict(params), {name: places.params[name] for name in params})


def evaluated(task: Task, state: State, batch: Batch) -> tuple[dict[str, jax.Array], tuple[jax.Array, ...] | None]:
    """The sums of the metrics over a batch, and what a classifier says of it as the fields of Verdicts.

    An example that only fills up the batch is said to be -1.
    """
    sums = masked_sums(task.evaluate(state, batch), batch["mask"])
    if task.probabilities is None:
        return sums, None
    of_classes = task.probabilities(state, batch["image"])  # XLA computes but once what `evaluate` computes too.
    said = jnp.where(batch["mask"], of_classes.argmax(axis=-1), -1)
    return sums, (batch["label"], said, of_classes.max(axis=-1))


def masked_sums(values: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
    """Sum of each metric over the examples where the mask is True."""
    return {name: jnp.where(mask, value, 0).sum() for name, value in values.items()}
