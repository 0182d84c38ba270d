"""Only one process at a time uses a run folder; a killed process leaves the folder free."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys

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
    """Starts another process that has the lock, which is the file `lock`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    ) as process:
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
        Lock(tmp_path / "lock")


def test_the_lock_of_a_killed_process_is_free_and_names_it(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = Lock(tmp_path / "lock")
    assert f"process {holder.pid} on" in str(lock.left_by)
    lock.release()
    assert list(tmp_path.iterdir()) == []
    assert Lock(tmp_path / "lock").left_by is None


@pytest.mark.parametrize("content", ["", "{", "[3]", '{"pid": "x"}'])
def test_a_lock_file_without_an_owner_is_free(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    Lock(tmp_path / "lock").release()
    assert not (tmp_path / "lock").exists()


def test_a_link_instead_of_the_lock_file_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Lock(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()


def test_without_file_system_locks_the_file_names_the_running_process(holder, tmp_path, without_locks):
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        Lock(tmp_path / "lock")
    holder.kill()
    holder.wait()
    Lock(tmp_path / "lock").release()
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": "another", "since": "2026-01-01"}))
    with pytest.raises(UserError, match="on another, started 2026-01-01"):
        Lock(tmp_path / "lock")


def test_the_lock_holder_is_read_without_touching_the_lock(holder, tmp_path, monkeypatch):
    path = tmp_path / "lock"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert re.fullmatch(rf"process {holder.pid} on .*, started 20.*", str(current_holder(path)))
    holder.kill()
    holder.wait()
    assert current_holder(path) is None and (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert current_holder(tmp_path / "none") is None
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError):
        current_holder(tmp_path / "link")
    Lock(path).release()


def test_without_file_system_locks_the_holder_is_read_from_the_file(holder, tmp_path, without_locks):
    assert f"process {holder.pid} on" in str(current_holder(tmp_path / "lock"))
    holder.kill()
    holder.wait()
    assert current_holder(tmp_path / "lock") is None
    (tmp_path / "lock").write_text("")
    assert current_holder(tmp_path / "lock") is None
