"""What a worker process tells its supervisor: a JSON object a line, over a pipe."""

from __future__ import annotations

import array
import fcntl
import json
import os
import termios
import threading
from typing import Any

#: A report that may be dropped is, when more than this part of the pipe is taken: a supervisor that is stopped reads
#: nothing, and a full pipe would stop the process as well.
_ROOM_DIVISOR = 4


class Reporter:
    """The writing end of the pipe. Any thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def __call__(self, **event: Any) -> None:
        """Report, however long it takes the supervisor to read; it is written when this returns."""
        with self._lock:
            self._write(_line(event))

    def offer(self, **event: Any) -> bool:
        """Report if that needs no waiting; whether it was."""
        line = _line(event)
        if not self._lock.acquire(blocking=False):
            return False
        try:
            waiting, size = array.array("i", [0]), fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ)
            fcntl.ioctl(self._fd, termios.FIONREAD, waiting)
            has_room = waiting[0] <= size // _ROOM_DIVISOR and len(line) <= size // 2
            if has_room:
                self._write(line)
            return has_room
        finally:
            self._lock.release()

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._fd, line) :]


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"
