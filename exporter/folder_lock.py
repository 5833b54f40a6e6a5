"""Lock on a folder, so that one process at a time writes there; a killed process frees its lock."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clada.errors import CladaError

LOCK_NAME = ".clada-lock"


def _try_lock(handle: int) -> bool:
    """Take the lock of an open file, which the system releases when the process ends, however it ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            # Of the open file, not of the process: threads of one process exclude each other too.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at a path: the previous holder of the lock may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, within the context, so that this process alone writes there.

    Raises:
        CladaError: Another process is.
        OSError: The folder takes no files.
    """
    path = folder / LOCK_NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not _try_lock(handle):
                raise CladaError(f"another export is writing to {folder}: wait until it is done")
            if not _is_at(handle, path):
                continue
            try:
                yield
            finally:
                # Before it is let go: later, it may be another's.
                with contextlib.suppress(OSError):
                    path.unlink()
            return
        finally:
            os.close(handle)
