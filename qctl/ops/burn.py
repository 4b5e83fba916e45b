"""The quotas of a host: what is used of them, what that comes to, and which commands changed them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qctl.control.desired import Override, Pause
from qctl.control.host_quotas import host_costs, host_quotas
from qctl.control.quota_reading import FIXED, SLIDING, CostReading, LimitReading, QuotaReading
from qctl.control.reading import Reading
from qctl.inventory.model import Host
from qctl.ops.found import MAX_FORESIGHT_S, Found
from qctl.ops.status import ConsumerRow, HeldBy, Order, QuotaRow, Seen, Source
from qctl.ops.when import instant
from qctl.units import NS_PER_S, Rate

#: What is less apart is one instant.
ROUNDED_S = 1.0


def rows(
    found: Found,
    name: str,
    host: Host | None,
    *,
    readings: Sequence[Reading],
    seen: Seen | None,
    spenders: Iterable[ConsumerRow],
) -> Iterator[QuotaRow]:
    """The quotas of the host `name`: those that its consumers spend and those that its readings tell of.

    host None: the inventory does not have it. seen: where the readings come from.
    """
    spending = list(spenders)
    by_name = {one.name: one for one in host_quotas(readings)} if readings else {}
    costs: dict[str, list[CostReading]] = {}
    for cost in host_costs(readings):
        costs.setdefault(cost.quota, []).append(cost)
    teller = _Burn(found, name, host, readings, seen, costs)
    for quota in dict.fromkeys([*(quota for row in spending for quota in row.costs), *by_name]):
        yield teller.row(quota, by_name.get(quota), [row for row in spending if quota in row.costs])


@dataclass(frozen=True, slots=True)
class _Burn:
    found: Found
    host: str
    known: Host | None
    readings: Sequence[Reading]
    seen: Seen | None
    costs: Mapping[str, Sequence[CostReading]]

    @property
    def live(self) -> bool:
        return self.seen is not None and self.seen.source is Source.LIVE

    def row(self, name: str, reading: QuotaReading | None, spenders: list[ConsumerRow]) -> QuotaRow:
        quota = self.known.quotas.get(name) if self.known else None
        listed = tuple(str(rate) for rate in quota.limits) if quota else ()
        desired = self.found.desired
        ordered = desired.override_of(self.host, name, self.found.at_s) if desired else None
        faults = dict.fromkeys(one.ledger_fault for one in self.readings if one.ledger_fault)
        seen = self.seen
        row = QuotaRow(
            host=self.host,
            quota=name,
            rates=ordered.rates if ordered else listed,
            inventory_rates=listed,
            override=order(ordered, f"{ordered.host}/{ordered.quota}") if ordered else None,
            fault="; ".join(one for one in faults if one) if self.live else "",
            seen=seen,
            window=quota.window.value if quota else SLIDING,
            burst_units=quota.burst if quota else 1,
            costs=tuple(self.costs.get(name, ())),
        )
        if reading is None or seen is None or (not self.live and self.found.at_s - seen.at_s >= reading.period_s):
            return row  # what was used then is free again by now
        reading = self._unless_over(reading)
        rates = tuple(map(_rate, reading.limits))
        spend_per_s = reading.spend_per_s if self.live else None
        estimated = spend_per_s is None
        if estimated:
            spend_per_s = self._spend(name, spenders)
        holds = [hold for one in spenders for hold in one.holds if self.live and _is_for(hold, name)]
        row = replace(
            row,
            rates=rates or row.rates,
            override=_override(name, self.host, reading, ordered) if self.live else row.override,
            used_units=reading.used + reading.over,
            limit_units=reading.limit,
            period_s=reading.period_s,
            spend_per_s=spend_per_s,
            spend_estimated=estimated,
            held=bool(holds),
            held_until_s=min((at_s for one in holds if (at_s := _ahead(one.until_s, self.found.at_s))), default=None),
            returns_at_s=_same(_ahead(reading.returns_at_s, self.found.at_s), self._resets(reading)),
            blocked_until_s=_ahead(reading.blocked_until_s, self.found.at_s),
            window=reading.window,
            resets_at_s=self._resets(reading),
            burst_units=reading.burst,
            foreign=reading.foreign,
        )
        if not self.live or row.dry or row.blocked_until_s is not None:
            return row  # nobody says how fast it is spent, or it is gone already
        at_s, rate = self._exhausted(reading, spend_per_s)
        return replace(row, exhausted_at_s=at_s, exhausted_rate=rate)

    def _resets(self, reading: QuotaReading) -> float | None:
        """When the window of the limit that shows begins anew, of a fixed one."""
        resets = (one.resets_at_s for one in reading.limits if one.period_s == reading.period_s)
        return _ahead(next(resets, None), self.found.at_s) if reading.window == FIXED else None

    def _unless_over(self, reading: QuotaReading) -> QuotaReading:
        """Without what somebody else has spent, where that is forgotten by now, whoever still says it."""
        until_s = reading.foreign.until_s if reading.foreign is not None else None
        return replace(reading, foreign=None) if until_s is not None and until_s <= self.found.at_s else reading

    def _spend(self, name: str, spenders: list[ConsumerRow]) -> float | None:
        rates = [row.rate_per_s for row in spenders]
        if not spenders or not self.live or any(rate is None for rate in rates):
            return None
        return round(sum((rate or 0.0) * row.costs[name] for rate, row in zip(rates, spenders, strict=True)), 3)

    def _exhausted(self, reading: QuotaReading, spend_per_s: float | None) -> tuple[float | None, str]:
        """When it is used up at this rate, and which limit is; None when it lasts, since as much comes back in each
        period."""
        if not spend_per_s:
            return None, ""
        ends = [
            (self.found.at_s + max(0, one.units - one.used - reading.foreign_of(one.period_s)) / spend_per_s, one)
            for one in reading.limits
            if spend_per_s * one.period_s > one.units - reading.foreign_of(one.period_s)
        ]
        at_s, first = min(ends, default=(math.inf, None), key=lambda end: end[0])
        if first is None or at_s - self.found.at_s >= MAX_FORESIGHT_S:
            return None, ""
        return at_s, _rate(first)


def _same(at_s: float | None, resets_at_s: float | None) -> float | None:
    """An instant, or the begin of the next window where it is that one but for what clocks round."""
    near = at_s is not None and resets_at_s is not None and abs(at_s - resets_at_s) < ROUNDED_S
    return resets_at_s if near else at_s


def _is_for(hold: HeldBy, quota: str) -> bool:
    """Whether a consumer is held since it waits for this quota."""
    return hold.cause == "quota" and hold.words.split()[-1:] == [quota]


def _rate(limit: LimitReading) -> str:
    return str(Rate(limit.units, round(limit.period_s * NS_PER_S)))


def _ahead(at_s: float | None, now_s: float) -> float | None:
    return at_s if at_s is not None and at_s > now_s else None


def order(given: Pause | Override, target: str) -> Order:
    """A command that holds, as a row tells of it."""
    return Order(
        id=given.id,
        target=target,
        by=given.user,
        claimed_by=given.claimed_by or None,
        at_s=instant(given.at),
        reason=given.reason or None,
        until_s=given.until_s,
        rates=given.rates if isinstance(given, Override) else (),
    )


def _override(quota: str, host: str, reading: QuotaReading, ordered: Override | None) -> Order | None:
    """What a living process obeys; the log knows who is behind it."""
    obeyed = reading.override
    if obeyed is None:
        return None
    if ordered is not None and ordered.rates == obeyed.rates:
        return order(ordered, f"{ordered.host}/{ordered.quota}")
    return Order(
        id="",
        target=f"{host}/{quota}",
        by=obeyed.by or "",
        at_s=obeyed.at_s,
        reason=obeyed.reason,
        until_s=obeyed.until_s,
        rates=obeyed.rates,
    )
