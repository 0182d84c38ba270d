"""One process at a time in a run folder."""

import fcntl
import json
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

from train.process.errors import UserError


class Lock:
    """A lock file that names its owner. The system gives the lock back however a process ends."""

    def __init__(self, path: Path):
        """Takes the lock.

        Raises:
            UserError: another process has it.
            OSError: the file cannot be written, or is a link.
        """
        self._path = path
        self._file = _open(path)
        # Who had the lock may remove its file after we opened it and before we lock it.
        while (free := self._take()) and not _is_at(self._file, path):
            os.close(self._file)
            self._file = _open(path)
        owner = _read_owner(self._file)
        if not free:
            os.close(self._file)
            raise UserError(
                f"{path.parent} is in use by {_in_words(owner)}; wait until it ends, or choose another --run.dir"
            )
        self.left_by = None if owner is None else _in_words(owner)
        """Who ended without giving the lock back, in words; None: nobody."""
        here = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        os.truncate(self._file, 0)
        os.pwrite(self._file, json.dumps(here).encode(), 0)

    def give_back(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # This file system has no locks, so what stands in the file must do.
            owner = _read_owner(self._file)
            return owner is None or _is_gone(owner)
        return True


def holder(path: Path) -> str | None:
    """Who is at work by that lock file, in words; None: nobody. Nothing is written, and no link followed.

    Raises:
        OSError: the file cannot be read, or is a link.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        owner = _read_owner(file)
        try:
            # Given back at once; a run that begins in this moment in a folder that a dead one left would be refused.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _in_words(owner)
        except OSError:  # No locks here: see `_take`.
            return None if owner is None or _is_gone(owner) else _in_words(owner)
        return None
    finally:
        os.close(file)


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


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine no longer runs; of another machine's nothing is known."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _in_words(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.get('pid')} of {owner.get('host')}, since {owner.get('since')}"
