"""What this process says of itself: a reading a second to whoever listens, and now and then to its supervisor.

Nobody waits for a reading, and none is kept: what cannot be sent at once is dropped, the next one says more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from qctl.broker import topology
from qctl.broker.lossy import LossyPublisher
from qctl.broker.message import TRANSIENT, Outgoing, Properties, short
from qctl.broker.session import HEARTBEAT_S, ChannelLost, Connection
from qctl.control.event import NotUnderstood, instant
from qctl.control.reading import (
    ConsumerReading,
    Counts,
    Goodbye,
    Hold,
    LimitReading,
    OverrideReading,
    QuotaReading,
    Reading,
    Tag,
)
from qctl.errors import QctlError
from qctl.quota import Account, Leases, Policy
from qctl.worker.consumer import LiveConsumer

if TYPE_CHECKING:
    from qctl.control.desired import Override

log = logging.getLogger(__name__)

#: From one reading to the next.
PERIOD_S = 1.0
#: The supervisor gets the first, and then every so-manieth.
REPORTED_EVERY = 5
#: The channel for readings was lost, and not with its connection: try again so much later.
REOPEN_S = 60.0
#: Different reasons that are told.
MAX_TOLD = 10
#: The cause under which the process holds a consumer that the ledger does not pay for.
QUOTA = "quota"

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Clocks:
    """One moment on two clocks: the ledger's, and the wall's."""

    now_ns: int
    now_s: float

    def wall_s(self, instant_ns: int | None) -> float | None:
        """The wall-clock second of an instant of the ledger's clock."""
        return None if instant_ns is None else self.now_s + (instant_ns - self.now_ns) / _NS


def consumer_reading(live: LiveConsumer, quota_until_s: float | None) -> ConsumerReading:
    """A consumer as it is now. Of several pauses the one that lasts longest shows, of equal ones the first given.

    quota_until_s: when a hold for want of quota is expected to end.
    """
    ended = live.counts
    lasts = [(math.inf if pause.until_s is None else pause.until_s, pause) for pause in live.pauses]
    pause = max(lasts, key=itemgetter(0))[1] if lasts else None
    return ConsumerReading(
        name=live.name,
        queue=live.work_queue,
        state=live.state,
        why=short(live.why),
        since_s=live.since_s,
        by=pause.user if pause else None,
        claimed_by=pause.claimed_by if pause else None,
        reason=pause.reason if pause else None,
        until_s=pause.until_s if pause else None,
        holds=tuple(
            Hold(cause, short(words), quota_until_s if cause == QUOTA else None) for cause, words in live.holds.items()
        ),
        tags=tuple(Tag(tag, queue, state) for tag, queue, state in live.subscriptions()),
        running=live.executor.active if live.executor else 0,
        waiting=live.waiting,
        concurrency=live.concurrency,
        prefetch=live.prefetch,
        counts=Counts(ended.acked, ended.retried, ended.deferred, ended.dead, ended.given_back),
        rate_per_s=ended.rate_per_s,
    )


def quota_reading(name: str, account: Account, override: Override | None, clocks: Clocks) -> QuotaReading:
    """A quota as it is now. `used` is never more than the limit; what a lowered one leaves behind is `over`."""
    binding = account.binding
    return QuotaReading(
        name=name,
        used=min(binding.units, binding.limit.units),
        limit=binding.limit.units,
        period_s=binding.limit.period_ns / _NS,
        over=max(0, -binding.room_units),
        leased=account.lease_units,
        returns_at_s=clocks.wall_s(account.returns_ns),
        blocked_until_s=clocks.wall_s(account.blocked_until_ns),
        limits=tuple(LimitReading(one.limit.units, one.limit.period_ns / _NS, one.units) for one in account.limits),
        override=_override(override) if override else None,
    )


def _override(override: Override) -> OverrideReading:
    try:
        at_s: float | None = instant(override.at, "at")
    except NotUnderstood:
        at_s = None
    return OverrideReading(override.rates, override.user, override.reason, override.until_s, at_s)


class Telemetry:
    """The readings of one process. For the loop's thread."""

    def __init__(
        self,
        *,
        host: str,
        index: int,
        leases: Leases,
        consumers: Mapping[str, LiveConsumer],
        policies: Callable[[], Iterable[Policy]],
        overrides: Callable[[], Mapping[str, Override]],
        offer: Callable[..., bool],
    ) -> None:
        """policies, overrides: the quotas of the host as they are enforced now. offer(event=, reading=): tells the
        supervisor if that needs no waiting."""
        self._host = host
        self._index = index
        self._leases = leases
        self._consumers = consumers
        self._policies = policies
        self._overrides = overrides
        self._offer = offer
        self._machine = socket.gethostname() or "-"
        self._started_at_s = time.time()
        self._connection: Connection | None = None
        self._publisher: LossyPublisher | None = None
        self._reopen_s = 0.0
        self._told: set[str] = set()

    async def attach(self, connection: Connection) -> None:
        """Send on this connection from now on. To be called before anything is published on it: while a broker in
        alarm does not read from it, no channel can be opened. Raises ChannelLost when the connection is gone."""
        self._connection, self._publisher = connection, None
        self._reopen_s = time.monotonic() + REOPEN_S
        try:
            self._publisher = await LossyPublisher.open(connection, topology.telemetry()[:1])
        except (QctlError, ChannelLost) as error:
            if not connection.is_open:
                raise
            self._tell_once(str(error))

    def detach(self) -> None:
        """The connection is gone."""
        self._connection = self._publisher = None

    async def run(self) -> None:
        """A reading a second, until cancelled."""
        for number in count(1):
            await asyncio.sleep(PERIOD_S)
            try:
                await self._reopen()
                self.tick(reported=number % REPORTED_EVERY == 1)
            # It only shows what others do; a bug in it must not end what it shows.
            except Exception as error:  # noqa: BLE001
                self._tell_once(f"{type(error).__name__}: {error}", exc_info=True)

    def tick(self, *, reported: bool) -> None:
        """Send a reading if somebody can have it, and report it to the supervisor."""
        publisher = self._publisher
        sent = publisher is not None and publisher.ready
        if not (sent or reported):
            return
        reading = self.reading().fitting()
        if publisher is not None and sent:
            publisher.send(self._outgoing(publisher, reading.body(), "reading"))
        if reported:
            self._offer(event="reading", reading=reading.to_json())

    def reading(self) -> Reading:
        """This process now."""
        leases, overrides = self._leases, self._overrides()
        clocks = Clocks(leases.clock.now_ns(), time.time())
        broken = leases.broken
        return Reading(
            at_s=clocks.now_s,
            host=self._host,
            index=self._index,
            pid=os.getpid(),
            machine=self._machine,
            started_at_s=self._started_at_s,
            heartbeat_s=self._connection.heartbeat_s if self._connection else HEARTBEAT_S,
            consumers=tuple(
                consumer_reading(live, clocks.wall_s(self._quota_until_ns(name)))
                for name, live in self._consumers.items()
            ),
            quotas=tuple(
                quota_reading(name, account, overrides.get(name), clocks)
                for name, account in leases.accounts(self._policies()).items()
            ),
            ledger_id=leases.ledger_id,
            ledger_fault=broken.message if broken else None,
        )

    def _quota_until_ns(self, consumer: str) -> int | None:
        held = self._leases.standing(consumer).held
        return held.until_ns if held else None

    def say_goodbye(self) -> None:
        """This process is about to end in order."""
        if self._publisher is not None:
            body = Goodbye(time.time(), self._host, self._index).body()
            self._publisher.send(self._outgoing(self._publisher, body, "goodbye"))

    async def _reopen(self) -> None:
        """The channel can be lost alone: the exchange deleted, a permission taken."""
        connection, publisher = self._connection, self._publisher
        if connection is None or not connection.is_open or connection.blocked:
            return
        if publisher is not None and publisher.channel.closed.done():
            self._tell_once(str(publisher.channel.closed.result()))
            self._publisher = publisher = None
        if publisher is None and time.monotonic() >= self._reopen_s:
            await self.attach(connection)

    def _outgoing(self, publisher: LossyPublisher, body: bytes, kind: str) -> Outgoing:
        properties = Properties(
            user_id=publisher.channel.connection.username,
            type=kind,
            content_type="application/json",
            delivery_mode=TRANSIENT,
        )
        return Outgoing(topology.TELEMETRY, f"host.{self._host}", body, properties)

    def _tell_once(self, why: str, **more: Any) -> None:
        if why not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(why)
            log.warning("readings of this process are not sent: %s", why, **more)
