"""One worker process as its supervisor has it: started, told what to do, listened to, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: A process that has not said within this that it is ready hangs in the import of a handler.
READY_S = 120.0
#: Bytes of one report line of a process.
MAX_REPORT_BYTES = 64 << 10
#: Not answered by a process before it can: it unblocks them itself.
BLOCKED_AT_START = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Generations between a supervisor and whatever runs below it.
MAX_GENERATIONS = 16


@dataclass(slots=True)
class Child:
    """One running worker process. ready: done with False when it ended without having been."""

    index: int
    process: asyncio.subprocess.Process
    started_s: float
    ready: asyncio.Future[bool]
    replaced: bool = False

    def order(self, words: bytes) -> None:
        """Write an order; a process that is gone needs none."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, RuntimeError):
            self.process.stdin.write(words)

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


async def spawn(index: int) -> tuple[Child, int]:
    """Start a process; also the descriptor of its reports, for `listen`. It waits for its plan. Raises OSError."""
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
    return Child(index, process, time.monotonic(), asyncio.get_running_loop().create_future()), read_end


async def listen(
    read_end: int, child: Child, on_ready: Callable[[], None], on_failed: Callable[[Mapping[str, Any]], None]
) -> None:
    """Take a process's reports until it closes the pipe; on_failed(report): why it ends."""
    reader = asyncio.StreamReader(limit=MAX_REPORT_BYTES)
    loop = asyncio.get_running_loop()
    pipe: Any = os.fdopen(read_end, "rb")
    try:
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        while line := await reader.readline():
            event = json.loads(line)
            if event["event"] == "ready":
                on_ready()
                child.ready.set_result(True)
            else:
                on_failed(event)
    finally:
        pipe.close()
        if not child.ready.done():
            child.ready.set_result(False)


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
