"""The only training loop. It knows tasks, never models: config → data → task → steps → checkpoints and report."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from configs.base import Config
from train.checkpoint import Checkpoints
from train.checks import check_batch, check_numbers
from train.data import Source, batches, eval_batches, open_source
from train.errors import RunStopped, UserError
from train.report.console import RunConsole
from train.report.metrics import JsonLines, Window, check_finite, read_lines
from train.report.page import write_page
from train.report.pictures import write_pictures
from train.run_folder import RunFolder, has_checkpoint
from train.runtime import keep_freed_memory, quiet_libraries
from train.sharding import batch_parts, batch_sharding, make_mesh, state_sharding
from train.task import Batch, State, Task

AnyConfig = TypeVar("AnyConfig", bound=Config)


def fit(config: AnyConfig, make_task: Callable[[AnyConfig, Source], Task]) -> State:
    """Trains a task to its last step, from its last checkpoint if there is one, and writes the run folder.

    Raises:
        UserError: if the config does not fit itself, the data, the devices or the run folder.
        RunStopped: if a metric is no longer finite.
    """
    run = _Run(config, make_task)
    with Checkpoints(run.folder.checkpoints, run.task.best, run.task.best_mode) as checkpoints:
        run.begin(checkpoints)
        with RunConsole(config.run.steps, run.done) as console:
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
        """Checks everything that can be checked before the first step, and claims the run folder last."""
        self.started = time.perf_counter()
        quiet_libraries()
        keep_freed_memory()
        check_numbers(config)
        self.config = config
        self.mesh = make_mesh(config.mesh)
        check_batch(config, batch_parts(self.mesh))
        self.source = open_source(config.data, config.data.train_split)
        self.test_source = open_source(config.data, config.data.test_split)
        self.feeding = {
            "workers": config.data.workers,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
        try:
            self.task = make_task(config, self.source)
            # Read before the folder is claimed, as a file may be wrong; a run that goes on needs none of it.
            self.start = None if self.task.start is None or has_checkpoint(config) else self.task.start()
            self.shapes = placed_shapes(self.mesh, jax.eval_shape(self.task.init))
            step = jax.jit(self.task.step, donate_argnums=0, out_shardings=(shardings(self.shapes), None))
            self.lowered_step = step.lower(self.shapes, self.batch_shapes())
        except ValueError as error:  # The model's or optax's word on options that do not fit each other or the images.
            raise UserError(str(error).splitlines()[0]) from error
        self.evaluate = jax.jit(lambda state, batch: masked_sums(self.task.evaluate(state, batch), batch["mask"]))
        self.folder = RunFolder(config)

    def begin(self, checkpoints: Checkpoints) -> None:
        """Sets state, progress and the number of steps done, from the last checkpoint or anew."""
        self.done = checkpoints.latest_step() or 0
        start, self.start = self.start, None  # It may be as large as the model.
        self.note = None if start is None else start.note
        if self.done:
            self.state, self.progress = checkpoints.restore(self.done, self.shapes)
        else:
            places = shardings(self.shapes)
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
        parameters = sum(x.size for x in jax.tree.leaves(self.shapes.params))
        console.say(
            f"{self.source.name}: {len(self.source):,} train and {len(self.test_source):,} test images; "
            f"{parameters:,} parameters on {self.mesh.size} {jax.default_backend().upper()} device(s)"
        )
        if self.note is not None:
            console.say(self.note)
        if self.done:
            console.say(f"{self.folder.path} {'is finished' if self.finished else 'goes on'} at step {self.done:,}")

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

        train_step = self.lowered_step.compile()
        window = Window(run.log_every, run.steps, train_line, self.progress["sums"], self.progress["count"])
        with (
            JsonLines(self.folder.metrics, self.done) as lines,
            JsonLines(self.folder.timing, self.done) as timing,
            closing(batches(self.source, run.batch_size, run.seed, self.done, run.steps, **self.feeding)) as feed,
        ):
            for step, batch in enumerate(self.placed(feed), self.done + 1):
                self.state, metrics = train_step(self.state, batch)
                window.add(step, metrics)
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
                        scores |= self.task.assess(self.state, self.test_source)
                    check_finite(step, scores)
                    lines.write(step=step, split="test", **scores)
                    console.line(step, "test", scores)
                if saves:
                    lines.sync()
                    progress = {"sums": window.sums, "count": window.count, "seconds": self.seconds()}
                    checkpoints.save(step, self.state, progress, scores)
                window.go_on()

    def test(self) -> dict[str, float]:
        """Means over every example of the test split."""
        with closing(eval_batches(self.test_source, self.config.run.batch_size, **self.feeding)) as feed:
            sums = [jax.device_get(self.evaluate(self.state, batch)) for batch in self.placed(feed)]
        return {name: sum(float(part[name]) for part in sums) / len(self.test_source) for name in sums[0]}

    def finish(self, console: RunConsole) -> None:
        """Writes the pictures and report.html, and prints the end table."""
        parts = batch_parts(self.mesh)
        examples = -(-self.task.figure_examples // parts) * parts
        with closing(eval_batches(self.test_source, examples, **self.feeding)) as feed:
            pictures = jax.device_get(jax.jit(self.task.figures)(self.state, next(self.placed(feed))))
        write_pictures(self.folder, pictures, self.source.label_names)
        write_page(self.folder, pictures)
        last = [line for line in read_lines(self.folder.metrics) if line["split"] == "test"][-1]
        scores = {f"test {name}": f"{value:.4f}" for name, value in last.items() if name not in ("step", "split")}
        wall = self.progress["seconds"] if self.finished else self.seconds()
        console.table(scores | {"wall time": str(timedelta(seconds=round(wall))), "run folder": str(self.folder.path)})

    def placed(self, feed: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Batch]:
        """Batches cut over the devices; each process gives its own part."""
        sharding = batch_sharding(self.mesh)
        for batch in feed:
            yield {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What the step is given besides the state."""
        size, sharding = self.config.run.batch_size, batch_sharding(self.mesh)
        return {
            "image": jax.ShapeDtypeStruct((size, *self.source.image_shape), jnp.uint8, sharding=sharding),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=sharding),
            "index": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=sharding),
        }

    def seconds(self) -> float:
        """Wall time of the run so far, over all its resumptions."""
        return self.progress["seconds"] + time.perf_counter() - self.started


def placed_shapes(mesh: jax.sharding.Mesh, shapes: State) -> State:
    """The State's shapes with the place of each leaf."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, state_sharding(mesh, shapes)
    )


def shardings(shapes: State) -> State:
    """The place of each leaf."""
    return jax.tree.map(lambda x: x.sharding, shapes)


def placed_params(params: Mapping[str, Any], places: State) -> dict[str, Any]:
    """Some of the parameters, each on its devices."""
    return jax.device_put(dict(params), {name: places.params[name] for name in params})


def masked_sums(values: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
    """Sum of each metric over the examples where the mask is True."""
    return {name: jnp.where(mask, value, 0).sum() for name, value in values.items()}
