"""One process at a time in a run folder, and a dead one is no hindrance."""

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
from train.run.lock import holder as at_work

HOLD = (
    "import sys, time; from pathlib import Path; from train.run.lock import Lock; "
    "lock = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock, which is the file `lock`."""
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


def test_a_second_process_is_refused_and_told_the_first(holder, tmp_path):
    with pytest.raises(UserError, match=rf"is in use by process {holder.pid} of .*, since 20.*--run.dir"):
        Lock(tmp_path / "lock")


def test_the_lock_of_a_killed_process_is_free_and_it_is_known_who_left_it(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = Lock(tmp_path / "lock")
    assert f"process {holder.pid} of" in str(lock.left_by)
    lock.give_back()
    assert list(tmp_path.iterdir()) == []
    assert Lock(tmp_path / "lock").left_by is None


@pytest.mark.parametrize("content", ["", "{", "[3]", '{"pid": "x"}'])
def test_a_lock_file_that_says_nothing_is_no_lock(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    Lock(tmp_path / "lock").give_back()
    assert not (tmp_path / "lock").exists()


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Lock(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()


def test_where_the_file_system_has_no_locks_the_file_says_who_is_at_work(holder, tmp_path, without_locks):
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        Lock(tmp_path / "lock")
    holder.kill()
    holder.wait()
    Lock(tmp_path / "lock").give_back()
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": "another", "since": "2026-01-01"}))
    with pytest.raises(UserError, match="of another, since 2026-01-01"):
        Lock(tmp_path / "lock")


def test_who_is_at_work_is_told_without_touching_the_lock(holder, tmp_path, monkeypatch):
    path = tmp_path / "lock"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert re.fullmatch(rf"process {holder.pid} of .*, since 20.*", str(at_work(path)))
    holder.kill()
    holder.wait()
    assert at_work(path) is None and (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert at_work(tmp_path / "none") is None
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError):
        at_work(tmp_path / "link")
    Lock(path).give_back()


def test_where_the_file_system_has_no_locks_the_file_says_who_is_at_work_to_who_asks_too(
    holder, tmp_path, without_locks
):
    assert f"process {holder.pid} of" in str(at_work(tmp_path / "lock"))
    holder.kill()
    holder.wait()
    assert at_work(tmp_path / "lock") is None
    (tmp_path / "lock").write_text("")
    assert at_work(tmp_path / "lock") is None
