"""Who lives: each process holds a lock on a file of its own for as long as it exists.

The operating system frees the lock when the process ends, however it ends, and not before. Age says nothing: a stopped
process may wake up and spend.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Lifeline:
    """This process's locked file. The descriptor is not inherited by programs that the process starts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise

    def cut(self, *, remove: bool) -> None:
        """Free the lock: from now on this process counts as dead."""
        if remove:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def lives(path: Path) -> bool:
    """Whether somebody holds the lock on `path`. A file that is missing proves nothing: False."""
    return path.exists() and not is_dead(path)


def is_dead(path: Path) -> bool:
    """Whether nobody holds the lock on `path`. A file that is missing or unreadable proves nothing: False."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that two who look at once do not take each other for the living process.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
