"""One worker process as its supervisor has it: started, told what to do, listened to, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qctl.broker.message import text, utc
from qctl.control.host_answer import ProcessLook, ProcessState
from qctl.control.reading import Reading
from qctl.control.reading_parse import from_json
from qctl.worker.reports import Reports

log = logging.getLogger(__name__)

#: A process that has not said within this that it is ready hangs in the import of a handler.
READY_S = 120.0
#: Bytes of orders that a process has not read; one that is stopped reads none.
MAX_BACKLOG_BYTES = 4 << 20
#: Not answered by a process before it can: it unblocks them itself.
BLOCKED_AT_START = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Generations between a supervisor and whatever runs below it.
MAX_GENERATIONS = 16


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told what a process reports. on_failed: why it ends; on_answer: how it has obeyed a local command."""

    on_ready: Callable[[], None]
    on_failed: Callable[[Child, Mapping[str, Any]], None]
    on_answer: Callable[[Child, Mapping[str, Any]], None]


class Child:
    """One running worker process. `ready`: done with False when it ended without having been.

    `reading`: the last that it took of itself.
    """

    def __init__(self, index: int, process: asyncio.subprocess.Process, listeners: Listeners, read_end: int) -> None:
        """read_end: the descriptor of its reports; it belongs to the child from now on."""
        self.index = index
        self.process = process
        self.started_s = time.monotonic()
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.replaced = False
        self.reading: Reading | None = None
        self._listeners = listeners
        self._state = ProcessState.STARTING
        self._since = utc(time.time())
        self._user = ""
        self._reports = Reports(
            read_end,
            f"process {index} pid={process.pid}",
            self._on_report,
            # It may have been the one that says that it consumes.
            lambda: self._become(ProcessState.CONNECTED),
        )

    @property
    def alive(self) -> bool:
        """False once it was buried; then nothing of it is left."""
        return self.process.returncode is None

    def look(self) -> ProcessLook:
        """How it is now, by what it has reported until now."""
        self._reports.catch_up()
        if not self.alive:
            self._become(ProcessState.ENDED)
        return ProcessLook(self.index, self.process.pid, self._state, self._since, self._user)

    def order(self, words: bytes) -> None:
        """Write an order; a process that is gone needs none."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, RuntimeError):
            self.process.stdin.write(words)

    @property
    def is_deaf(self) -> bool:
        """Whether it has left so many orders unread that no more should be written."""
        assert self.process.stdin is not None
        return self.alive and self.process.stdin.transport.get_write_buffer_size() > MAX_BACKLOG_BYTES

    async def end(self) -> int:
        """Wait until it has ended, and take its last reports; its exit code."""
        code = await self.process.wait()
        self._reports.close()
        self.look()
        if not self.ready.done():
            self.ready.set_result(False)
        return code

    def _on_report(self, report: Mapping[str, Any]) -> None:
        match report["event"]:
            case "ready":
                self._listeners.on_ready()
                if not self.ready.done():
                    self.ready.set_result(True)
            case "failed":
                self._listeners.on_failed(self, report)
            case "link" if "user" in report:
                self._user = text(report["user"])
            case "link":
                self._become(ProcessState(report["state"]))
            case "reading":
                self.reading = from_json(report["reading"])
            case "answer":
                self._listeners.on_answer(self, report["answer"])
            case unknown:
                raise ValueError(f"a report {unknown!r} is not known")

    def _become(self, state: ProcessState) -> None:
        if state is not self._state and self._state is not ProcessState.ENDED:
            self._state, self._since = state, utc(time.time())

    def kill(self, why: str) -> None:
        """kill -9, unless it has ended."""
        if self.process.returncode is None:
            log.error("process %d pid=%d %s; killing it", self.index, self.process.pid, why)
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    def kill_unless_ready(self) -> None:
        """To be called READY_S after the start."""
        if not self.ready.done():
            self.kill(f"was not ready within {READY_S:g} s")


async def spawn(index: int, listeners: Listeners) -> Child:
    """Start a process, which waits for its plan. Raises OSError."""
    read_end, write_end = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_AT_START)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "qctl.worker.process",
            str(write_end),
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(write_end,),
        )
    except OSError:
        os.close(read_end)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_AT_START)
        os.close(write_end)
    log.info("process %d started pid=%d", index, process.pid)
    return Child(index, process, listeners, read_end)


def ended(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with {code}"


def is_below(pid: int, ancestor: int) -> bool:
    """Whether `ancestor` started the process, itself or through others."""
    for _ in range(MAX_GENERATIONS):
        try:
            # The name in parentheses may hold anything; the parent is the second field after it.
            pid = int(
                Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            )
        except (OSError, ValueError, IndexError):
            return False
        if pid == ancestor:
            return True
        if pid <= 1:
            return False
    return False
