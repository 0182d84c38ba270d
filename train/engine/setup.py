"""Builds everything that a run needs before its first step, and checks it before any file is written."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import jax

from configs.base import Config, Distributed
from train.config.checks import check_batch, check_ranges, check_same
from train.config.options import model_flags, options_of
from train.data import Source, open_source
from train.data.source import InMemorySource
from train.engine.features import Plan, computed, plan
from train.engine.program import Program
from train.engine.sharding import batch_parts, make_mesh
from train.engine.steps_per_call import StepsPerCall, choose
from train.loggers.trackers import check_trackers
from train.process.errors import UserError, as_user_error
from train.run.folder import has_checkpoint
from train.task import InitialParams, State, Task
from w2jax.text import format_bytes

MakeTask = Callable[[Any, Source], Task]
AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True)
class Setup:
    """A checked config, with the task, data and program built from it."""

    config: Config
    """Its `run.steps` is resolved from `run.epochs`."""
    task: Task
    source: Source
    """The training split."""
    test_source: Source
    program: Program
    features: Plan
    steps_per_call: StepsPerCall
    started: float = field(default_factory=time.perf_counter)
    """Start time of the process, from `time.perf_counter`."""

    @property
    def batch_parts(self) -> int:
        """Number of shards of a batch."""
        return batch_parts(self.program.mesh)

    def examples(self, source: Source, state: State) -> Source:
        """Returns what steps and evaluations read of a split: its images, or their features."""
        if self.features.feature is None or self.task.features is None:
            return source
        size, workers = self.config.run.batch_size, self.config.data.workers
        return computed(self.program, self.task.features, source, state, size, workers)


def set_up(config: Config, make_task: MakeTask) -> tuple[Setup, InitialParams | None]:
    """Checks a config, opens its data and builds its task and program. Writes no file.

    Returns:
        The setup, and the initial parameters that the task read. They are None if the task reads none, or the run
        resumes.

    Raises:
        UserError: if options of the config contradict each other, the data or the devices.
    """
    started = time.perf_counter()
    check_ranges(config)
    check_trackers(config)
    if config.distributed != Distributed() and not jax.distributed.is_initialized():
        raise UserError(
            "--distributed.* must take effect before JAX starts. Call train.process.setup.prepare_process(config) "
            "before fit, as the training programs do"
        )
    check_same(config)
    mesh = make_mesh(config.mesh)
    check_batch(config, batch_parts(mesh))
    source = open_source(config.data, config.data.train_split, train=True)
    config = with_steps(config, len(source))
    test_source = open_source(config.data, config.data.test_split)
    with as_user_error(model_flags(config)):
        task = make_task(config, source)
        features = plan(config, task, source, test_source)
    if features.feature is None:
        _check_in_memory(config, source)
    _check_examples(task, source, test_source)
    # The file may be wrong, so it is read before the run folder is created. A run that resumes does not need the file.
    initial = None if task.initial_params is None or has_checkpoint(config) else task.initial_params()
    program = Program(config, task, source, mesh, features.feature)
    _check_memory(program)
    calls = choose(config, source, program, features.feature is not None)
    return Setup(config, task, source, test_source, program, features, calls, started), initial


def with_steps(config: AnyConfig, examples: int) -> AnyConfig:
    """Returns the config with the number of steps that `config.run.epochs` gives for `examples` training images.

    Without this option the config stays the same.

    Raises:
        UserError: if this is more steps than --run.steps can be.
    """
    run = config.run
    if run.epochs is None:
        return config
    # Rounded first, because 0.07 · 100 is 7.000000000000001 in binary.
    steps = max(1, math.ceil(round(run.epochs * examples / run.batch_size, 6)))
    limit = options_of(config)["run.steps"].range
    if limit is not None and steps not in limit:
        raise UserError(
            f"--run.epochs must give at most {limit.high:,} steps, got {run.epochs:g} epochs, which are "
            f"{steps:.3g} steps with {run.batch_size:,} of the {examples:,} images in each. Set fewer epochs"
        )
    return replace(config, run=replace(run, steps=steps))


def _check_examples(task: Task, *splits: Source) -> None:
    """Raises UserError if a split is too small for the task's final metrics."""
    for source in splits:
        if len(source) < task.min_examples:
            raise UserError(
                f"the metrics at the end of this training need at least {task.min_examples} examples of dataset "
                f"{source.name}, split {source.split}, got {len(source)}. Choose a larger split"
            )


def _check_memory(program: Program) -> None:
    """Raises UserError if the state or a batch is larger than the memory; XLA would abort or fill the swap space."""
    devices = program.mesh.local_devices
    if devices[0].platform == "cpu":
        limit, copies = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), len(devices)
    else:
        limit, copies = (devices[0].memory_stats() or {}).get("bytes_limit"), 1
    for name, shapes, advice in (
        ("the model with its optimizer", program.state_shapes, "Set smaller sizes with --model.*"),
        ("a batch", program.batch_shapes, "Set a smaller --run.batch-size"),
    ):
        parts = [(x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(shapes)]
        size = copies * sum(math.prod(shape) * width for shape, width in parts)
        if limit and size > limit:
            raise UserError(
                f"{name} must fit in the {format_bytes(limit)} of memory, got {format_bytes(size)}. {advice}"
            )


def _check_in_memory(config: Config, source: Source) -> None:
    """Raises UserError if `steps_per_call` is a number above 1 and the training split is not in memory."""
    if config.run.steps_per_call not in ("auto", 1) and not isinstance(source, InMemorySource):
        raise UserError(
            f"--run.steps-per-call must be auto or 1 if the dataset is streamed, got {config.run.steps_per_call}: "
            f"{source.name} is streamed. Leave --run.steps-per-call out, or raise --data.memory-limit if the "
            "training split fits in memory and on the device"
        )
