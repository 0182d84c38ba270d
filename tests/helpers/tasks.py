"""All tasks, found by their files configs/TASK.py and train/TASK.py, so that tests also cover new tasks."""

import importlib
from pathlib import Path

from configs.base import ClassifierConfig

ROOT = Path(__file__).parents[2]
TASKS = sorted(
    {path.stem for path in (ROOT / "configs").glob("[a-z]*.py")} & {path.stem for path in (ROOT / "train").glob("*.py")}
)


def presets(task):
    return importlib.import_module(f"configs.{task}").PRESETS


def preset(task, name="tiny"):
    """Returns the config of a preset."""
    return presets(task)[name].config


def make_task(task, config, source):
    return importlib.import_module(f"train.{task}").make_task(config, source)


CLASSIFIERS = [task for task in TASKS if isinstance(preset(task), ClassifierConfig)]
