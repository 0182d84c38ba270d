"""Only one process at a time uses a run folder; a killed process leaves the folder free."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train.process.errors import UserError
from train.run.lock import Lock
from train.run.lock import holder as current_holder

HOLD = (
    "import sys, time; from pathlib import Path; from train.run.lock import Lock; "
    "lock = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    """Starts another process that has the lock of the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def without_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_second_process_is_refused_and_the_first_is_named(holder, tmp_path):
    with pytest.raises(UserError, match=rf"is in use by process {holder.pid} on .*, started 20.*--run.dir"):
        Lock(tmp_path)


def test_without_its_lock_file_a_folder_is_still_locked(holder, tmp_path):
    (tmp_path / "lock").unlink()
    with pytest.raises(UserError, match="is in use by another process"):
        Lock(tmp_path)
    assert current_holder(tmp_path) == "another process"


def test_a_moved_folder_is_noticed_and_a_new_one_keeps_its_lock_file(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    first = Lock(folder)
    assert first.is_in_place()
    folder.rename(tmp_path / "moved")
    assert not first.is_in_place()
    folder.mkdir()
    assert not first.is_in_place()
    second = Lock(folder)
    first.release()
    assert second.is_in_place() and (folder / "lock").exists()
    second.release()


def test_control_characters_of_a_lock_file_are_escaped(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "\x1b[31mred", "since": "now"}))
    lock = Lock(tmp_path)
    assert lock.left_by == r"process 1 on \x1b[31mred, started now"
    lock.release()


def test_a_hard_link_instead_of_the_lock_file_is_not_written(tmp_path):
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").hardlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="lock must be a regular file without hard links"):
        Lock(tmp_path / "run")
    assert (tmp_path / "outside").read_text() == "precious"


def test_a_pipe_instead_of_the_lock_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "lock")
    for use in (Lock, current_holder):
        with pytest.raises(UserError, match="lock must be a regular file"):
            use(tmp_path)


def test_the_lock_of_a_killed_process_is_free_and_names_it(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = Lock(tmp_path)
    assert f"process {holder.pid} on" in str(lock.left_by)
    lock.release()
    assert list(tmp_path.iterdir()) == []
    assert Lock(tmp_path).left_by is None


@pytest.mark.parametrize("content", ["", "{", "[3]", '{"pid": "x"}'])
def test_a_lock_file_without_an_owner_is_free(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    Lock(tmp_path).release()
    assert not (tmp_path / "lock").exists()


def test_a_link_instead_of_the_lock_file_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Lock(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_without_file_system_locks_the_file_names_the_running_process(holder, tmp_path, without_locks):
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        Lock(tmp_path)
    holder.kill()
    holder.wait()
    Lock(tmp_path).release()
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": "another", "since": "2026-01-01"}))
    with pytest.raises(UserError, match="on another, started 2026-01-01"):
        Lock(tmp_path)


def test_the_lock_holder_is_read_without_touching_the_lock(holder, tmp_path, monkeypatch):
    path = tmp_path / "lock"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert re.fullmatch(rf"process {holder.pid} on .*, started 20.*", str(current_holder(tmp_path)))
    holder.kill()
    holder.wait()
    assert current_holder(tmp_path) is None and (path.read_bytes(), path.stat().st_mtime_ns) == before
    path.unlink()
    assert current_holder(tmp_path) is None
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        current_holder(tmp_path)
    path.unlink()
    Lock(tmp_path).release()


def test_without_file_system_locks_the_holder_is_read_from_the_file(holder, tmp_path, without_locks):
    assert f"process {holder.pid} on" in str(current_holder(tmp_path))
    holder.kill()
    holder.wait()
    assert current_holder(tmp_path) is None
    (tmp_path / "lock").write_text("")
    assert current_holder(tmp_path) is None


def test_a_lock_is_freed_although_its_file_cannot_be_deleted(tmp_path, monkeypatch):
    lock = Lock(tmp_path)
    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "unlink", lambda *_, **__: Path("/proc/self").rmdir())  # raises OSError
        lock.release()
    assert f"process {os.getpid()} on" in str(Lock(tmp_path).left_by)
