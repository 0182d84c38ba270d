"""The only training loop. It knows tasks, never models: config → data → task → steps → checkpoints and report."""

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from datetime import timedelta
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from configs.base import Config
from train.checkpoint import Checkpoints
from train.checks import check_batch, check_held, check_numbers, check_same
from train.data import Source, batches, eval_batches, example_order, open_source
from train.distributed import connect, leads, together
from train.errors import RunStopped, misfits
from train.program import Program
from train.report.console import RunConsole
from train.report.metrics import JsonLines, Window, check_finite, read_lines
from train.report.page import write_page
from train.report.pictures import write_pictures
from train.report.placement import show_placement
from train.run_folder import RunFolder, has_checkpoint
from train.runtime import keep_compiled, keep_freed_memory, quiet_libraries
from train.sharding import batch_parts, make_mesh
from train.task import Batch, Metrics, State, Task

AnyConfig = TypeVar("AnyConfig", bound=Config)


def fit(config: AnyConfig, make_task: Callable[[AnyConfig, Source], Task]) -> State | None:
    """Trains a task to its last step, from its last checkpoint if there is one, and writes the run folder.

    With `config.mesh.show` it prints where the parameters would lie instead, and returns None.

    Raises:
        UserError: if the config does not fit itself, the data, the devices or the run folder.
        RunStopped: if a metric is no longer finite.
    """
    run = _Run(config, make_task)
    if config.mesh.show:
        if leads():
            show_placement(run.program.state_shapes)
        return None
    run.claim()
    with Checkpoints(run.folder.checkpoints, run.task.best, run.task.best_mode) as checkpoints:
        run.begin(checkpoints)
        with RunConsole(config.run.steps, run.done, leads()) as console:
            run.greet(console)
            try:
                if not run.finished:
                    run.train(checkpoints, console)
            except RunStopped as error:
                good = checkpoints.latest_step()
                kept = "no checkpoint was saved yet" if good is None else f"the checkpoint of step {good} is kept"
                raise RunStopped(f"{error}; {kept}. Try a lower learning rate and another --run.dir") from None
            run.finish(console)
    return run.state


class _Run:
    """One run: what is fixed once its config is checked, and what changes as it goes on (`state`, `progress`)."""

    def __init__(self, config: AnyConfig, make_task: Callable[[AnyConfig, Source], Task]):
        """Checks everything that can be checked before the first step."""
        self.started = time.perf_counter()
        quiet_libraries()
        keep_freed_memory()
        check_numbers(config)
        connect(config.distributed)
        check_same(config)
        keep_compiled(config.run.compilation_cache)
        self.config = config
        self.mesh = make_mesh(config.mesh)
        check_batch(config, batch_parts(self.mesh))
        self.source = open_source(config.data, config.data.train_split, train=True)
        self.test_source = open_source(config.data, config.data.test_split)
        check_held(config, self.source)
        with misfits():
            self.task = make_task(config, self.source)
        # Read before the folder is claimed, as a file may be wrong; a run that goes on needs none of it.
        self.start = None if self.task.start is None or has_checkpoint(config) else self.task.start()
        self.program = Program(config, self.task, self.source, self.mesh)
        self.evaluate = self.program.jit(
            lambda state, batch: masked_sums(self.task.evaluate(state, batch), batch["mask"]), self.program.everywhere
        )

    def claim(self) -> None:
        """Makes the run folder, or takes it up."""
        self.folder = RunFolder(self.config)

    def begin(self, checkpoints: Checkpoints) -> None:
        """Sets state, progress and the number of steps done, from the last checkpoint or anew."""
        self.done = checkpoints.latest_step() or 0
        start, self.start = self.start, None  # It may be as large as the model.
        self.note = None if start is None else start.note
        if self.done:
            self.state, self.progress = checkpoints.restore(self.done, self.program.state_shapes)
        else:
            places = self.program.places
            # An argument, as what a jitted function closes over is compiled into it.
            given = () if start is None else (placed_params(start.params, places),)
            self.state = jax.jit(self.task.init, out_shardings=places)(*given)
            self.progress = {"sums": {}, "count": 0, "seconds": 0.0}

    @property
    def finished(self) -> bool:
        """Whether all steps were done before this process began."""
        return self.done == self.config.run.steps

    def greet(self, console: RunConsole) -> None:
        """Says what is about to run."""
        parameters = sum(x.size for x in jax.tree.leaves(self.program.state_shapes.params))
        console.say(
            f"{self.source.name}: {len(self.source):,} train and {len(self.test_source):,} test images; "
            f"{parameters:,} parameters on {self.program.devices}"
        )
        if self.note is not None:
            console.say(self.note)
        if self.done:
            before, now = self.progress.get("devices"), self.program.devices
            moved = "" if before in (None, now) else f"; it comes from {before}"
            console.say(
                f"{self.folder.path} {'is finished' if self.finished else 'goes on'} at step {self.done:,}{moved}"
            )

    def train(self, checkpoints: Checkpoints, console: RunConsole) -> None:
        """All steps that are left, with their lines, evaluations and checkpoints."""
        run = self.config.run

        def train_line(step: int, means: dict[str, float], steps_per_second: float) -> None:
            lines.write(step=step, split="train", **means)
            speed = steps_per_second * run.batch_size
            timing.write(step=step, seconds=self.seconds(), examples_per_second=speed)
            left = timedelta(seconds=round((run.steps - step) / steps_per_second))
            console.speed(speed)
            console.line(step, "train", means, f"{speed:,.0f} examples/s  {left} left")

        window = Window(run.log_every, run.steps, train_line, self.progress["sums"], self.progress["count"])
        with (
            JsonLines(self.folder.metrics, self.done, leads()) as lines,
            JsonLines(self.folder.timing, self.done, leads()) as timing,
            closing(self.steps() if run.steps_per_call == 1 else self.steps_by_call()) as calls,
        ):
            for step, count, metrics in calls:
                window.add(step, metrics, count)
                console.step(step)
                last = step == run.steps
                evaluates, saves = last or step % run.eval_every == 0, last or step % run.save_every == 0
                if not (evaluates or saves):
                    continue
                window.drain()
                scores = None
                if evaluates:
                    scores = self.test()
                    if last and self.task.assess is not None:
                        scores |= self.task.assess(self.program.gathered(self.state), self.test_source)
                    check_finite(step, scores)
                    lines.write(step=step, split="test", **scores)
                    console.line(step, "test", scores)
                if saves:
                    lines.sync()
                    progress = {"sums": window.sums, "count": window.count, "seconds": self.seconds()}
                    checkpoints.save(step, self.state, progress | {"devices": self.program.devices}, scores)
                window.go_on()

    def steps(self) -> Generator[tuple[int, int, Metrics]]:
        """Does the steps one by one on batches from the host; yields each one's number, 1 and its metrics."""
        run = self.config.run
        train_step = self.program.lowered_step.compile()
        rows = self.program.rows(run.batch_size)
        workers = self.config.data.workers
        with closing(batches(self.source, run.batch_size, run.seed, self.done, run.steps, rows, workers)) as feed:
            for step, batch in enumerate(feed, self.done + 1):
                self.state, metrics = train_step(self.state, self.program.place(batch, rows, run.batch_size))
                yield step, 1, metrics

    def steps_by_call(self) -> Generator[tuple[int, int, Metrics]]:
        """Does several steps a call on images that lie on the device.

        Yields the last one's number, how many they were, and their metrics, stacked.
        """
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

    def test(self) -> dict[str, float]:
        """Means over every example of the test split."""
        sums = [
            jax.device_get(self.evaluate(self.state, batch)) for batch in self.test_batches(self.config.run.batch_size)
        ]
        return {name: sum(float(part[name]) for part in sums) / len(self.test_source) for name in sums[0]}

    def test_batches(self, size: int) -> Generator[Batch]:
        """The test split, cut over the devices."""
        rows = self.program.rows(size)
        with closing(eval_batches(self.test_source, size, rows, self.config.data.workers)) as feed:
            for batch in feed:
                yield self.program.place(batch, rows, size)

    def finish(self, console: RunConsole) -> None:
        """Writes the pictures and report.html, and prints the end table."""
        parts = batch_parts(self.mesh)
        examples = -(-self.task.figure_examples // parts) * parts
        with closing(self.test_batches(examples)) as feed:
            draw = self.program.jit(self.task.figures, self.program.everywhere)
            pictures = jax.device_get(draw(self.state, next(feed)))
        if leads():
            write_pictures(self.folder, pictures, self.source.label_names)
            write_page(self.folder, pictures)
            wall = self.progress["seconds"] if self.finished else self.seconds()
            last = [line for line in read_lines(self.folder.metrics) if line["split"] == "test"][-1]
            scores = {f"test {name}": f"{value:.4f}" for name, value in last.items() if name not in ("step", "split")}
            console.table(
                scores | {"wall time": str(timedelta(seconds=round(wall))), "run folder": str(self.folder.path)}
            )
        together("finish")

    def seconds(self) -> float:
        """Wall time of the run so far, over all its resumptions."""
        return self.progress["seconds"] + time.perf_counter() - self.started


def placed_params(params: Mapping[str, Any], places: State) -> dict[str, Any]:
    """Some of the parameters, each on its devices."""
    return jax.device_put(dict(params), {name: places.params[name] for name in params})


def masked_sums(values: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
    """Sum of each metric over the examples where the mask is True."""
    return {name: jnp.where(mask, value, 0).sum() for name, value in values.items()}
