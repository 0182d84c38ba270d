"""The folder of a run: which config it belongs to, and where its files lie."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from configs.base import Config
from train.distributed import leads, together
from train.errors import UserError
from w2jax.convert.modules import module_to_json

# What may differ when a run goes on: where things lie and which machine it is, never what is computed.
FREE = ("run.dir", "run.steps_per_call", "run.compilation_cache", "data.dir", "data.workers", "data.memory_limit")
FREE_GROUPS = ("mesh.", "distributed.")
_CHECKPOINTS = "checkpoints"


class RunFolder:
    """config.json, metrics.jsonl, timing.jsonl, checkpoints/, pictures/ and report.html under one folder."""

    def __init__(self, config: Config):
        """Claims `config.run.dir`: makes it, or checks that it belongs to the same config.

        Of several processes the first one makes it, and the others look at what it made.

        Raises:
            UserError: if it is a file, cannot be written, belongs to another config, or is not seen by every process.
        """
        self.path = Path(str(config.run.dir))
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.checkpoints = self.path / _CHECKPOINTS
        self.pictures = self.path / "pictures"
        self.report = self.path / "report.html"
        saved = self.path / "config.json"
        if not leads():
            together("run folder")
        try:
            if leads():
                self.path.mkdir(parents=True, exist_ok=True)
            if saved.exists():
                self._check(config_tree(config), json.loads(saved.read_text()))
            elif not leads():
                raise UserError(
                    f"process {jax.process_index()} does not see {self.path}, which process 0 made; "
                    "--run.dir must lie on a file system that all processes share"
                )
            elif any(self.path.iterdir()):
                raise UserError(f"{self.path} holds other things and no config.json; choose another --run.dir")
            # Written again each time: it says what the run does now, and fails early if nothing can be written here.
            if leads():
                scratch = self.path / "config.json.new"
                scratch.write_text(json.dumps(config_tree(config), indent=2) + "\n")
                scratch.replace(saved)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"the run folder must be a folder, but {self.path} is or lies in a file; choose another --run.dir"
            ) from None
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written: {error.strerror}; choose another --run.dir"
            ) from error
        except json.JSONDecodeError as error:
            raise UserError(f"{saved} is not valid JSON ({error}); choose another --run.dir") from error
        if leads():
            together("run folder")

    def _check(self, config: dict[str, Any], saved: Any) -> None:
        here, there = flattened(config), flattened(saved)
        changed = [
            f"{name} was {there.get(name, 'absent')}, now {here.get(name, 'absent')}"
            for name in differing(here, there)
            if not (name in FREE or name.startswith(FREE_GROUPS))
        ]
        if changed:
            raise UserError(
                f"{self.path} was made by a different config: {'; '.join(changed)}. "
                "Give the same options to resume it, or another --run.dir"
            )


def has_checkpoint(config: Config) -> bool:
    """Whether a run was saved in `config.run.dir`, so that it would go on."""
    return any(path.name.isdigit() for path in Path(str(config.run.dir), _CHECKPOINTS).glob("*"))


def config_tree(config: Any) -> Any:
    """A config as JSON knows it: dataclasses as objects, Linen modules too, with their class; tuples as arrays."""
    if is_dataclass(config):
        if isinstance(config, nn.Module):
            return config_tree(module_to_json(config))
        return {field.name: config_tree(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, dict):
        return {name: config_tree(value) for name, value in config.items()}
    return list(config) if isinstance(config, tuple) else config


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested objects by their dotted names, as options are called; the class of a module is none."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    below = {key: value for key, value in tree.items() if key != "class"}
    return {name: leaf for key, value in below.items() for name, leaf in flattened(value, f"{prefix}{key}.").items()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names, in order, whose values differ between two flattened configs, or that only one of them has."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name, "absent") != other.get(name, "absent")]
