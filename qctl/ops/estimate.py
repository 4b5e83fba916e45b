"""What a fleet does by the broker's own counters, where its workers are not heard. Pure but for what it remembers.

Each acknowledgement is taken for a task that cost what its consumer declares. The units are estimates: too high where
tasks are put off, which acknowledges them too; too low where a channel was closed before anybody looked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qctl.broker.listing import ListedChannel, ListedConnection, ListedConsumer
from qctl.inventory.model import Consumer, Host, Inventory, Quota
from qctl.ops.found import MAX_FORESIGHT_S
from qctl.ops.status import ConsumerRow, HostRow, QuotaRow, Seen, Source, State, agreed
from qctl.units import NS_PER_S

#: The broker counts anew each five seconds: what a rate is taken over.
RATE_S = 20.0
#: Moments that are remembered of a consumer; beyond them, every second one of the older half is forgotten.
MAX_MOMENTS = 64
#: Hosts that the inventory does not have, shown at most.
MAX_STRANGERS = 500
#: Parts of a consumer tag: `qctl/HOST/CONSUMER/INDEX`, or with `/directed`.
_TAG_PARTS = (4, 5)

#: A host's name and a consumer's.
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Estimates:
    """The fleet at `at_s` by what the broker lists and counts. quotas: estimated, each of them."""

    at_s: float
    hosts: tuple[HostRow, ...] = ()
    consumers: tuple[ConsumerRow, ...] = ()
    quotas: tuple[QuotaRow, ...] = ()


def pair_of(tag: str) -> Pair | None:
    """Whose subscription it is, by its consumer tag; None for those of other clients."""
    parts = tag.split("/")
    return (parts[1], parts[2]) if len(parts) in _TAG_PARTS and parts[0] == "qctl" else None


class Tally:
    """How many tasks a consumer has finished, as it grew; between two moments it is taken to have grown evenly."""

    def __init__(self, from_s: float) -> None:
        self._at_s, self._done = [from_s], [0.0]

    def add(self, at_s: float, more: int) -> None:
        """`more` tasks since the last moment, which is not after `at_s`."""
        self._at_s.append(at_s)
        self._done.append(self._done[-1] + more)
        if len(self._at_s) > MAX_MOMENTS:
            half = len(self._at_s) // 2
            for kept in (self._at_s, self._done):
                del kept[1:half:2]

    @property
    def last_s(self) -> float:
        """The moment of the last count."""
        return self._at_s[-1]

    def since(self, at_s: float) -> float:
        """Tasks finished from `at_s` to the last count."""
        after = bisect_right(self._at_s, at_s)
        if after == 0:
            return self._done[-1]
        if after == len(self._at_s):
            return 0.0
        (from_s, to_s), (less, more) = self._at_s[after - 1 : after + 1], self._done[after - 1 : after + 1]
        return self._done[-1] - (less + (more - less) * (at_s - from_s) / (to_s - from_s))

    def per_s(self, at_s: float) -> float | None:
        """Tasks a second, of late at `at_s`; None where nothing but one count is known."""
        over_s = min(RATE_S, at_s - self._at_s[0])
        return self.since(at_s - over_s) / over_s if over_s > 0 and len(self._at_s) > 1 else None


class Counted:
    """The broker's lists of a virtual host, one after the other, and what they come to.

    sees_all: False where the user is shown its own connections only, so that nothing follows from a gap.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._known = {(host.name, name) for host in inventory.hosts.values() for name in host.consumers}
        self.sees_all = True
        #: Connections of workers by the broker's name for them, subscriptions, and when each was listed.
        self._connections: dict[str, ListedConnection] = {}
        self._connected_s: float | None = None
        self._subscribed: dict[Pair, str] = {}
        self._subscribed_s: float | None = None
        #: Channels by name: whose they are, and what was counted on them.
        self._takers: dict[str, Pair] = {}
        self._counts: dict[str, int] = {}
        self._counted_s: float | None = None
        self._tallies: dict[Pair, Tally] = {}

    @property
    def complete(self) -> bool:
        """Whether each of the lists was there."""
        return None not in (self._connected_s, self._subscribed_s, self._counted_s)

    def connections(self, listed: Iterable[ListedConnection], at_s: float) -> None:
        """The connections, as of `at_s`: which hosts are there."""
        self._connections = {one.id: one for one in listed if one.host}
        self._connected_s = at_s

    def consumers(self, listed: Iterable[ListedConsumer], at_s: float) -> None:
        """The subscriptions, as of `at_s`: who takes tasks, and on which channel."""
        mine = [(pair, one) for one in listed if (pair := pair_of(one.tag)) is not None]
        self._subscribed = {pair: one.queue for pair, one in mine}
        self._subscribed_s = at_s
        # A consumer that is off has no subscription; what is still counted on its channel is its own all the same.
        kept = {name: pair for name, pair in self._takers.items() if name in self._counts}
        self._takers = {**kept, **{one.channel: pair for pair, one in mine}}

    def channels(self, listed: Iterable[ListedChannel], at_s: float) -> None:
        """The channels and what was counted on them, as of `at_s`. A connection without any is taken to be gone."""
        listed = list(listed)
        open_ones = {one.connection for one in listed}
        self._connections = {name: one for name, one in self._connections.items() if name in open_ones}
        self._connected_s, self._counted_s = at_s, at_s
        counts: dict[str, int] = {}
        grown: dict[Pair, int] = {}
        new: dict[Pair, list[tuple[float, int]]] = {}
        for one in listed:
            pair, connection = self._takers.get(one.name), self._connections.get(one.connection)
            if one.acked is None or pair not in self._known or connection is None or connection.host != pair[0]:
                continue
            counts[one.name] = one.acked
            before = self._counts.get(one.name)
            if before is None:
                opened_s = at_s if connection.opened_s is None else min(connection.opened_s, at_s)
                new.setdefault(pair, []).append((opened_s, one.acked))
            else:  # a count that is smaller is that of a new channel under an old one's name
                grown[pair] = grown.get(pair, 0) + (one.acked - before if one.acked >= before else one.acked)
        self._counts = counts
        for pair, first in new.items():
            known = self._tallies.get(pair)
            if known is None:
                known = self._tallies[pair] = Tally(min(opened_s for opened_s, _ in first))
            # When what was counted before anybody looked came about is only known within the connection's life.
            late = [acked for opened_s, acked in first if at_s > opened_s >= known.last_s]
            grown[pair] = grown.get(pair, 0) + sum(late)
        for pair in grown.keys() & self._tallies.keys():
            if at_s > self._tallies[pair].last_s:
                self._tallies[pair].add(at_s, grown[pair])

    # What it comes to

    def estimates(self, at_s: float) -> Estimates | None:
        """The fleet as of `at_s`; None until connections and subscriptions were listed once."""
        if self._connected_s is None or self._subscribed_s is None:
            return None
        seen = Seen(Source.BROKER, min(self._connected_s, self._subscribed_s))
        counted = Seen(Source.BROKER, self._counted_s) if self._counted_s is not None else None
        there = {one.host for one in self._connections.values()}
        if self._subscribed_s > self._connected_s:
            there |= {host for host, _ in self._subscribed}
        consumers: list[ConsumerRow] = []
        hosts: list[HostRow] = []
        quotas: list[QuotaRow] = []
        for host in self._inventory.hosts.values():
            mine = [self._consumer(host.name, one, host.name in there, seen) for one in host.consumers.values()]
            hosts.append(_host(host.name, mine, seen, listed=True))
            consumers += mine
            quotas += self._quotas(host, counted)
        strange: dict[str, list[ConsumerRow]] = {
            name: [] for name in sorted(there - self._inventory.hosts.keys())[:MAX_STRANGERS]
        }
        for (name, consumer), queue in self._subscribed.items():
            if name in strange:
                strange[name].append(ConsumerRow(name, consumer, queue, State.CONSUMING, seen=seen))
        for name, mine in strange.items():
            hosts.append(_host(name, mine, seen, listed=False))
            consumers += mine
        return Estimates(at_s, tuple(hosts), tuple(consumers), tuple(quotas))

    def _consumer(self, host: str, consumer: Consumer, there: bool, seen: Seen) -> ConsumerRow:
        state, why = State.CONSUMING, ""
        if not there:
            state, why = State.UNKNOWN, "the management API shows this user nobody else's connections"
            if self.sees_all:
                state, why = State.DOWN, "the broker lists no connection of its host"
        elif (host, consumer.name) not in self._subscribed:
            state, why = State.UNKNOWN, "it is not subscribed: paused, held or ended"
        tally = self._tallies.get((host, consumer.name))
        rate_per_s = None
        if tally is not None and state is State.CONSUMING and self._counted_s is not None:
            rate_per_s = tally.per_s(self._counted_s)
        return ConsumerRow(
            host=host,
            consumer=consumer.name,
            queue=consumer.queue,
            state=state,
            why=why,
            costs=dict(consumer.cost),
            rate_per_s=round(rate_per_s, 3) if rate_per_s is not None else None,
            seen=seen,
        )

    def _quotas(self, host: Host, seen: Seen | None) -> Iterator[QuotaRow]:
        for name in dict.fromkeys(quota for one in host.consumers.values() for quota in one.cost):
            quota = host.quotas.get(name)
            if quota is not None and quota.limits:
                costs = [(one.cost[name], one.name) for one in host.consumers.values() if name in one.cost]
                known = [(cost, self._tallies.get((host.name, one))) for cost, one in costs]
                yield _quota(host.name, quota, [(cost, its) for cost, its in known if its is not None], seen)


def _host(name: str, consumers: list[ConsumerRow], seen: Seen, *, listed: bool) -> HostRow:
    states = [one.state for one in consumers]
    state = agreed(states)
    whys = dict.fromkeys(one.why for one in consumers if one.state is state)
    return HostRow(
        host=name,
        state=state,
        counts={one: states.count(one) for one in dict.fromkeys(states)},
        listed=listed,
        why=next(iter(whys)) if len(whys) == 1 else "",
        seen=seen,
    )


def _quota(host: str, quota: Quota, tallies: list[tuple[int, Tally]], seen: Seen | None) -> QuotaRow:
    rates = tuple(str(rate) for rate in quota.limits)
    if not tallies or seen is None:
        return QuotaRow(
            host,
            quota.name,
            rates,
            rates,
            estimated=True,
            seen=seen,
            window=quota.window.value,
            burst_units=quota.burst,
        )
    spend_per_s = sum(cost * (its.per_s(seen.at_s) or 0.0) for cost, its in tallies)
    spent = []
    for rate in quota.limits:
        period_s = rate.period_ns / NS_PER_S
        spent.append((sum(cost * its.since(seen.at_s - period_s) for cost, its in tallies), rate.units, period_s))
    used, limit, period_s = max(spent, key=lambda one: one[0] / one[1])
    ends = [seen.at_s + (most - its) / spend_per_s for its, most, over_s in spent if its < most < spend_per_s * over_s]
    exhausted_at_s = min((one for one in ends if one - seen.at_s < MAX_FORESIGHT_S), default=None)
    return QuotaRow(
        host=host,
        quota=quota.name,
        rates=rates,
        inventory_rates=rates,
        used_units=round(used),
        limit_units=limit,
        period_s=period_s,
        spend_per_s=round(spend_per_s, 3),
        exhausted_at_s=exhausted_at_s if used < limit else None,
        estimated=True,
        seen=seen,
        window=quota.window.value,
        burst_units=quota.burst,
    )
