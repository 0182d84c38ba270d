"""Logs a run folder to a run of Weights & Biases."""

import json
import os
import shlex
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from configs.base import Config
from train.config.flat import flatten
from train.config.tree import config_to_tree
from train.loggers.trackers import MetricRow, PictureFile
from train.process.errors import UserError
from train.run.atomic import write_atomic
from train.run.files import read_run_file
from train.run.folder import RunFolder


class WandB:
    """Logs to one run of Weights & Biases. Its step counter is the row number in metrics.jsonl.

    So a resumed run sends each row once, and only the rows that W&B does not have. Offline, each process writes a
    folder with all rows from the first one. Syncing a folder replaces the rows that were synced before.
    """

    name = "Weights & Biases"

    def start(self, folder: RunFolder, config: Config, rows: Sequence[MetricRow], say: Callable[[str], None]) -> None:
        wandb = import_module("wandb")
        try:  # Checks the name of the project.
            settings = wandb.Settings(project=config.run.wandb, console="off", silent=True)
        except wandb.errors.UsageError as error:
            raise UserError(f"--run.wandb {config.run.wandb}: {error}") from error
        folder.wandb.mkdir(exist_ok=True)
        try:
            with _cache_in(folder.wandb):
                self._run = wandb.init(
                    id=_run_id(folder.wandb / "run.json"),
                    resume="allow",
                    reinit="create_new",  # Does not change a run that the caller has started.
                    name=folder.path.name,
                    dir=str(folder.path.absolute()),  # W&B appends "wandb".
                    config=flatten(config_to_tree(config)),
                    allow_val_change=True,  # Some options may change when a run resumes.
                    settings=settings,
                )
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise RuntimeError(
                f"{str(error).rstrip('.')}. To log without an account, set WANDB_MODE=offline"
            ) from error
        self._image = wandb.Image
        self._run.define_metric("*", step_metric="step")
        self._line = 0
        for row in rows:
            self.log_row(row)
        if self._run.offline:
            upload = shlex.join(["wandb", "sync", str(folder.wandb / "latest-run")])
            say(f"Weights & Biases is offline; upload the run later with: {upload}")
        elif self._run.url:
            say(f"Weights & Biases: {self._run.url}")

    def log_row(self, row: MetricRow) -> None:
        self._log(row.step, row.values)

    def log_pictures(self, step: int, pictures: Mapping[str, PictureFile]) -> None:
        images = {f"pictures/{name}": self._image(str(f.path), caption=f.caption) for name, f in pictures.items()}
        self._log(step, images)

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if values and self._line >= self._run.starting_step:
            self._run.log({"step": step, **values}, step=self._line, commit=True)
        self._line += 1


def _run_id(path: Path) -> str:
    """Reads the W&B id of this run folder from `path`. Creates the file and the id if the file does not exist.

    Raises:
        UserError: if the file is damaged.
    """
    if not path.exists():
        write_atomic(path, json.dumps({"id": uuid.uuid4().hex}) + "\n")
    try:
        return str(json.loads(read_run_file(path))["id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{path} must be {{"id": …}}, got {error!r}. Delete the file to start a new W&B run') from error


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Makes W&B cache files in `folder`, not in the user's home.

    W&B's background process, which the first run starts, reads the setting.
    """
    name = "WANDB_CACHE_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(folder.absolute() / "cache")
    try:
        yield
    finally:
        del os.environ[name]
