"""What a host has found out and an operator should know: entered in the control log, where `qctl events` shows it.

Somebody else spends a quota of this host: said when it has lasted for a while, or came again and again, and when it is
over. The supervisor says
it, once for all its processes, and seldom: news must not become a flood. While the broker takes nothing it is not said.
"""

from __future__ import annotations

import asyncio
import logging
import math
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
from qctl.control.quota_reading import FIXED, ForeignReading, QuotaReading
from qctl.control.reading import Reading
from qctl.errors import QctlError

log = logging.getLogger(__name__)

#: Processes report to their supervisor so often; looking more often shows nothing new.
LOOK_S = 5.0
#: A quota has no two beginnings within this, nor within its period: somebody who comes and goes is told of once.
SELDOM_S = 3_600.0
#: It is lasting when it came in so many windows, each not long after the other, however briefly in each.
LASTING_WINDOWS = 3
#: It is over when it was not seen for so long; of a fixed window for two of them, since each begins with nothing seen.
OVER_S = 15.0
OVER_WINDOWS, OVER_MOST_S = 2, 3_600.0
#: Instants that are so near to each other are one, told by a clock that is read each time.
SAME_S = 0.5
#: Readings that are older say nothing of the present: their processes hang, or are gone.
PRESENT_S = 15.0


@dataclass(slots=True)
class _Seen:
    """What was seen of a quota. since_s: when it began; window_s: when it was first so in the present window, of which
    there were `windows`; seen_s: when it was last seen. most: with the largest numbers."""

    since_s: float
    window_s: float
    seen_s: float
    most: QuotaReading
    windows: int = 1


class Watch:
    """Which notices are due. Pure but for its memory of what was seen and said; instants are of one clock, the
    readings'."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        #: When the last beginning of each was said, and of which the end was not yet.
        self._begun_s: dict[str, float] = {}
        self._open: set[str] = set()

    def due(self, readings: Iterable[Reading], now_s: float) -> Iterator[Due]:
        """What is to be said at `now_s`. Call `said` for each."""
        present = [reading for reading in readings if abs(now_s - reading.at_s) < PRESENT_S]
        if not present:
            return
        for quota in host_quotas(present):
            if (foreign := notable(quota)) is None:
                continue
            seen = self._look(quota, foreign, now_s)
            begun_s = self._begun_s.get(quota.name, -math.inf)
            long_ago = now_s - begun_s >= max(SELDOM_S, quota.period_s)
            lasts = foreign.lasting or seen.windows >= LASTING_WINDOWS
            if lasts and long_ago and quota.name not in self._open:
                yield Due(True, quota, foreign, seen.since_s)
        for name, seen in tuple(self._seen.items()):
            if now_s - seen.seen_s < over_s(seen.most):
                continue
            if name not in self._open:
                del self._seen[name]
            elif seen.most.foreign is not None:
                yield Due(False, seen.most, seen.most.foreign, seen.since_s, seen.seen_s)

    def _look(self, quota: QuotaReading, foreign: ForeignReading, now_s: float) -> _Seen:
        since_s = foreign.since_s if foreign.since_s is not None else now_s
        seen = self._seen.get(quota.name)
        if seen is None:
            seen = self._seen[quota.name] = _Seen(since_s, since_s, now_s, quota)
        if abs(since_s - seen.window_s) > SAME_S:
            seen.window_s, seen.windows = since_s, seen.windows + 1
        seen.seen_s = now_s
        if seen.most.foreign is None or foreign.units >= seen.most.foreign.units:
            seen.most = quota
        return seen

    def said(self, due: Due, now_s: float) -> None:
        """A notice is in the log."""
        name = due.quota.name
        if due.begins:
            self._begun_s[name] = now_s
            self._open.add(name)
        else:
            self._open.discard(name)
            self._seen.pop(name, None)


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be said: whether it begins, the quota with its numbers, since when, and till when if it is over."""

    begins: bool
    quota: QuotaReading
    foreign: ForeignReading
    since_s: float
    until_s: float | None = None


def notable(quota: QuotaReading) -> ForeignReading | None:
    """What somebody else spends of it, if that is more than a trifle."""
    foreign = quota.foreign
    return foreign if foreign is not None and foreign.units > 0 and foreign.since_s is not None else None


def over_s(quota: QuotaReading) -> float:
    """How long it is not seen before it is over."""
    windows_s = OVER_WINDOWS * quota.period_s if quota.window == FIXED else 0.0
    return max(OVER_S, min(windows_s, OVER_MOST_S))


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
                for one in due:
                    await self._say(publisher, one)
        except ChannelLost as error:
            log.debug("no notices for now: %s", error)
        except QctlError as error:
            self._tell_once(error.message)

    async def _say(self, publisher: Publisher, due: Due) -> None:
        now_s = time.time()
        body = notice(self._host, due, identity=secrets.token_hex(16), now_s=now_s)
        properties = Properties(
            message_id=body.id,
            user_id=publisher.channel.connection.username,
            type="notice",
            content_type="application/json",
            delivery_mode=PERSISTENT,
        )
        fate = await publisher.publish(Outgoing(topology.HELLO, "", body.body(), properties))
        if fate is Published.CONFIRMED:
            self._watch.said(due, now_s)
            words = "is spent by someone else too" if due.begins else "is not spent by anybody else any more"
            log.warning("quota %s %s: at least %d units of %d", body.quota, words, body.units, body.limit_units)
        elif fate is not Published.LOST:
            self._tell_once(fate.value)

    def _tell_once(self, why: str) -> None:
        if not self._told:
            self._told = True
            log.warning("what this host finds out is not entered in the control log: %s", why)


def notice(host: str, due: Due, *, identity: str, now_s: float) -> Notice:
    """The entry."""
    quota, foreign = due.quota, due.foreign
    return Notice(
        id=identity,
        at=utc(now_s),
        host=host,
        quota=quota.name,
        begins=due.begins,
        units=foreign.units,
        most=foreign.most,
        ours=foreign.ours,
        limit_units=next((one.units for one in quota.limits if one.period_s == foreign.period_s), quota.limit),
        limit=foreign.limit,
        remaining=foreign.remaining,
        since=utc(due.since_s),
        until=utc(due.until_s) if due.until_s is not None else None,
    )
