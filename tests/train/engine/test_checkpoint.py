"""Checkpoints: a damaged one is detected, named and replaced by the previous one; an unreadable one is an error."""

import json
import os
import random
import resource
import shutil
import signal
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint.type_handlers import get_type_handler, supported_types

from train.engine.checkpoint import Checkpoints
from train.process.errors import Interrupted, RunStopped, UserError
from train.run import manifest
from train.run.manifest import checkpoint_steps, damage, write_manifest
from train.task import State

LIKE = State(jnp.zeros((), jnp.int32), {"kernel": jnp.zeros((30, 70)), "bias": jnp.zeros(70)}, ())


def state(step):
    params = {name: jax.random.normal(jax.random.key(step), x.shape) for name, x in LIKE.params.items()}
    return State(jnp.asarray(step, jnp.int32), params, ())


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Saves the checkpoints of steps 3 and 7."""
    folder = tmp_path_factory.mktemp("made") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (3, 7):
            checkpoints.save(step, state(step), {"seconds": float(step)})
    return folder


@pytest.fixture
def saved(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run" / "checkpoints"))


def assert_restores(folder, step):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step() == step
        found, progress = checkpoints.restore(step, LIKE)
    jax.tree.map(np.testing.assert_array_equal, found, state(step))
    assert progress["seconds"] == step
    return checkpoints.notes


def flip(path):
    content = bytearray(path.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 1
    path.write_bytes(bytes(content))


def test_a_checkpoint_is_restored_bit_for_bit(saved):
    assert assert_restores(saved, 7) == []


@pytest.mark.parametrize("years", [20, -20])
def test_a_clock_that_jumps_by_years_during_a_save_does_no_harm(tmp_path, monkeypatch, years):
    clock, large = (
        time.time,
        State(jnp.asarray(3, jnp.int32), {"w": jax.random.normal(jax.random.key(0), (2**23,))}, ()),
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, large, {"seconds": 3.0})
        monkeypatch.setattr(time, "time", lambda: clock() + years * 365 * 86400)
        assert checkpoints._manager.is_saving_in_progress()
        assert checkpoints.failure(wait=True) is None
    assert damage(tmp_path / "3") is None


def test_saving_does_not_change_orbaxs_global_registry(tmp_path):
    before = get_type_handler(jax.Array), vars(get_type_handler(jax.Array)).copy(), supported_types()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state(3), {"seconds": 3.0})
        assert checkpoints.failure(wait=True) is None
        checkpoints.restore(3, LIKE)
    assert (get_type_handler(jax.Array), vars(get_type_handler(jax.Array)), supported_types()) == before


def test_changes_after_the_start_of_a_save_are_not_saved(tmp_path):
    sums = {f"metric {i}": float(i) for i in range(3)}
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state(step), {"sums": sums})
            sums["metric 1"] += 1.0
            assert checkpoints.failure(wait=True) is None
            assert checkpoints.restore(step, LIKE)[1]["sums"] == {**sums, "metric 1": float(step)}


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (flip, "does not match its checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, got "),
        (lambda path: path.write_bytes(b""), " bytes, got 0"),
        (Path.unlink, "is missing"),
    ],
    ids=["flipped bit", "cut short", "emptied", "missing"],
)
def test_damage_to_any_file_is_named(saved, harm, words):
    checkpoint = saved / "7"
    listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
    for name in listed:
        before = (checkpoint / name).read_bytes()
        harm(checkpoint / name)
        fault = damage(checkpoint)
        assert fault is not None and fault.startswith(f"{name} ") and words in fault
        (checkpoint / name).write_bytes(before)
    assert damage(checkpoint) is None
    assert listed.keys() >= {"progress/metadata", "state/_METADATA", "state/manifest.ocdbt", "_CHECKPOINT_METADATA"}


def test_a_damaged_checkpoint_is_moved_and_the_previous_one_is_used(saved):
    flip(next((saved / "7" / "state" / "d").iterdir()))
    (note,) = assert_restores(saved, 3)
    aside = saved.parent / "damaged" / "7"
    assert f"step 7 is damaged and was moved to {aside}: state/d/" in note and "does not match its checksum" in note
    assert damage(aside) is not None


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        '{"version": 2}',
        '{"version": 2, "files": {"state/_METADATA": 3}}',
        '{"version": 2, "files": {}}',
        '{"version": 2, "files": {"manifest.ocdbt": {"bytes": 0, "sha256": ""}}}',
        "[" * 10**5,
    ],
)
def test_without_a_complete_manifest_a_checkpoint_is_damaged(saved, content):
    path = saved / "7" / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    assert str(damage(saved / "7")).startswith("manifest.json ")


def test_a_flipped_bit_of_a_manifest_is_damage_or_changes_nothing(saved):
    """Also in its version and in its own checksum: the checkpoint before it is used, and the run does not stop."""
    path = saved / "7" / "manifest.json"
    content = path.read_bytes()
    tested = [*range(40), *range(len(content) - 80, len(content)), *range(40, len(content) - 80, 61)]
    undetected = []
    for position in tested:
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            if damage(saved / "7") is None:
                undetected.append(bytes(flipped))
    # White space may change, and without its checksum a manifest counts as an older one.
    own = json.loads(content)
    assert all(json.loads(each)["files"] == own["files"] for each in undetected)
    assert all(json.loads(each)["version"] == 2 for each in undetected)
    assert len(undetected) < len(tested)


def test_a_manifest_of_older_code_without_its_own_checksum_is_valid(saved):
    path = saved / "7" / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert damage(saved / "7") is None


@pytest.mark.parametrize("name", ["state/_METADATA", "progress/metadata", "state/d/link"])
def test_a_checkpoint_with_a_link_pipe_or_device_is_damaged(saved, name):
    path = saved / "7" / name
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    assert damage(saved / "7") == f"{name} must be a regular file or a folder"
    path.unlink()
    os.mkfifo(path)
    assert_restores(saved, 3)


def test_a_checkpoint_that_cannot_be_opened_is_damaged(saved):
    with tempfile.TemporaryDirectory() as folder:  # tmp_path belongs to this user alone, and root may open all folders.
        Path(folder).chmod(0o755)
        checkpoint = shutil.copytree(saved / "7", Path(folder, "7"))
        checkpoint.chmod(0)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            fault = damage(checkpoint)
        finally:
            os.seteuid(user)
            checkpoint.chmod(0o700)
    assert fault is not None and fault.startswith("its folders cannot be read (") and "Permission denied" in fault


@pytest.mark.parametrize("name", ["0007", "٧", "7x", "-7", "9" * 30, "07"])
def test_a_folder_with_another_name_than_a_step_is_no_checkpoint(saved, name):
    (saved / name).mkdir()
    assert checkpoint_steps(saved) == [3, 7]
    assert assert_restores(saved, 7) == []


@pytest.mark.parametrize("name", ["/proc/self/pagemap", "../7/state/_METADATA"])
def test_a_manifest_that_lists_a_file_outside_is_damaged(saved, name):
    path = saved / "7" / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    content["files"][name] = {"bytes": 0, "sha256": "0"}
    path.write_text(json.dumps(content))
    assert damage(saved / "7") == "manifest.json lists a file outside the checkpoint"


def test_a_linked_checkpoint_is_damaged(saved, tmp_path):
    """train.export would copy weights from outside the run folder."""
    (tmp_path / "link").symlink_to(saved)
    assert damage(tmp_path / "link" / "7") == "the checkpoint must not be in a symbolic link"
    (saved / "9").symlink_to(saved / "7")
    assert damage(saved / "9") == "the checkpoint must not be in a symbolic link"


def test_a_checkpoint_without_state_is_moved_and_the_previous_one_is_used(saved):
    """Version 0.1.0 wrote such a checkpoint after a second signal during a save."""
    (saved / "9").mkdir()
    (saved / "9" / "manifest.json").write_text('{"version": 2, "files": {}}')
    (note,) = assert_restores(saved, 7)
    aside = saved.parent / "damaged" / "9"
    assert note.endswith(f"step 9 is damaged and was moved to {aside}: manifest.json lists no file of the state")


def test_a_manifest_creates_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_manifest(tmp_path / "9", finished=True)
    assert not (tmp_path / "9").exists()


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("error", [Interrupted(signal.SIGINT), RuntimeError("no disk")], ids=repr)
def test_an_exception_before_a_save_leaves_the_other_checkpoints(saved, error):
    """The save does not begin, and the end of the run writes no manifest."""
    before = tree(saved)
    with pytest.raises(type(error)), Checkpoints(saved) as checkpoints:
        checkpoints.save(9, state(9), {"seconds": 9.0}, before=failing(error))
    assert tree(saved) == before


# A thread of orbax ends with an exception, because the save is abandoned.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [Interrupted(signal.SIGINT), RuntimeError("no disk")], ids=repr)
def test_an_exception_while_the_run_waits_for_a_save_abandons_it(saved, monkeypatch, error):
    """The run ends at once, although the files are not complete. The checkpoint does not appear later."""
    end = threading.Event()

    class Slow(Checkpoints):
        def _list_files(self):
            assert end.wait(20)
            super()._list_files()

    with pytest.raises(type(error)), Slow(saved) as checkpoints:
        checkpoints.save(9, state(9), {"seconds": 9.0})
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "wait_until_finished", failing(error))
            checkpoints.failure(wait=True)
    assert checkpoints.latest_step() == 7
    end.set()
    with pytest.raises(RuntimeError, match="the save was abandoned"):
        checkpoints._manager.wait_until_finished()
    assert_restores(saved, 7)


@pytest.mark.slow
def test_a_damaged_step_is_repeated_and_saved_again(saved):
    flip(saved / "7" / "progress" / "metadata")
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(7, state(7), {"seconds": 7.0})
        assert checkpoints.failure(wait=True) is None
    assert assert_restores(saved, 7) == []


@pytest.mark.slow
def test_a_step_damaged_twice_keeps_both_copies(saved):
    for _ in range(2):
        flip(saved / "7" / "progress" / "metadata")
        with Checkpoints(saved) as checkpoints:
            checkpoints.save(7, state(7), {"seconds": 7.0})
    assert sorted(path.name for path in (saved.parent / "damaged").iterdir()) == ["7", "7-2"]


def test_if_all_are_damaged_each_is_named_and_nothing_changes(saved):
    flip(saved / "3" / "state" / "_METADATA")
    (saved / "7" / "state" / "manifest.ocdbt").unlink()
    before = tree(saved.parent)
    with pytest.raises(RunStopped) as error:
        Checkpoints(saved)
    for words in ("step 7: state/manifest.ocdbt is missing", "step 3: state/_METADATA does not match", "No file was"):
        assert words in str(error.value)
    assert tree(saved.parent) == before


def test_a_killed_save_does_not_count(saved):
    shutil.move(saved / "7", saved / "7.orbax-checkpoint-tmp")
    assert assert_restores(saved, 3) == []


def test_a_checkpoint_of_the_first_layout_is_read(saved):
    (saved / "7" / "manifest.json").unlink()
    progress = saved / "7" / "progress" / "metadata"
    progress.write_text(json.dumps({"seconds": 7.0}))
    (note,) = assert_restores(saved, 7)
    assert "step 7 was not verified: an older version saved it without checksums" in note


def test_a_checkpoint_of_a_later_layout_is_unchanged(saved, monkeypatch):
    (saved / "7" / "manifest.json").unlink()
    with monkeypatch.context() as later:
        later.setattr(manifest, "VERSION", 3)
        write_manifest(saved / "7", finished=True)
    with pytest.raises(
        RunStopped, match=r"the format version of .*checkpoints/7 must be at most 2, got 3. Upgrade w2jax"
    ):
        Checkpoints(saved)
    assert (saved / "7").exists()


def test_for_a_checkpoint_of_other_arrays_the_error_lists_them(saved):
    params = {"kernel": jnp.zeros((30, 71)), "bias": jnp.zeros(70, jnp.bfloat16), "scale": jnp.zeros(4)}
    other = State(LIKE.step, params, (), ema={"kernel": jnp.zeros(2)})
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(7, other)
    for words in (
        "params/kernel must be float32 [30, 71], got float32 [30, 70]",
        "params/bias must be bfloat16 [70], got float32 [70]",
        "params/scale must be float32 [4], got none",
        "ema/kernel must be float32 [2], got none",
    ):
        assert words in str(error.value)


def test_the_latest_two_checkpoints_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in enumerate((0.3, 0.9, 0.5, None, 0.6, 0.7), 1):
            checkpoints.save(step, state(step), {"seconds": float(step)})
            if score is not None:
                checkpoints.scores[step] = score
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 5, 6]
    with Checkpoints(tmp_path, "min") as checkpoints:  # resumes without scores, which are in metrics.jsonl
        checkpoints.scores |= {2: 0.1, 5: 0.6, 6: 0.7}
        checkpoints.save(7, state(7), {"seconds": 7.0})
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 6, 7]


@contextmanager
def no_file_above(size):
    """Makes the system reject writes past `size` bytes of a file, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# orbax's threads end with this error too, but it must be reported only once.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size", [10, 600, 4000])  # fails in a small file, in orbax's file, in the arrays' file
def test_a_failed_save_is_reported_and_leaves_the_other_checkpoints(saved, size):
    """The next save succeeds."""
    with Checkpoints(saved) as checkpoints:
        with no_file_above(size):
            checkpoints.save(9, state(9), {"seconds": 9.0})
            failure = checkpoints.failure(wait=True)
        assert "could not write the checkpoint of step 9 to" in str(failure) and "File too large" in str(failure)
        assert checkpoints.failure() is None and checkpoints.latest_step() == 7
        assert damage(saved / "3") is None and damage(saved / "7") is None
        checkpoints.save(9, state(9), {"seconds": 9.0})
        assert checkpoints.failure(wait=True) is None
    assert sorted(path.name for path in saved.iterdir()) == ["7", "9"]
    assert_restores(saved, 9)
