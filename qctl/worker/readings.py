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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from qctl.broker import topology
from qctl.broker.lossy import LossyPublisher
from qctl.broker.message import TRANSIENT, Outgoing, Properties, short
from qctl.broker.session import HEARTBEAT_S, ChannelLost, Connection
from qctl.control.event import NotUnderstood, instant
from qctl.control.quota_reading import CostReading, ForeignReading, LimitReading, OverrideReading, QuotaReading
from qctl.control.reading import (
    ConsumerReading,
    Counts,
    Goodbye,
    Hold,
    Reading,
    Tag,
)
from qctl.errors import QctlError
from qctl.quota import Account, Leases, Limit, Policy, Window
from qctl.quota import Reading as LedgerReading
from qctl.quota.foreign import ForeignReport
from qctl.quota.returns import returns
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
#: What tasks cost is told of so many types.
MAX_COSTS = 64
#: The cause under which the process holds a consumer that the ledger does not pay for.
QUOTA = "quota"
#: How fast a quota is spent is looked at over so long, and over so many grains of the ledger's history at least.
SPEND_NS = 10_000_000_000
LEAST_GRAINS = 4

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
        waiting=live.waiting + (live.executor.paying if live.executor else 0),
        concurrency=live.concurrency,
        prefetch=live.prefetch,
        counts=Counts(ended.acked, ended.retried, ended.deferred, ended.dead, ended.given_back),
        rate_per_s=ended.rate_per_s,
        put_off_per_s=ended.put_off_per_s,
        run_s=live.pace.run_s if live.pace.done else None,
    )


def quota_reading(
    policy: Policy,
    account: Account,
    clocks: Clocks,
    *,
    override: Override | None = None,
    foreign: ForeignReport | None = None,
    spent: LedgerReading | None = None,
) -> QuotaReading:
    """A quota as it is now. `used` is never more than the limit; what a lowered one leaves behind is `over`."""
    binding = account.binding
    return QuotaReading(
        name=policy.name,
        used=min(binding.units, binding.limit.units),
        limit=binding.limit.units,
        period_s=binding.limit.period_ns / _NS,
        over=max(0, binding.units - binding.limit.units),
        leased=account.lease_units,
        returns_at_s=clocks.wall_s(account.returns_ns),
        blocked_until_s=clocks.wall_s(account.blocked_until_ns),
        limits=tuple(
            LimitReading(
                one.limit.units,
                one.limit.period_ns / _NS,
                one.units,
                clocks.wall_s(one.resets_ns),
                _returns(spent, one.limit, clocks),
            )
            for one in account.limits
        ),
        override=_override(override) if override else None,
        window=policy.window.value,
        burst=policy.burst_units,
        foreign=foreign_reading(foreign, clocks) if foreign else None,
        spend_per_s=spend_per_s(spent, clocks.now_ns) if spent is not None else None,
    )


def spend_per_s(spent: LedgerReading, now_ns: int) -> float | None:
    """Units a second that all processes have settled lately, by the ledger's history; None where it has none."""
    parts = [part for part in spent.limits if part.limit.window is not Window.PACED]
    # The finest history that is long enough, else the longest.
    long_enough = [part for part in parts if part.limit.period_ns >= SPEND_NS]
    part = min(long_enough, key=lambda part: part.limit.period_ns, default=parts[-1] if parts else None)
    if part is None:
        return None
    over_ns = min(part.limit.period_ns, max(SPEND_NS, LEAST_GRAINS * part.limit.bucket_ns))
    return part.spent.used(now_ns + part.limit.kept_ns - over_ns) * _NS / over_ns


def _returns(spent: LedgerReading | None, limit: Limit, clocks: Clocks) -> tuple[tuple[float, int], ...]:
    """When what is spent of a limit is free again, in seconds from now."""
    part = next((one for one in spent.limits if one.limit == limit), None) if spent is not None else None
    pairs = returns(part, clocks.now_ns) if part is not None else ()
    return tuple(((at_ns - clocks.now_ns) / _NS, units) for at_ns, units in pairs)


def foreign_reading(report: ForeignReport, clocks: Clocks) -> ForeignReading:
    """What somebody else has spent of a quota, by what the API says."""
    return ForeignReading(
        units=report.lo_units,
        most=max(report.lo_units, min(report.hi_units, report.limit.units)),  # beyond the limit it says nothing
        ours=report.our_units,
        period_s=report.limit.period_ns / _NS,
        limit=report.limit_units,
        remaining=max(0, report.remaining_units),
        since_s=clocks.wall_s(report.since_ns),
        until_s=clocks.wall_s(report.until_ns),
        lasting=report.lasting,
    )


def learned(live: LiveConsumer) -> Iterator[CostReading]:
    """What tasks of a consumer were seen to cost."""
    if live.executor is None:
        return iter(())
    rules = live.executor.rules
    return rules.learned.readings(live.name, rules.consumer.cost, time.monotonic())


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
        foreign = leases.foreign()
        policies = {policy.name: policy for policy in self._policies()}
        spent = leases.readings()
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
                quota_reading(
                    policies[name],
                    account,
                    clocks,
                    override=overrides.get(name),
                    foreign=foreign.get(name),
                    spent=spent.get(name),
                )
                for name, account in leases.accounts(policies.values()).items()
            ),
            costs=tuple(islice(chain.from_iterable(map(learned, self._consumers.values())), MAX_COSTS)),
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
