"""Compares the run folders of one command: its results must be the same, bit for bit."""

import json
from pathlib import Path

import jax
import numpy as np

from tests.stress.running import names, saved_steps


def read_state(folder: Path) -> dict[str, np.ndarray]:
    """Returns every leaf of the last checkpoint's State, by path."""
    from orbax import checkpoint as ocp

    place = (folder / "checkpoints" / str(saved_steps(folder)[-1]) / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(place).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(place, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def files(folder: Path, last_checkpoint_only: bool) -> set[str]:
    """Returns all files of a run folder, except those with random names from orbax."""
    skipped = {str(step) for step in saved_steps(folder)[:-1]} if last_checkpoint_only else set()
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return {
        str(path)
        for path in found
        if not any(part in skipped or part == "d" or part.startswith("ocdbt.process_") for part in path.parts)
    }


def timed(folder: Path) -> list[int]:
    """Returns the steps in timing.jsonl. Its seconds differ between runs."""
    return [json.loads(line)["step"] for line in bytes_of(folder / "timing.jsonl").splitlines()]


def bytes_of(path: Path) -> bytes:
    """Returns the content of a file; nothing if there is no regular file."""
    return path.read_bytes() if path.is_file() else b""


def differences(whole: Path, killed: Path, last_checkpoint_only: bool = False) -> list[str]:
    """Returns the differences between two finished runs of one command; there must be none.

    SIGTERM and SIGINT save steps that are not due, and a run keeps its latest two checkpoints. After these signals the
    earlier checkpoints differ, so compare the `last_checkpoint_only`.
    """
    if not saved_steps(killed):
        return ["no checkpoint"]
    found = []
    one, other = read_state(whole), read_state(killed)
    if one.keys() != other.keys():
        found.append(f"leaves of the State {sorted(one.keys() ^ other.keys())}")
    same = {name for name in one.keys() & other.keys() if one[name].dtype == other[name].dtype}
    found += [
        f"State{name}"
        for name in sorted(one.keys() & other.keys())
        if name not in same or one[name].tobytes() != other[name].tobytes()
    ]
    if bytes_of(whole / "metrics.jsonl") != bytes_of(killed / "metrics.jsonl"):
        found.append("metrics.jsonl")
    if timed(whole) != timed(killed):
        found.append("timing.jsonl (its steps)")
    if differing := files(whole, last_checkpoint_only) ^ files(killed, last_checkpoint_only):
        found.append(f"files {sorted(differing)}")
    found += [
        f"pictures/{name}"
        for name in names(whole / "pictures")
        if bytes_of(whole / "pictures" / name) != bytes_of(killed / "pictures" / name)
    ]
    return found
