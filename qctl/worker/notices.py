"""What a host has found out and an operator should know: entered in the control log, where `qctl events` shows it.

Somebody else spends a quota of this host: said when it has lasted for a while, and when it is over. The supervisor says
it, once for all its processes, and seldom: news must not become a flood. While the broker takes nothing it is not said.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from qctl.broker import topology
from qctl.broker.message import PERSISTENT, Outgoing, Properties, utc
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost, Connection
from qctl.control.event import Notice
from qctl.control.host_quotas import host_quotas
from qctl.control.quota_reading import ForeignReading, QuotaReading
from qctl.control.reading import Reading
from qctl.errors import QctlError

log = logging.getLogger(__name__)

#: Processes report to their supervisor so often; looking more often shows nothing new.
LOOK_S = 5.0
#: A quota has no two beginnings within this, nor within its period: somebody who comes and goes is told of once.
SELDOM_S = 3_600.0
#: It is over when it was not seen for so long.
OVER_S = 15.0
#: Readings that are older say nothing of the present: their processes hang, or are gone.
PRESENT_S = 15.0


@dataclass(slots=True)
class _Told:
    """What was said of a quota. begun_s, seen_s: when its beginning was said, and when it was last seen."""

    begun_s: float
    seen_s: float
    last: QuotaReading
    over: bool = False


class Watch:
    """Which notices are due. Pure but for its memory of what was said; instants are of one clock, the readings'."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    def due(self, readings: Iterable[Reading], now_s: float) -> Iterator[tuple[bool, QuotaReading]]:
        """What is to be said at `now_s`: whether it begins, and the quota with its numbers. Call `said` for each."""
        present = [reading for reading in readings if abs(now_s - reading.at_s) < PRESENT_S]
        if not present:
            return
        quotas = {quota.name: quota for quota in host_quotas(present) if lasting(quota)}
        for name, quota in quotas.items():
            told = self._told.get(name)
            if told is None or (told.over and now_s - told.begun_s >= max(SELDOM_S, quota.period_s)):
                yield True, quota
            elif not told.over:
                told.seen_s, told.last = now_s, quota
        for name, told in self._told.items():
            if name not in quotas and not told.over and now_s - told.seen_s >= OVER_S:
                yield False, told.last

    def said(self, quota: QuotaReading, now_s: float, *, begins: bool) -> None:
        """A notice is in the log."""
        if begins:
            self._told[quota.name] = _Told(now_s, now_s, quota)
        else:
            self._told[quota.name].over = True


def lasting(quota: QuotaReading) -> bool:
    """Whether somebody else spends it, and not only for a moment."""
    return quota.foreign is not None and quota.foreign.lasting and quota.foreign.units > 0


class Notices:
    """The notices of one host, on whichever connection there is. For the loop's thread."""

    def __init__(self, host: str, readings: Callable[[], Iterable[Reading]]) -> None:
        """readings: the last of each process."""
        self._host = host
        self._readings = readings
        self._watch = Watch()
        self._told = False

    async def keep(self, connection: Connection) -> None:
        """Say what is due, until cancelled or until the connection is lost."""
        publisher: Publisher | None = None
        try:
            while connection.is_open:
                await asyncio.sleep(LOOK_S)
                due = [] if connection.blocked else list(self._watch.due(self._readings(), time.time()))
                if not due:
                    continue
                if publisher is None or not publisher.channel.is_open:
                    await topology.ensure(connection, topology.control_log())
                    publisher = await Publisher.open(connection)
                for begins, quota in due:
                    await self._say(publisher, quota, begins=begins)
        except ChannelLost as error:
            log.debug("no notices for now: %s", error)
        except QctlError as error:
            self._tell_once(error.message)

    async def _say(self, publisher: Publisher, quota: QuotaReading, *, begins: bool) -> None:
        now_s = time.time()
        assert quota.foreign is not None
        body = notice(self._host, quota, quota.foreign, begins=begins, identity=secrets.token_hex(16), now_s=now_s)
        properties = Properties(
            message_id=body.id,
            user_id=publisher.channel.connection.username,
            type="notice",
            content_type="application/json",
            delivery_mode=PERSISTENT,
        )
        fate = await publisher.publish(Outgoing(topology.HELLO, "", body.body(), properties))
        if fate is Published.CONFIRMED:
            self._watch.said(quota, now_s, begins=begins)
            words = "is spent by somebody else too" if begins else "is not spent by anybody else any more"
            log.warning("quota %s %s: at least %d units of %d", quota.name, words, body.units, body.limit_units)
        elif fate is not Published.LOST:
            self._tell_once(fate.value)

    def _tell_once(self, why: str) -> None:
        if not self._told:
            self._told = True
            log.warning("what this host finds out is not entered in the control log: %s", why)


def notice(
    host: str, quota: QuotaReading, foreign: ForeignReading, *, begins: bool, identity: str, now_s: float
) -> Notice:
    """The entry."""
    return Notice(
        id=identity,
        at=utc(now_s),
        host=host,
        quota=quota.name,
        begins=begins,
        units=foreign.units,
        most=foreign.most,
        ours=foreign.ours,
        limit_units=next((one.units for one in quota.limits if one.period_s == foreign.period_s), quota.limit),
        limit=foreign.limit,
        remaining=foreign.remaining,
        since=utc(foreign.since_s) if foreign.since_s is not None else None,
    )
