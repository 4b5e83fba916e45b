"""Who keeps the ledger locked: a stopped process of ours, which the others would wait for, is ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from pathlib import Path

from qctl.quota.locks import Holding, watch_locks
from qctl.worker.child import is_below

log = logging.getLogger(__name__)

#: How often it is looked who holds the ledger's lock.
LOOK_S = 1.0


async def watch_ledger(directory: Path) -> None:
    """Look until cancelled. directory: STATE/HOST."""
    held: Holding | None = None
    named: tuple[int, ...] = ()
    while True:
        await asyncio.sleep(LOOK_S)
        now_s = time.monotonic()
        held = watch_locks(directory, held, now_s=now_s)
        overdue = held.overdue(now_s)
        for pid in overdue:
            if is_below(pid, os.getpid()):
                log.error("process pid=%d held the ledger's lock for too long; killing it", pid)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            elif pid not in named:
                log.error("the ledger is locked by process %d, which is not of this worker; no calls are made", pid)
        named = overdue
