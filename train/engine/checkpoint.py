"""Saves and restores checkpoints with orbax.

Checkpoints are saved in the background, with checksums. The checksums are verified before a checkpoint is read.
The latest two checkpoints and the best one are kept. A damaged checkpoint is moved to another folder, and the
checkpoint before it is used.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.engine.save_errors import reporting
from train.process.distributed import barrier, is_main_process
from train.process.errors import RunStopped, UserError
from train.run.manifest import VERSION, checkpoint_steps, damage, has_manifest, write_manifest
from train.run.patience import best_step
from train.task import State, array_differences
from w2jax.text import first_few, one_line, shorten

# Orbax divides a replicated array among the devices that write it, into parts of at least this many bytes. Without this
# limit orbax would divide small arrays too, and JAX would compile a program for each shape.
_LEAST_PART = 2**20
_TIMEOUT = 1200  # seconds
_YEARS = 3 * 10**9  # seconds, 95 years; Python's threads wait for at most 292 years


class Checkpoints:
    """The folder `checkpoints/` of a run. Each checkpoint has the State ("state") and the loop's JSON ("progress")."""

    def __init__(self, folder: Path, best_mode: Literal["max", "min"] = "max"):
        """Finds the last undamaged checkpoint and moves damaged ones after it to `damaged/`, beside `folder`.

        Args:
            folder: the run's folder of checkpoints. It is created if it does not exist.
            best_mode: "max" if the highest of the `scores` is best, "min" if the lowest is.

        Raises:
            RunStopped: if all checkpoints are damaged, or one was saved by a later version. No file is changed.
        """
        self._folder = folder.absolute()
        self.notes: list[str] = []
        """Messages for the user about checkpoints that earlier processes saved."""
        self.scores: dict[int, float] = {}
        """The test metric that decides the best checkpoint, at each evaluated step."""
        self._failure: RunStopped | None = None
        self._saving: int | None = None
        """The step of the save in progress."""
        self._abandoned = False
        self._reported: BaseException | None = None
        """The first error of a save that this process has not raised yet."""
        if is_main_process():
            self._put_damaged_aside()
        barrier("checkpoints")
        self._policy = _LatestAndBest(self.scores, best_mode)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        # Orbax measures the timeout of a save with the clock, which someone may set meanwhile. Only several processes
        # need a timeout, because they wait for each other.
        timeout = _YEARS if jax.process_count() == 1 else _TIMEOUT
        async_options = ocp.options.AsyncOptions(timeout_secs=timeout, post_finalization_callback=self._list_files)
        options = ocp.CheckpointManagerOptions(preservation_policy=self._policy, async_options=async_options)
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_PART)
        # Orbax's global registry is shared by the whole process, so the handler gets a separate one.
        numpy = ocp.type_handlers.NumpyHandler()  # restores a state whose shapes have no shardings
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays), (np.ndarray, numpy))
        handlers = {
            "state": reporting(ocp.PyTreeCheckpointHandler(type_handler_registry=registry), self._report),
            "progress": reporting(ocp.JsonCheckpointHandler(), self._report),
        }
        return ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def save(
        self, step: int, state: State, progress: dict[str, Any], before: Callable[[], None] = lambda: None
    ) -> None:
        """Starts to save a checkpoint, and returns as soon as the caller may change `state` and `progress`.

        If the save fails, `failure` returns the error. `before` is called first. If `before` raises OSError, nothing is
        saved.
        """
        self._wait()
        self._remove_leftovers()
        progress = deepcopy(progress) | {"version": VERSION}  # A thread of orbax writes it later.
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(progress))
        self._saving, self._reported = step, None
        with self._ended_by_errors():
            before()
            self._manager.save(step, args=items, force=True)

    def failure(self, wait: bool = False) -> RunStopped | None:
        """Returns the error of a failed save, once; else None. With `wait`, waits for a save in progress."""
        if wait or self._reported is not None or not self._manager.is_saving_in_progress():
            self._wait()
        failure, self._failure = self._failure, None
        return failure

    def abandon(self) -> None:
        """Gives up a save in progress. It may still be completed, but it is never left in part."""
        self._saving, self._abandoned = None, True

    def drop(self, step: int) -> None:
        """Removes the checkpoint of a step if it exists."""
        self._wait()
        if step in self._manager.all_steps():
            self._manager.delete(step)

    def _wait(self) -> None:
        """Waits for a save in progress."""
        if self._saving is None:
            return
        with self._ended_by_errors():
            while jax.process_count() > 1 and self._manager.is_saving_in_progress():
                if self._reported is not None:  # The other processes wait for the files of this one.
                    raise self._reported
                time.sleep(0.01)
            self._manager.wait_until_finished()
            if is_main_process():
                write_manifest(self._folder / str(self._saving), finished=True)
            self._saving = None

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """Ends the save in progress if an exception occurs. An error of the disk becomes `failure`."""
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore's errors are ValueErrors
            self._fail(error)
        except BaseException:
            self.abandon()
            raise

    def _fail(self, error: Exception) -> None:
        what = f"could not write the checkpoint of step {self._saving} to {self._folder}"
        self._failure = RunStopped(f"{what}: {_reason(error)}")
        self._saving = self._reported = None
        # To close the manager, several processes would wait for each other. A new manager would create the run folder
        # again if someone has moved it. In both cases the run ends.
        if jax.process_count() > 1 or not self._folder.parent.is_dir():
            self.abandon()
            return
        with suppress(OSError, ValueError, RuntimeError):  # A thread may raise the same error again.
            self._manager.close()
        self._remove_leftovers()
        # The old manager counts older checkpoints as deleted, and would raise this error again.
        self._manager = self._open()

    def _remove_leftovers(self) -> None:
        """Removes the files of failed saves, which frees space on a full disk."""
        if is_main_process():
            for leftover in self._folder.glob("*.orbax-checkpoint-tmp*"):
                # A thread of orbax may still write there. The next call removes what it writes.
                shutil.rmtree(leftover, ignore_errors=True)

    def _list_files(self) -> None:
        """Writes the checksums of the checkpoint that orbax is about to rename into place.

        Raises:
            RuntimeError: if the save was abandoned. Then orbax does not rename it.
        """
        if self._saving is None:
            raise RuntimeError("the save was abandoned")
        if is_main_process():
            for folder in self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                try:
                    write_manifest(folder, finished=False)
                except OSError as error:
                    self._report(error)
                    raise

    def _report(self, error: BaseException) -> None:
        self._reported = self._reported or error

    def latest_step(self) -> int | None:
        """Returns the last step with a complete checkpoint, or None. Waits for a save in progress."""
        self._wait()
        return max(checkpoint_steps(self._folder), default=None)

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Returns the state and progress saved at `step`. `like` gives the shapes, dtypes and shardings.

        Raises:
            UserError: if the arrays of the checkpoint differ from `like`, or its files cannot be read although their
                checksums are right. The message lists the differences.
        """
        try:
            differences = array_differences(self._manager.item_metadata(step)["state"].tree, like)
        except Exception as error:  # For wrong content, orbax may raise any exception.
            raise self._unreadable(step, error) from error
        if differences is not None:
            raise UserError(
                f"the checkpoint {self._folder / str(step)} does not match this model and optimizer: {differences}. "
                "Use the version of the code that saved it, or choose another --run.dir"
            )
        arrays = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
        items = ocp.args.Composite(state=arrays, progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:
            raise self._unreadable(step, error) from error
        return restored["state"], restored["progress"]

    def _unreadable(self, step: int, error: Exception) -> UserError:
        reason = shorten(one_line(str(error) or type(error).__name__), 300)
        return UserError(
            f"cannot read the checkpoint {self._folder / str(step)}: {reason}. If its files are damaged, move it to "
            "another folder, and the run resumes from the checkpoint before it"
        )

    def _put_damaged_aside(self) -> None:
        damaged: dict[int, str] = {}
        for step in reversed(checkpoint_steps(self._folder)):
            try:
                fault = damage(self._folder / str(step))
            except ValueError as error:
                raise RunStopped(str(error)) from error
            if fault is None:
                if not has_manifest(self._folder / str(step)):
                    why = "an older version saved it without checksums"
                    self.notes.append(f"the checkpoint of step {step:,} was not verified: {why}")
                break
            damaged[step] = fault
        else:
            if damaged:
                faults = first_few([f"step {step}: {fault}" for step, fault in damaged.items()], "; ")
                raise RunStopped(
                    f"every checkpoint in {self._folder} is damaged ({faults}). No file was changed. Restore the files "
                    "from a backup, or start a new run in another --run.dir"
                )
        for step, fault in damaged.items():
            aside = _unused(self._folder.parent / "damaged" / str(step))
            aside.parent.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(aside)
            self.notes.append(f"warning: the checkpoint of step {step:,} is damaged and was moved to {aside}: {fault}")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._wait()
        if self._abandoned:
            return  # A thread of orbax may still write, and `close` would wait for it.
        self._manager.close()
        self._remove_leftovers()


class _LatestAndBest(preservation_policy.PreservationPolicy):
    """Keeps the latest two checkpoints and the one with the best score."""

    def __init__(self, scores: dict[int, float], mode: Literal["max", "min"]):
        self._scores: dict[int, float] = scores
        self._mode: Literal["max", "min"] = mode

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        scored = {step: self._scores[step] for step in steps if step in self._scores}
        preserved = {*steps[-2:], *([best_step(scored, self._mode)] if scored else [])}
        return [step in preserved for step in steps]


def _reason(error: Exception) -> str:
    """Returns the error of the operating system, which is a part of tensorstore's long messages."""
    if (reason := getattr(error, "strerror", None)) is not None:
        return reason
    found = re.search(r"([^:]+) \[os_error_code", str(error))
    return found[1].strip() if found else shorten(one_line(str(error)), 200)


def _unused(path: Path) -> Path:
    """Returns the path itself, or the path with a number appended if it already exists."""
    numbered = (path.with_name(f"{path.name}-{k}") for k in count(2))
    return next(p for p in chain([path], numbered) if not p.exists())
