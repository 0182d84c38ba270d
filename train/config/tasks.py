"""Finds the tasks by their files, `configs/NAME.py` and `train/NAME.py`, without importing JAX."""

import ast
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import configs
import train
from configs.base import Config, Preset
from train.process.errors import UserError
from w2jax.text import nearest


def task_names() -> list[str]:
    """The names of all tasks, sorted."""
    programs = {module.name for module in pkgutil.iter_modules(train.__path__)}
    return sorted(module.name for module in pkgutil.iter_modules(configs.__path__) if module.name in programs)


def task_presets(task: str) -> dict[str, Preset[Any]]:
    """The presets of a task by name."""
    return importlib.import_module(f"configs.{check_task(task)}").PRESETS


def task_examples(task: str) -> list[str]:
    """The commands in the docstring of a task's program, each on an indented line."""
    code = Path(train.__path__[0], f"{check_task(task)}.py").read_text()
    lines = (ast.get_docstring(ast.parse(code)) or "").splitlines()[1:]
    return [f"    {line.strip()}" for line in lines if line.strip().startswith("python -m ")]


def task_config_type(task: str) -> type[Any]:
    """The class of a task's configs."""
    return importlib.import_module(f"configs.{check_task(task)}").Config


def task_maker(task: str) -> Callable[..., Any]:
    """`make_task(config, source)` of a task."""
    return importlib.import_module(f"train.{check_task(task)}").make_task


def check_task(task: str) -> str:
    """Returns `task` if it is the name of a task.

    Raises:
        UserError: no task has this name.
    """
    names = task_names()
    if task not in names:
        close = nearest(task, names)
        hint = f'Did you mean "{close[0]}"?' if close else f"Choose one of {', '.join(names)}"
        raise UserError(f'there is no task "{task}". {hint}')
    return task


def task_of(config: Config) -> str | None:
    """The task whose file defines the config's class or one of its base classes; None if there is no such task."""
    modules = (cls.__module__.split(".") for cls in type(config).__mro__)
    names = task_names()
    return next((path[1] for path in modules if path[0] == "configs" and len(path) == 2 and path[1] in names), None)
