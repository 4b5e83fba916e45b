"""Who this process is, said on the control log before it consumes; and whose spending its ledger does not know."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from qctl.broker.publisher import Publisher
from qctl.broker.session import Connection
from qctl.control import checkpoint
from qctl.control import log as control_log
from qctl.control.desired import Reign
from qctl.control.event import Hello
from qctl.quota import Leases
from qctl.worker.former import Former

log = logging.getLogger(__name__)


class Identity:
    """What a process has to say of itself at each connect, and when its ledger was replaced. For the loop's thread."""

    def __init__(self, host: str, index: int, leases: Leases, directory: Path) -> None:
        """directory: STATE/HOST, where it is kept how far the control log was read."""
        self._host = host
        self._index = index
        self._leases = leases
        self._directory = directory
        self._known: control_log.Known | None = None
        self._said: str | None = None

    @property
    def outdated(self) -> bool:
        """Whether the ledger is another one than was said last: say hello again."""
        return self._said not in (None, self._leases.ledger_id)

    def count_former(self, former: Iterable[Former]) -> None:
        """Count as spent what this machine may have spent under former names. Raises LedgerError."""
        for one in former:
            if self._leases.count_as_spent(one.evidence):
                log.warning(
                    "host %s is not in the inventory any more and spent here: every window counts as spent ledger=%s",
                    one.host,
                    self._leases.ledger_id,
                )

    async def introduce(
        self, connection: Connection, publisher: Publisher, username: str, on_delay: Callable[[str], None]
    ) -> None:
        """Say hello, read the control log up to it, and count as spent what this ledger cannot know of.

        Nothing may be consumed on `connection` before. Raises as control.log.introduce, and LedgerError.
        """
        hello = Hello(
            nonce=secrets.token_hex(16),
            host=self._host,
            index=self._index,
            ledger=self._leases.ledger_id,
            machine=socket.gethostname() or "-",
            pid=os.getpid(),
        )
        first = self._said is None
        if self._known is None:
            self._known = await asyncio.to_thread(checkpoint.load, self._directory)
        known = await control_log.introduce(
            connection, publisher, hello, username=username, known=self._known, on_delay=on_delay
        )
        reign = known.desired.reigns[self._host]
        await self._account_for(reign)
        self._known, self._said = known, hello.ledger
        await asyncio.to_thread(checkpoint.save, self._directory, known)
        if first and reign.before is None and self._leases.fresh:
            log.info("first start of host %s, assuming nothing was spent ledger=%s", self._host, reign.ledger)

    async def _account_for(self, reign: Reign) -> None:
        """The host spent from another ledger before this one: a lost or another volume. How much, nobody knows."""
        if reign.before is None:
            return
        if await asyncio.to_thread(self._leases.count_as_spent, reign.since):
            log.warning(
                "host %s spent from another ledger before (%s): every window counts as spent ledger=%s",
                self._host,
                reign.before,
                reign.ledger,
            )
