"""Folders for the temporary files of engines: vLLM leaves its sockets behind, in the common temporary folder by default."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "engine-"


class Scratch:
    """A temporary folder of one engine, removed by `remove`, or, if its process was killed, when the next engine starts on the machine.

    The process holds a lock on the folder, which the operating system releases with the process, however it ends.
    """

    def __init__(self) -> None:
        self._root = Path(tempfile.gettempdir()) / f"rlsys-engines-{os.getuid()}"
        with self._alone():
            for folder in self._root.glob(f"{PREFIX}*"):
                if (lock := _try_lock(folder)) is not None:  # its process is gone
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._root))
            self._lock = _try_lock(self.path)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let this process, and those that it starts, put temporary files here."""
        settings = {"TMPDIR": str(self.path), "VLLM_RPC_BASE_PATH": str(self.path)}
        before = {name: os.environ.get(name) for name in settings}
        found, tempfile.tempdir = tempfile.tempdir, str(self.path)
        os.environ.update(settings)
        try:
            yield
        finally:
            tempfile.tempdir = found
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def remove(self) -> None:
        """Remove the folder."""
        if self._lock is None:
            return
        with self._alone():
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):  # others have folders there
                self._root.rmdir()
        os.close(self._lock)
        self._lock = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the folders' parent, which exists meanwhile.

        Raises:
            OSError: its name, which anyone can guess, belongs to something else; what it holds may not be removed.
        """
        while True:
            self._root.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:  # not removed in between
                break
            os.close(lock)
        try:
            found = os.fstat(lock)
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise PermissionError(errno.EPERM, "expected a folder that only this user can write to", str(self._root))
            yield
        finally:
            os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """Lock `folder`; returns the descriptor that holds the lock, or None if another process does, or the folder is gone."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
