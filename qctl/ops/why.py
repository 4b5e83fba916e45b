"""Why a consumer or a queue is as it is: the causal chain as facts, each with its sentence. Pure.

The order is the order of causes: what it is, what stops it, what does not, who else takes its tasks, what becomes of
the queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from enum import StrEnum
from typing import Any

from qctl.ops.backlog import is_kept
from qctl.ops.costs import given_up, judged
from qctl.ops.spending import SOMEBODY_ELSE, amount, by_somebody_else, pace_per_s, shown
from qctl.ops.status import (
    COUNTED,
    ConsumerRow,
    HeldBy,
    Order,
    QueueRow,
    QuotaRow,
    Source,
    State,
    Status,
    alike,
    often,
)
from qctl.ops.status_json import cost_item, foreign_item
from qctl.ops.when import clock, iso, span

#: Names listed in a sentence before the rest is only counted.
MAX_NAMES = 8
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
#: What a hold means for the tasks, beyond its own words.
_MEANS = {
    "ledger": "no call may be made until the ledger can be written again",
    "broker takes no retries": "what fails here could not go back, so nothing new is taken",
    "tasks cannot be forwarded": "what failed is given back and tried again; the worker's log says more",
    "upstream refuses": "a single task now and then finds out whether it serves again",
    "upstream down": "a single task now and then finds out whether it serves again",
}


#: A paced quota that is spent at this part of its pace goes as fast as it may.
PACED_SHARE = 0.85
#: Instants that are farther apart are told both.
APART_S = 2.0


class Kind(StrEnum):
    """What a fact is about."""

    STATE = "state"
    PAUSE = "pause"
    NOT_PAUSED = "not paused"
    HOLD = "hold"
    QUOTA = "quota"
    OVERRIDE = "override"
    FOREIGN = "someone else"
    COST = "cost"
    LEDGER = "ledger"
    PROCESSES = "processes"
    OTHERS = "others"
    QUEUE = "queue"
    DELAYED = "delayed"
    DEAD = "dead letters"
    AGE = "age"


@dataclass(frozen=True, slots=True)
class Fact:
    """A link of the chain: its sentence, and what it says as JSON-able values."""

    kind: Kind
    sentence: str
    values: dict[str, Any] = field(default_factory=dict)

    def item(self) -> dict[str, Any]:
        """As JSON."""
        return {"fact": self.kind.value, "sentence": self.sentence, **self.values}


def consumer(status: Status, row: ConsumerRow, *, zone: tzinfo | None = None) -> tuple[Fact, ...]:
    """Why a consumer of a host is as it is. zone: of the instants in sentences; None is this machine's."""
    return tuple(_Teller(status, zone).consumer(row))


def queue(status: Status, row: QueueRow, *, zone: tzinfo | None = None) -> tuple[Fact, ...]:
    """Why a queue is worked off, or not."""
    return tuple(_Teller(status, zone).queue(row))


@dataclass(frozen=True, slots=True)
class _Teller:
    status: Status
    zone: tzinfo | None

    def at(self, at_s: float) -> str:
        return clock(at_s, now_s=self.status.at_s, zone=self.zone)

    def consumer(self, row: ConsumerRow) -> Iterator[Fact]:
        yield self._state(row)
        yield from self._partly(row)
        yield from self._pauses(row)
        quotas = [quota for name in row.costs if (quota := self.status.quota(row.host, name))]
        for hold in row.holds:
            if hold.cause != "quota" or not any(quota.dry or self._blocked(quota) for quota in quotas):
                yield self._hold(hold)
        for quota in quotas:
            yield from self._quota(quota)
        yield from self._given_up(row, quotas)
        yield from self._others(row)
        if found := self.status.queue(row.queue):
            yield from self._queue(found)
        yield from self._age(row)

    def queue(self, row: QueueRow) -> Iterator[Fact]:
        takers = self.status.of_queue(row.queue)
        if not takers:
            yield Fact(Kind.OTHERS, f"no host is known to consume {row.queue}", {"hosts": {}})
        consuming = [one.host for one in takers if one.state is State.CONSUMING]
        if consuming:
            yield Fact(Kind.OTHERS, f"{_count(consuming, 'host')} consuming ({_names(consuming)})", _hosts(takers))
        elif takers:
            yield Fact(Kind.OTHERS, "nobody is consuming it at present", _hosts(takers))
        for one in takers:
            if one.state is not State.CONSUMING:
                yield Fact(Kind.STATE, f"{self._state(one).sentence}{self._short_cause(one)}", _state_values(one))
        yield from self._queue(row)

    # The links

    def _state(self, row: ConsumerRow) -> Fact:
        since = f" since {self.at(row.since_s)}" if row.since_s is not None else ""
        why = row.why if row.state in (State.DOWN, State.UNKNOWN, State.DRAINING) else ""
        if row.state is State.UNKNOWN:
            sentence = f"it is not known what {row.address} does: {why or 'nothing was heard of it'}"
            if row.since_s is not None:
                sentence += f"; last heard {self.at(row.since_s)}"
        else:
            sentence = f"{row.address} is {row.state}{since}{f': {why}' if why else ''}"
        return Fact(Kind.STATE, sentence, _state_values(row))

    def _partly(self, row: ConsumerRow) -> Iterator[Fact]:
        if len(row.counts) > 1:
            parts = [f"{row.counts[state]} {state}" for state in COUNTED if row.counts.get(state)]
            counts = {state.value: number for state, number in row.counts.items()}
            yield Fact(Kind.PROCESSES, f"its processes do not agree: {', '.join(parts)}", {"counts": counts})
        host = self.status.host(row.host)
        if host and host.seen and host.seen.source is Source.LIVE and host.processes and host.heard < host.processes:
            sentence = f"only {host.heard} of {host.processes} processes of {row.host} were heard"
            yield Fact(Kind.PROCESSES, sentence, {"processes": host.processes, "processes_heard": host.heard})

    def _pauses(self, row: ConsumerRow) -> Iterator[Fact]:
        obeyed = {State.DOWN: " (obeyed when it starts)", State.UNKNOWN: " (whether all of it obeys is not known)"}
        for pause, times in alike(row.pauses):
            sentence = f"paused{obeyed.get(row.state, '')} {self._given(pause)}; it names {pause.target}{often(times)}"
            yield Fact(Kind.PAUSE, sentence, {**_order_values(pause), "times": times})
        if not row.pauses and row.state in (State.HELD, State.DOWN):
            yield Fact(Kind.NOT_PAUSED, "not paused")

    def _given(self, order: Order) -> str:
        claimed = f" (says it is {order.claimed_by})" if order.claimed_by else ""
        at = f" at {self.at(order.at_s)}" if order.at_s is not None else ""
        until = f", until {self.at(order.until_s)}" if order.until_s is not None else ""
        return f"by {order.by}{claimed}{at}{until}{f': {order.reason}' if order.reason else ''}"

    def _hold(self, hold: HeldBy) -> Fact:
        means = _MEANS.get(hold.cause, "")
        until = f", until about {self.at(hold.until_s)}" if hold.until_s is not None else ""
        sentence = f"held: {hold.words or hold.cause}{until}{f'; {means}' if means else ''}"
        return Fact(Kind.HOLD, sentence, {"cause": hold.cause, "words": hold.words, "until": iso(hold.until_s)})

    def _blocked(self, quota: QuotaRow) -> bool:
        return quota.blocked_until_s is not None and quota.blocked_until_s > self.status.at_s

    def _quota(self, row: QuotaRow) -> Iterator[Fact]:
        yield Fact(Kind.QUOTA, self.burn(row), _quota_values(row))
        if row.override is not None:
            instead = f" instead of {', '.join(row.inventory_rates)}" if row.inventory_rates else ""
            sentence = f"quota {row.quota} is {', '.join(row.override.rates)}{instead}, set {self._given(row.override)}"
            yield Fact(Kind.OVERRIDE, sentence, {"quota": row.quota, **_order_values(row.override)})
        if foreign := shown(row.foreign):
            told = by_somebody_else(foreign, row.limit_units, self.at)
            sentence = f"quota {row.quota} is spent by {SOMEBODY_ELSE} too: {told}"
            yield Fact(Kind.FOREIGN, sentence, {"quota": row.quota, **foreign_item(foreign)})
        if row.fault:
            sentence = f"the ledger of {row.host}: {row.fault}; no call is made without a committed charge"
            yield Fact(Kind.LEDGER, sentence, {"fault": row.fault})

    def _given_up(self, row: ConsumerRow, quotas: Iterable[QuotaRow]) -> Iterator[Fact]:
        """What a cost that is declared too low does to its tasks."""
        costs = [cost for cost in judged(quotas) if cost.consumer == row.consumer and cost.gave_up]
        if costs:
            yield Fact(Kind.COST, given_up(costs, row.consumer), {"costs": [cost_item(cost) for cost in costs]})

    def burn(self, row: QuotaRow) -> str:
        """How much of a quota is used, and when that changes."""
        if row.used_units is None or row.limit_units is None:
            return f"it is not known how much of quota {row.quota} ({', '.join(row.rates)}) is used"
        paced = f"{pace:.3g}/s paced, " if (pace := pace_per_s(row)) is not None else ""
        used = f"quota {row.quota}: {paced}{row.used_units}/{row.limit_units} used"
        if row.foreign is not None and row.foreign_units:
            used += f" and {amount(row.foreign)} by {SOMEBODY_ELSE}"
        if self._blocked(row) and row.blocked_until_s is not None:
            return f"{used}; the upstream allows no calls until {self.at(row.blocked_until_s)}"
        if row.held and not row.spent:
            until = f" until about {self.at(row.back_at_s)}" if row.back_at_s is not None else ""
            return f"{used}, too little for the next task{until}"
        if row.dry:
            when = f"at {self.at(row.returns_at_s)}" if row.returns_at_s is not None else "when a task gives some back"
            over = row.used_units > row.limit_units  # what returns first is not free yet
            returns = f"{used}, {'a unit may be used again' if over else 'first units return'} {when}"
            if row.held_until_s is not None and row.held_until_s - (row.returns_at_s or 0.0) > APART_S:
                returns += f", enough for the next task at about {self.at(row.held_until_s)}"
            return returns
        if pace is not None and (row.spend_per_s or 0.0) >= PACED_SHARE * pace:
            return f"{used}, and that pace is what limits it"
        if row.exhausted_at_s is not None:
            which = row.exhausted_rate if len(row.rates) > 1 else ""
            ends = f"{which} is used up" if which else "used up"
            return f"{used}, {ends} at about {self.at(row.exhausted_at_s)} at this rate"
        return used

    def _others(self, row: ConsumerRow) -> Iterator[Fact]:
        others = [one for one in self.status.of_queue(row.queue) if one.host != row.host]
        if not others:
            yield Fact(Kind.OTHERS, f"no other host consumes {row.queue}", {"hosts": {}})
            return
        parts = []
        for state in reversed(COUNTED):
            those = [one for one in others if one.state is state]
            if state is State.DOWN and 0 < len(those) <= MAX_NAMES:
                parts += [self._down(one) for one in those]
            elif those or state is State.CONSUMING:
                words = "in an unknown state" if state is State.UNKNOWN else str(state)
                names = f" ({_names([one.host for one in those])})" if those else ""
                parts.append(f"{_count([one.host for one in those], 'other host')} {words}{names}")
        yield Fact(Kind.OTHERS, ", ".join(parts), _hosts(others))

    def _down(self, row: ConsumerRow) -> str:
        return f"{row.host} is down" + (f" since {self.at(row.since_s)}" if row.since_s is not None else "")

    def _short_cause(self, row: ConsumerRow) -> str:
        if row.state is State.PAUSED and row.pauses:
            pause, times = alike(row.pauses)[0]
            return f", {self._given(pause)}{often(times)}"
        if row.state is State.HELD:
            quotas = [quota for name in row.costs if (quota := self.status.quota(row.host, name))]
            waits = any(hold.cause == "quota" for hold in row.holds)
            short = [one for one in quotas if one.dry or self._blocked(one) or (waits and shown(one.foreign))]
            causes = [self.burn(quota) for quota in short]
            causes += [hold.words or hold.cause for hold in row.holds if hold.cause != "quota" or not short]
            return f": {'; '.join(causes)}" if causes else ""
        return ""

    def _queue(self, row: QueueRow) -> Iterator[Fact]:
        yield Fact(Kind.QUEUE, self.prospect(row), _queue_values(row))
        delayed = [(one.queue, one.ready) for one in self.status.queues if one.ready and _is_delay(one.queue)]
        if total := sum(ready for _, ready in delayed if ready):
            sentence = f"{_tasks(total)} of any queue wait{'s' if total == 1 else ''} to be tried again later"
            yield Fact(Kind.DELAYED, sentence, {"ready": total, "queues": dict(delayed)})
        dead = self.status.queue(f"{row.queue}.dead")
        if dead and dead.ready:
            letters = "dead letter lies" if dead.ready == 1 else "dead letters lie"
            yield Fact(Kind.DEAD, f"{dead.ready} {letters} in {dead.queue}", {"queue": dead.queue, "ready": dead.ready})

    def prospect(self, row: QueueRow) -> str:
        """What is in a queue, and what becomes of it."""
        if row.ready is None:
            return f"it is not known how many tasks are ready in queue {row.queue}{f': {row.why}' if row.why else ''}"
        if row.ready == 0:
            return f"nothing waits in queue {row.queue}"
        words = f"{_tasks(row.ready)} {'is' if row.ready == 1 else 'are'} ready in queue {row.queue}"
        takers = self.status.of_queue(row.queue)
        if takers and row.empty_at_s is None and all(map(is_kept, takers)):
            ends = [self._ends(one) for one in takers if one.state is State.HELD]
            first_s = min((end for end in ends if end is not None), default=None)
            return f"{words}; nobody takes them{f' before about {self.at(first_s)}' if first_s else ' at present'}"
        if row.empty_at_s is not None:
            unless = "" if row.in_per_s is not None else " if nothing is added"
            return f"{words}; it will be empty at {self.at(row.empty_at_s)} at this rate{unless}"
        if not row.out_per_s:
            idle = (
                "nothing is taken out at present" if row.out_per_s == 0 else "nobody says at which rate they are taken"
            )
            return f"{words}; {idle}"
        if row.in_per_s is not None:
            return (
                f"{words}; {row.in_per_s:.1f}/s come and {row.out_per_s:.1f}/s go: it does not get empty at this rate"
            )
        return words

    def _ends(self, row: ConsumerRow) -> float | None:
        """When a consumer that is held may take tasks again; None where one of its holds does not say."""
        ends = [hold.until_s for hold in row.holds]
        blocks = [one.blocked_until_s for name in row.costs if (one := self.status.quota(row.host, name))]
        known = [end for end in (*ends, *blocks) if end is not None and end > self.status.at_s]
        return max(known, default=None) if None not in ends else None

    def _age(self, row: ConsumerRow) -> Iterator[Fact]:
        if row.seen is not None and row.seen.source is Source.LOG:
            age_s = max(0.0, self.status.at_s - row.seen.at_s)
            sentence = f"its numbers are {span(age_s)} old: nothing newer was heard"
            yield Fact(Kind.AGE, sentence, {"age_s": round(age_s, 3)})


def _is_delay(name: str) -> bool:
    return name.startswith("qctl.retry.")


def _tasks(number: int) -> str:
    return f"{number} task{'' if number == 1 else 's'}"


def _count(hosts: Sequence[str], what: str) -> str:
    number = len(hosts)
    word = _NUMBERS[number] if number < len(_NUMBERS) else str(number)
    return f"{word} {what}{'' if number == 1 else 's'} {'is' if number == 1 else 'are'}"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(names[:MAX_NAMES])}{more}"


def _hosts(rows: Iterable[ConsumerRow]) -> dict[str, Any]:
    return {"hosts": {row.host: row.state.value for row in rows}}


def _state_values(row: ConsumerRow) -> dict[str, Any]:
    return {
        "host": row.host,
        "consumer": row.consumer,
        "state": row.state.value,
        "since": iso(row.since_s),
        "why": row.why or None,
    }


def _order_values(order: Order) -> dict[str, Any]:
    return {
        "id": order.id,
        "target": order.target,
        "by": order.by,
        "as": order.claimed_by,
        "at": iso(order.at_s),
        "reason": order.reason,
        "until": iso(order.until_s),
    }


def _quota_values(row: QuotaRow) -> dict[str, Any]:
    return {
        "quota": row.quota,
        "used_units": row.used_units,
        "limit_units": row.limit_units,
        "returns_at": iso(row.returns_at_s),
        "blocked_until": iso(row.blocked_until_s),
        "exhausted_at": iso(row.exhausted_at_s),
        "exhausted_limit": row.exhausted_rate or None,
        "held": row.held,
        "back_at": iso(row.back_at_s) if row.dry else iso(row.blocked_until_s),
    }


def _queue_values(row: QueueRow) -> dict[str, Any]:
    return {
        "queue": row.queue,
        "ready": row.ready,
        "in_per_s": row.in_per_s,
        "out_per_s": row.out_per_s,
        "empty_at": iso(row.empty_at_s),
    }
