"""Everything about a run that is fixed before its first step, checked before anything is written."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from configs.base import Config, Distributed
from train.config.checks import check_batch, check_ranges, check_same
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
    """A checked config and what was built from it."""

    config: Config
    task: Task
    source: Source
    """The training split."""
    test_source: Source
    program: Program
    started: float = field(default_factory=time.perf_counter)
    """When the run began, by `time.perf_counter`."""

    @property
    def batch_parts(self) -> int:
        """How many parts a batch is sharded into."""
        return batch_parts(self.program.mesh)


def set_up(config: Config, make_task: MakeTask) -> tuple[Setup, InitialParams | None]:
    """Checks a config, opens its data and builds its task and program; nothing is written.

    Returns:
        The setup, and the parameters that a new run starts from; None if the task makes them all or the run resumes.

    Raises:
        UserError: the config does not fit itself, the data or the devices.
    """
    started = time.perf_counter()
    check_ranges(config)
    check_trackers(config)
    if config.distributed != Distributed() and not jax.distributed.is_initialized():
        raise UserError(
            "--distributed.* connects processes before JAX starts: call train.process.setup.prepare_process(config) "
            "before fit, as the programs do"
        )
    check_same(config)
    mesh = make_mesh(config.mesh)
    check_batch(config, batch_parts(mesh))
    source = open_source(config.data, config.data.train_split, train=True)
    test_source = open_source(config.data, config.data.test_split)
    _check_in_memory(config, source)
    with as_user_error():
        task = make_task(config, source)
    # Read before the folder is claimed, as the file may be wrong; a run that resumes needs none of it.
    initial = None if task.initial_params is None or has_checkpoint(config) else task.initial_params()
    program = Program(config, task, source, mesh)
    return Setup(config, task, source, test_source, program, started), initial


def _check_in_memory(config: Config, source: Source) -> None:
    """UserError if several steps per call are wanted on a training split that is not held in memory."""
    if config.run.steps_per_call > 1 and not isinstance(source, InMemorySource):
        raise UserError(
            f"--run.steps-per-call above 1 keeps the training split on the device, but {source.name} is streamed; "
            "leave it 1, or raise --data.memory-limit if it fits"
        )
