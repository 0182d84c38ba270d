"""A lock file that lets only one process at a time use a run folder."""

import fcntl
import json
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

from train.process.errors import UserError


class Lock:
    """A lock file that names its owner. The system frees the lock when the owner ends, even if the owner is killed."""

    def __init__(self, path: Path):
        """Acquires the lock.

        Raises:
            UserError: if another process has the lock.
            OSError: if the file cannot be written, or is a symbolic link.
        """
        self._path = path
        self._file = _open(path)
        # The last owner may delete the file after we open it and before we lock it.
        while (free := _lock(self._file, fcntl.LOCK_EX)) and not _is_at(self._file, path):
            os.close(self._file)
            self._file = _open(path)
        owner = _read_owner(self._file)
        if not free:
            os.close(self._file)
            raise UserError(
                f"{path.parent} is in use by {_describe(owner)}. Wait until it ends, or choose another --run.dir"
            )
        self.left_by = None if owner is None else _describe(owner)
        """The last owner if it ended without `release`, such as "process 12 on host, started 2026-01-01 10:00:00"."""
        here = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        os.truncate(self._file, 0)
        os.pwrite(self._file, json.dumps(here).encode(), 0)

    def release(self) -> None:
        """Deletes the file and frees the lock."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def holder(path: Path) -> str | None:
    """Returns the process that has locked the file at `path`, described as in `Lock.left_by`; None if no process has.

    Writes nothing and follows no symbolic link.

    Raises:
        OSError: if the file cannot be read, or is a symbolic link.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # The shared lock is freed immediately. Only a run that starts at this moment, in a folder whose last process
        # was killed, would get an error.
        return None if _lock(file, fcntl.LOCK_SH) else _describe(_read_owner(file))
    finally:
        os.close(file)


def _lock(file: int, kind: int) -> bool:
    """Locks a file until it is closed. Returns False if another process has locked it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # Some network file systems have no locks. Then the owner named in the file decides.
        owner = _read_owner(file)
        return owner is None or _has_ended(owner)
    return True


def _read_owner(file: int) -> dict[str, Any] | None:
    try:
        owner = json.loads(os.pread(file, 1000, 0))
    except (ValueError, RecursionError):
        return None
    return owner if isinstance(owner, dict) else None


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _has_ended(owner: dict[str, Any]) -> bool:
    """Returns whether the owner ran on this machine and has ended. A process on another machine cannot be checked."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _describe(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')}, started {owner.get('since')}"
