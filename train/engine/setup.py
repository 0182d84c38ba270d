"""Builds everything that a run needs before its first step, and checks it before any file is written."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from configs.base import Config, Distributed
from train.config.checks import check_batch, check_ranges, check_same
from train.config.options import model_flags
from train.data import Source, open_source
from train.data.source import InMemorySource
from train.engine.program import Program
from train.engine.sharding import batch_parts, make_mesh
from train.loggers.trackers import check_trackers
from train.process.errors import UserError, as_user_error
from train.run.folder import has_checkpoint
from train.task import InitialParams, Task

MakeTask = Callable[[Any, Source], Task]


@dataclass(frozen=True)
class Setup:
    """A checked config, with the task, data and program built from it."""

    config: Config
    task: Task
    source: Source
    """The training split."""
    test_source: Source
    program: Program
    started: float = field(default_factory=time.perf_counter)
    """Start time of the process, from `time.perf_counter`."""

    @property
    def batch_parts(self) -> int:
        """Number of shards of a batch."""
        return batch_parts(self.program.mesh)


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
    test_source = open_source(config.data, config.data.test_split)
    _check_in_memory(config, source)
    with as_user_error(model_flags(config)):
        task = make_task(config, source)
    # The file may be wrong, so it is read before the run folder is created. A run that resumes does not need the file.
    initial = None if task.initial_params is None or has_checkpoint(config) else task.initial_params()
    program = Program(config, task, source, mesh)
    return Setup(config, task, source, test_source, program, started), initial


def _check_in_memory(config: Config, source: Source) -> None:
    """Raises UserError if `steps_per_call` is above 1 and the training split is not in memory."""
    if config.run.steps_per_call > 1 and not isinstance(source, InMemorySource):
        raise UserError(
            f"--run.steps-per-call must be 1 if the dataset is streamed, got {config.run.steps_per_call}: "
            f"{source.name} is streamed. Set --run.steps-per-call to 1, or raise --data.memory-limit if the "
            "training split fits in memory and on the device"
        )
