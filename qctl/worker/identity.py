"""Who this process is, said on the control log before it consumes; and whose spending its ledger does not know."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from qctl.broker.message import utc
from qctl.broker.publisher import Publisher
from qctl.broker.session import Connection
from qctl.control import checkpoint
from qctl.control import log as control_log
from qctl.control.desired import Reign
from qctl.control.event import Hello
from qctl.control.log import Heard, Known, Live
from qctl.quota import Leases
from qctl.worker.former import Former

log = logging.getLogger(__name__)

#: A later start reads again what was said since the checkpoint; so old may that be.
SAVE_S = 30.0


class Identity:
    """What a process has to say of itself at each connect, and when its ledger was replaced. For the loop's thread."""

    def __init__(
        self, host: str, index: int, leases: Leases, directory: Path, operators: frozenset[str] | None = None
    ) -> None:
        """directory: STATE/HOST, where it is kept how far the control log was read. operators: who may command, None
        for whoever the broker lets."""
        self._host = host
        self._index = index
        self._leases = leases
        self._directory = directory
        self._operators = operators
        self._known: Known | None = None
        self._saved: Known | None = None
        self._save_s = 0.0
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
        self,
        connection: Connection,
        publisher: Publisher,
        username: str,
        on_delay: Callable[[str], None],
        on_heard: Callable[[Heard], None] = lambda _heard: None,
    ) -> Live:
        """Say hello, read the control log up to it and from then on, and count as spent what this ledger cannot know.

        Nothing may be consumed on `connection` before. Raises as control.log.introduce, and LedgerError.
        """
        hello = Hello(
            nonce=secrets.token_hex(16),
            host=self._host,
            index=self._index,
            ledger=self._leases.ledger_id,
            machine=socket.gethostname() or "-",
            pid=os.getpid(),
            at=utc(time.time()),
        )
        first = self._said is None
        if self._known is None:
            self._known = await asyncio.to_thread(checkpoint.load, self._directory, self._operators)
        live = await control_log.introduce(
            connection,
            publisher,
            hello,
            username=username,
            operators=self._operators,
            known=self._known,
            on_delay=on_delay,
            on_heard=on_heard,
        )
        try:
            reign = live.known.desired.reigns[self._host]
            await self._account_for(reign)
            self._said = hello.ledger
            await self._save(live.known)
        except BaseException:
            await live.close()
            raise
        if first and reign.before is None and self._leases.fresh:
            log.info("first start of host %s, assuming nothing was spent ledger=%s", self._host, reign.ledger)
        return live

    async def keep(self, live: Live) -> None:
        """Go on from here when the log has to be read again. Written down now and then, and soon what is commanded, or
        has ended: if the log itself is lost, what was commanded by it still holds, and what ended stays ended."""
        live.drop_ended()
        self._known, saved = live.known, self._saved
        if saved is None:
            return
        was, now = saved.desired, live.known.desired
        is_due = live.known.offset != saved.offset and time.monotonic() >= self._save_s
        if is_due or (was.pauses, was.overrides) != (now.pauses, now.overrides):
            await self._save(live.known)

    async def _save(self, known: Known) -> None:
        self._known = self._saved = known
        self._save_s = time.monotonic() + SAVE_S
        await asyncio.to_thread(checkpoint.save, self._directory, known, self._operators)

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
