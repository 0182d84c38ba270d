"""Locks a run folder, so that only one process at a time uses it."""

import fcntl
import json
import os
import socket
import stat
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from train.process.errors import UserError
from train.run.files import LOCK
from w2jax.text import one_line

_WAIT = 1.0  # seconds; `holder` has the lock for a moment


class Lock:
    """Locks a folder and its file "lock", which names the owner.

    The system frees the locks when the owner ends, even if the owner is killed. The lock of the folder remains if
    someone deletes the file.
    """

    def __init__(self, folder: Path):
        """Acquires the locks.

        Raises:
            UserError: if another process has one of them, or the file is not a regular file.
            OSError: if the folder cannot be read, or the file cannot be written or is a symbolic link.
        """
        self._path = folder / LOCK
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = _open(self._path, os.O_RDWR | os.O_CREAT)
        free = _wait_for(self._folder)
        # The last owner may delete the file after we open it and before we lock it.
        while (free := free and _lock(self._file, fcntl.LOCK_EX)) and not is_at(self._file, self._path):
            os.close(self._file)
            self._file = _open(self._path, os.O_RDWR | os.O_CREAT)
        owner = _read_owner(self._file)
        if not free:
            self._close()
            raise UserError(
                f"{folder} is in use by {_describe(owner)}. Wait until it ends, or choose another --run.dir"
            )
        self.left_by = None if owner is None else _describe(owner)
        """The last owner if it ended without `release`, such as "process 12 on host, started 2026-01-01 10:00:00"."""
        here = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        os.truncate(self._file, 0)
        os.pwrite(self._file, json.dumps(here).encode(), 0)

    def is_in_place(self) -> bool:
        """Returns whether the folder is still where it was locked, so not deleted, moved or replaced."""
        return is_at(self._folder, self._path.parent)

    def release(self) -> None:
        """Deletes the file if possible, and frees the locks."""
        if self.is_in_place():
            with suppress(OSError):  # The file system may have become read-only.
                self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        os.close(self._file)
        os.close(self._folder)


def holder(folder: Path) -> str | None:
    """Returns the process that has locked a folder, described as in `Lock.left_by`; None if no process has.

    Writes nothing and follows no symbolic link.

    Raises:
        UserError: if the file is a folder, pipe or device.
        OSError: if the folder or its file "lock" cannot be read, or the file is a symbolic link.
    """
    folder_lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        free = _lock(folder_lock, fcntl.LOCK_SH)
        try:
            file = _open(folder / LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return None if free else _describe(None)
        try:
            return None if free and _lock(file, fcntl.LOCK_SH) else _describe(_read_owner(file))
        finally:
            os.close(file)
    finally:
        os.close(folder_lock)


def _wait_for(folder: int) -> bool:
    """Locks a folder. Returns False if another process still has the lock after a second."""
    until = time.monotonic() + _WAIT
    while not (free := _lock(folder, fcntl.LOCK_EX)) and time.monotonic() < until:
        time.sleep(0.05)
    return free


def _lock(file: int, kind: int) -> bool:
    """Locks a file or folder until it is closed. Returns False if another process has locked it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # Some network file systems have no locks. Then the owner named in the file decides.
        owner = _read_owner(file)
        return owner is None or _has_ended(owner)
    return True


def _read_owner(file: int) -> dict[str, Any] | None:
    """Returns the content of the file "lock"; None if it is empty or damaged, or `file` is a folder or a pipe."""
    try:
        owner = json.loads(os.pread(file, 1000, 0))
    except (OSError, ValueError, RecursionError):
        return None
    return owner if isinstance(owner, dict) else None


def _open(path: Path, flags: int) -> int:
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except IsADirectoryError:
        raise _irregular(path) from None
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # Writing would change the file behind a hard link too.
        os.close(file)
        raise _irregular(path)
    return file


def _irregular(path: Path) -> UserError:
    return UserError(f"{path} must be a regular file without hard links. Delete it, and run the command again")


def is_at(file: int, path: Path) -> bool:
    """Returns whether an open file or folder is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _has_ended(owner: dict[str, Any]) -> bool:
    """Returns whether the owner ran on this machine and has ended. A process on another machine cannot be checked."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return False
    try:
        os.kill(owner["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _describe(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process"
    return one_line(f"process {owner.get('pid')} on {owner.get('host')}, started {owner.get('since')}")
