"""Collects what task.json says about a run: its metrics, and facts for the report."""

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import flax
import jax

from train.engine.setup import Setup
from train.run.facts import Facts
from train.run.files import TASK
from train.run.folder import RunFolder
from train.run.record import TaskInfo, read_task_info


def describe(setup: Setup, folder: RunFolder, adapted: str | None) -> TaskInfo:
    """Returns the content of `task.json`. What earlier processes recorded about the start and the phases is kept.

    Args:
        setup: the task and its data.
        folder: the run folder.
        adapted: that of `InitialParams`. None: the run resumes or has none, so what the file says is kept.

    Raises:
        UserError: the file is damaged.
    """
    task, before = setup.task, None
    if (folder.path / TASK).exists():
        before = read_task_info(folder.path, [])
    if adapted is None:
        adapted = "" if before is None else before.adapted
    facts = Facts(
        parameters=sum(x.size for x in jax.tree.leaves(setup.program.state_shapes.params)),
        examples={"train": len(setup.source), "test": len(setup.test_source)},
        versions=versions(),
        started=(before and before.facts.started) or f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        phases={} if before is None else before.facts.phases,
    )
    return TaskInfo(task.best, task.best_mode, dict(task.metric_descriptions), adapted, facts)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that determine a run's numbers."""
    found = {"Python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__}
    try:
        return found | {"w2jax": version("w2jax")}
    except PackageNotFoundError:  # A clone that is not installed.
        return found
