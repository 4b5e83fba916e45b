"""Lines of a stream, read by a thread in pieces and handed to the loop in batches as they come.

A slow producer at the other end of a pipe must not stop the heartbeats, and a fast one must not fill the memory.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import BinaryIO

from qctl.broker.message import decode_json
from qctl.errors import QctlError
from qctl.units import format_size

READ_BYTES = 256 << 10
#: Batches read ahead of the broker.
MAX_BATCHES = 8


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `number` counts from 1 and counts empty lines too."""

    number: int
    body: bytes


class BadLine(Exception):
    """Line `number` cannot be a task."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


def check(body: bytes, max_bytes: int) -> None:
    """Raises ValueError, saying why, when `body` is not one JSON value of at most `max_bytes` bytes."""
    if len(body) > max_bytes:
        raise ValueError(_too_long(max_bytes))
    decode_json(body)


def _too_long(max_bytes: int) -> str:
    return f"longer than {format_size(max_bytes)} (`worker.max_body`)"


class _Reader:
    """Cuts what a file descriptor gives into checked lines: everything up to the line's end is the payload."""

    def __init__(self, fd: int, skip: int, max_bytes: int) -> None:
        self._fd = fd
        self._skip = skip
        self._max_bytes = max_bytes
        self._number = 0
        self._rest = bytearray()

    def batch(self) -> tuple[list[Line], BadLine | None, bool]:
        """The lines of one read, the mistake that ended it, and whether that was the end. Raises OSError."""
        chunk = os.read(self._fd, READ_BYTES)
        *ended, last = chunk.split(b"\n")
        if not chunk:
            ended, last = [last], b""
        if ended:
            ended[0] = bytes(self._rest) + ended[0]
            self._rest.clear()
        self._rest += last
        found: list[Line] = []
        for raw in ended:
            self._number += 1
            body = raw.removesuffix(b"\r")
            if self._number <= self._skip or not body.strip():
                continue
            try:
                check(body, self._max_bytes)
            except ValueError as error:
                return found, BadLine(self._number, str(error)), True
            found.append(Line(self._number, body))
        if len(self._rest) > self._max_bytes + len(b"\r"):
            if self._number >= self._skip:
                return found, BadLine(self._number + 1, _too_long(self._max_bytes)), True
            self._rest.clear()  # left out anyway
        return found, None, not chunk


async def read(stream: BinaryIO, *, skip: int, max_bytes: int) -> AsyncIterator[list[Line]]:
    """Batches of lines as they come, the first `skip` left out.

    Raises BadLine after the good ones before it, and QctlError when the stream cannot be read.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[tuple[list[Line], Exception | None, bool]] = asyncio.Queue()
    places = threading.Semaphore(MAX_BATCHES)
    reader = _Reader(stream.fileno(), skip, max_bytes)

    def work() -> None:
        lines: list[Line]
        error: Exception | None
        ended = False
        while not ended:
            places.acquire()
            try:
                lines, error, ended = reader.batch()
            except OSError as failure:
                words = (failure.strerror or str(failure)).lower()
                lines, error, ended = [], QctlError(f"the lines cannot be read: {words}"), True
            try:
                loop.call_soon_threadsafe(ready.put_nowait, (lines, error, ended))
            except RuntimeError:  # the command is over; nobody wants more
                return

    threading.Thread(target=work, name="lines", daemon=True).start()
    while True:
        lines, error, ended = await ready.get()
        places.release()
        if lines:
            yield lines
        if error is not None:
            raise error
        if ended:
            return
