"""The command that a run can be made by again, from its config alone."""

import importlib
import shlex
from collections.abc import Mapping
from typing import Any

from train.run.files import FREE_GROUPS, TASKS, default_folder, differing, flattened
from train.run.folder import config_tree


def command(tree: Mapping[str, Any]) -> str | None:
    """`python -m train.TASK PRESET --options`, by the preset that the config is nearest to.

    Machines are left out, as another one may have to do. None: no options of ours make that config.
    """
    model = tree.get("model")
    task = TASKS.get(str(model.get("class"))) if isinstance(model, Mapping) else None
    if task is None:
        return None
    presets = importlib.import_module(f"configs.{task}").PRESETS
    wanted = _options(dict(tree))
    near = {name: _options(config_tree(preset)) for name, preset in presets.items()}
    preset = min(near, key=lambda name: len(differing(wanted, near[name])))
    words = ["python", "-m", f"train.{task}", preset]
    for name in differing(wanted, near[preset]):
        if name not in wanted or name not in near[preset]:
            return None
        if name == "run.dir" and wanted[name] == default_folder(task, preset, wanted, near[preset]):
            continue
        words += _words(name.replace("_", "-"), wanted[name])
    return shlex.join(words)


def _options(tree: dict[str, Any]) -> dict[str, Any]:
    """The options of a config that say what is computed; a file's model is built as the file says."""
    left_out = FREE_GROUPS if tree.get("init_from") is None else (*FREE_GROUPS, "model.")
    return {name: value for name, value in flattened(tree).items() if not name.startswith(left_out)}


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        group, _, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{group}.no-{last}" if group else f"--no-{last}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
