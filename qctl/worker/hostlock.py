"""One machine, one supervisor, per host name: a lock on a file in the state directory, and an exclusive queue.

The file keeps a second start on this machine out; the queue keeps out another machine that runs under the same name.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from qctl.broker.message import utc
from qctl.broker.session import HEARTBEAT_S, ChannelLost, Connection
from qctl.broker.topology import ACCESS_REFUSED, RESOURCE_LOCKED
from qctl.errors import HostTaken, StateError

log = logging.getLogger(__name__)

#: The broker keeps the queue of a half-open connection until it notices: up to two heartbeats.
PATIENCE_S = 2.0 * HEARTBEAT_S + 2
RETRY_S = 1.0


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
        path = directory / host / "supervisor.lock"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise StateError(
                f"the state directory {path.parent} cannot be used: {error.strerror}",
                hint="Name one that this user can write with --state-dir or $QCTL_STATE_DIR.",
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = _holder(self._file.read(1000))
            self._file.close()
            raise HostTaken(
                f"host {host} is already run on this machine by {holder}",
                hint="Stop that worker first, or start this one as another host with --host.",
            ) from None
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "machine": socket.gethostname(), "since": utc(time.time())}))
        self._file.flush()

    def release(self) -> None:
        """Let go."""
        self._file.close()


def _holder(text: str) -> str:
    try:
        found: Any = json.loads(text)
        return f"process {found['pid']} since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


async def claim_host(connection: Connection, host: str, *, patient: bool) -> None:
    """Declare the exclusive queue `qctl.host.HOST` and keep it with the connection.

    Raises HostTaken when somebody else has held it for longer than a dead connection can, ChannelLost when the
    connection goes. patient: never give up; a supervisor that runs already waits for as long as it takes.
    """
    deadline = time.monotonic() + PATIENCE_S
    told = False
    while True:
        channel = await connection.channel()
        try:
            await channel.call("queue_declare", queue=f"qctl.host.{host}", exclusive=True, durable=False)
            return
        except ChannelLost as error:
            if error.code == ACCESS_REFUSED:
                log.warning("no permission on queue qctl.host.%s: two machines under this name go unnoticed", host)
                return
            if error.code != RESOURCE_LOCKED:
                raise
        if not patient and time.monotonic() > deadline:
            raise HostTaken(
                f"host {host} is already run from another connection to {connection.address}",
                hint="Each machine needs its own name (--host); `rabbitmqctl list_queues name owner_pid` shows who.",
            )
        if not told:
            told = True
            log.warning("host %s is taken on the broker; waiting for a dead connection to be noticed", host)
        await asyncio.sleep(RETRY_S)
