"""Finds the commands that reproduce a run, from the run's config."""

import shlex
from collections.abc import Mapping
from typing import Any

from configs.options import Rule
from train.config.flags import negation
from train.config.flat import differing, flatten
from train.config.options import changeable_groups, names_with
from train.config.run_name import default_folder
from train.config.tasks import task_names, task_presets
from train.config.tree import default_tree, flat_config
from train.run.files import NO_OPTIONS


def commands(tree: Mapping[str, Any]) -> list[str]:
    """Returns `python -m train.TASK PRESET --options`, with the preset that differs least from the config.

    A run that was continued with `--run.extend` has several commands. The result is empty if no command line gives
    this config, for example if its task is unknown.
    """
    run = tree.get("run")
    if not isinstance(run, dict) or "steps" not in run:
        return []
    steps = [*(entry["steps"] for entry in tree.get("extensions", [])), run["steps"]]
    if len(steps) > 1 and "epochs" in run:
        run = {**run, "epochs": None}  # Only the epochs of the last extension are known.
    found = [_command({**tree, "run": {**run, "steps": count, "extend": i > 0}}) for i, count in enumerate(steps)]
    return [command for command in found if command is not None] if all(found) else []


def _command(tree: Mapping[str, Any]) -> str | None:
    """Returns the command for a config, or None.

    The command omits options that depend on the machine (mesh, processes), because another machine may need other
    values.
    """
    task = tree.get("task")
    if task not in task_names():
        return None
    presets = task_presets(task)
    sample = next(iter(presets.values())).config
    # With --init-from, the file determines the model.
    ignored = (*changeable_groups(sample), *NO_OPTIONS, *(["model."] if tree.get("init_from") is not None else []))

    def options(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in flat.items() if not name.startswith(ignored)}

    recorded = options(flatten(dict(tree)))
    of_presets = {name: options(flat_config(preset.config)) for name, preset in presets.items()}
    preset = min(of_presets, key=lambda name: len(differing(recorded, of_presets[name])))
    values = of_presets[preset]
    # An option that did not exist when the run was trained has its default.
    defaults = options(flatten(default_tree(presets[preset].config)))
    wanted = {name: value for name, value in defaults.items() if name in values} | recorded
    if wanted.get("run.epochs") is not None:
        wanted["run.steps"] = values["run.steps"]  # It follows from the epochs.
    words = ["python", "-m", f"train.{task}", preset]
    changed = differing(wanted, values, ignored=names_with(sample, Rule.CHANGEABLE_ON_RESUME))
    for name in differing(wanted, values):
        if name not in wanted or name not in values:
            return None
        if name == "run.dir" and wanted[name] == default_folder(
            task, preset, {option: wanted[option] for option in changed}, wanted.keys() | values.keys()
        ):
            continue
        words += _words(name.replace("_", "-"), wanted[name])
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    flag = f"--{name}"
    if isinstance(value, bool):
        return [flag if value else negation(flag)]
    return [flag, *map(str, value if isinstance(value, list) else [value])]
