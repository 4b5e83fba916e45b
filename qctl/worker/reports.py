"""What worker processes report to their supervisor: a JSON object a line, over a pipe.

Whoever asks for the state of a process reads first what lies in its pipe (`catch_up`): a process that had written
something before the question is then not told as it was before that.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import os
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from qctl.broker.message import decode_json, short, text
from qctl.control.event import NotUnderstood

log = logging.getLogger(__name__)

#: Bytes of one report: the reading of a process with thousands of consumers.
MAX_REPORT_BYTES = 1 << 20
#: What the pipe holds where the system allows it, so that a process seldom waits for its supervisor.
PIPE_BYTES = 1 << 20
CHUNK_BYTES = 64 << 10


class Lines:
    """Cuts a stream of bytes into lines. One that is too long is left out, whatever its length, and counted."""

    def __init__(self, limit_bytes: int) -> None:
        self.left_out = 0
        self._limit_bytes = limit_bytes
        self._begun = bytearray()
        self._skips = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that these bytes complete, without their ends."""
        *completed, begun = data.split(b"\n")
        for piece in completed:
            self._take(piece)
            if not self._skips:
                yield bytes(self._begun)
            self._skips = False
            self._begun.clear()
        self._take(begun)

    def _take(self, piece: bytes) -> None:
        if self._skips:
            return
        if len(self._begun) + len(piece) > self._limit_bytes:
            self._skips = True
            self.left_out += 1
            self._begun.clear()
        else:
            self._begun += piece


class Reports:
    """The reading end of one process's pipe, read by the loop as reports come."""

    def __init__(
        self,
        read_end: int,
        origin: str,
        on_report: Callable[[Mapping[str, Any]], None],
        on_unusable: Callable[[], None],
    ) -> None:
        """origin: the process, for the log. on_report: called in order with each report that has an `event`.

        on_unusable: called for each other one; what it meant to say is not known.
        """
        self._fd: int | None = read_end
        self._origin = origin
        self._on_report = on_report
        self._lines = Lines(MAX_REPORT_BYTES)
        self._on_unusable = on_unusable
        self._told = False
        os.set_blocking(read_end, False)
        with suppress(OSError):
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        asyncio.get_running_loop().add_reader(read_end, self._read)

    def catch_up(self) -> None:
        """Take what the process has written until now."""
        if self._fd is None:
            return
        waiting = array.array("i", [0])
        fcntl.ioctl(self._fd, termios.FIONREAD, waiting)
        left_bytes = waiting[0]
        while left_bytes > 0 and (taken := self._read()):
            left_bytes -= taken

    def close(self) -> None:
        """Take what is there, and let go of the pipe; a second time nothing happens."""
        self.catch_up()
        self._close()

    def _close(self) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _read(self) -> int:
        if self._fd is None:
            return 0
        try:
            data = os.read(self._fd, CHUNK_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._close()
            return 0
        for line in self._lines.feed(data):
            self._take(line)
        if self._lines.left_out:
            self._lines.left_out = 0
            self._complain(f"longer than {MAX_REPORT_BYTES} bytes")
        return len(data)

    def _take(self, line: bytes) -> None:
        try:
            report = decode_json(line)
        except ValueError as error:
            self._complain(str(error))
            return
        if not isinstance(report, dict) or not isinstance(report.get("event"), str):
            self._complain("not an event")
            return
        try:
            self._on_report(report)
        # Of another shape than is known: the process is of our version, so it is a bug of ours, and no reason to
        # leave it unheard from now on.
        except (KeyError, ValueError, TypeError, AttributeError, NotUnderstood) as error:
            self._complain(f"{short(text(report['event']))}: {type(error).__name__} {error}")

    def _complain(self, why: str) -> None:
        self._on_unusable()
        if not self._told:
            self._told = True
            log.error("a report of %s cannot be used (and more such are not told): %s", self._origin, why)
