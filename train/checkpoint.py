"""Checkpoints by orbax: saved in the background, the latest two and the best kept."""

from pathlib import Path
from typing import Any, Literal

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.task import State


class Checkpoints:
    """The folder `checkpoints/` of a run: each step holds the State ("state") and the loop's own JSON ("progress")."""

    def __init__(self, folder: Path, best: str, best_mode: Literal["max", "min"] = "max"):
        """`best` names the metric that the best checkpoint is kept by, `best_mode` which of its values is best."""
        sign = 1.0 if best_mode == "max" else -1.0
        policies = [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: sign * metrics[best], n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=lambda metrics: sign * metrics[best],
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: State, progress: dict[str, Any], metrics: dict[str, float] | None) -> None:
        """Starts to save; returns as soon as `state` may be changed. `metrics` are the test split's at this step."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def latest_step(self) -> int | None:
        """The last step that was saved whole."""
        return self._manager.latest_step()

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """State and progress of `step`; `like` gives shapes, dtypes and shardings."""
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["progress"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # Waits for the save under way.
