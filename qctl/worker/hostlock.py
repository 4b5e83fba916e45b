"""Where a host keeps its state, and the lock in it that keeps out a second supervisor on the same machine."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from qctl.broker.message import utc
from qctl.errors import HostTaken, StateError

log = logging.getLogger(__name__)

#: In STATE/HOST.
LOCK_FILE = "supervisor.lock"
#: How often and after which pause a lock that is held is tried.
TRIES, TRY_S = 5, 0.1


def state_directory(explicit: Path | None) -> Path:
    """Where state is kept.

    In this order: --state-dir, $QCTL_STATE_DIR, $STATE_DIRECTORY (systemd's), /var/lib/qctl as root, else
    $XDG_STATE_HOME/qctl.
    """
    for given in (explicit, os.environ.get("QCTL_STATE_DIR"), os.environ.get("STATE_DIRECTORY", "").partition(":")[0]):
        if given:
            return Path(given).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/qctl")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "qctl"


class HostLock:
    """The lock on STATE/HOST/supervisor.lock, held until `release` or the end of the process."""

    def __init__(self, directory: Path, host: str) -> None:
        """Take the lock. Raises HostTaken naming the holder, StateError when the directory cannot be used."""
        path = directory / host / LOCK_FILE
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise StateError(
                f"the state directory {path.parent} cannot be used: {error.strerror}",
                hint="Name one that this user can write with --state-dir or $QCTL_STATE_DIR.",
            ) from error
        if not self._taken():
            self._file.seek(0)
            holder = _holder(self._file.read(1000))
            self._file.close()
            raise HostTaken(
                f"host {host} is already run on this machine by {holder}",
                hint="Stop that worker first, or start this one as another host with --host.",
            )
        try:
            self._file.truncate(0)
            me = {"pid": os.getpid(), "machine": socket.gethostname(), "since": utc(time.time())}
            self._file.write(json.dumps(me))
            self._file.flush()
        except OSError as error:
            log.warning("%s cannot be written, so a second start is not told who runs: %s", path, error.strerror)

    def _taken(self) -> bool:
        """Take it; who looks whether it is held, holds it for an instant."""
        for left in reversed(range(TRIES)):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if left:
                    time.sleep(TRY_S)
            else:
                return True
        return False

    def release(self) -> None:
        """Let go."""
        self._file.close()


def _holder(text: str) -> str:
    try:
        found: Any = json.loads(text)
        return f"process {found['pid']} since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def is_run(directory: Path) -> bool:
    """Whether a supervisor lives that has its state in `directory` (STATE/HOST)."""
    try:
        with (directory / LOCK_FILE).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
