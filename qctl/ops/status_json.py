"""The fleet as JSON (`docs/json.md`): what `-o json` and `-o jsonl` print of a status."""

from __future__ import annotations

from typing import Any

from qctl.control.quota_reading import ForeignReading
from qctl.ops.costs import Judged, judged
from qctl.ops.spending import burst_units, pace_per_s
from qctl.ops.status import ConsumerRow, HostRow, Order, QueueRow, QuotaRow, Seen, Status
from qctl.ops.when import iso


def document(status: Status) -> dict[str, Any]:
    """The whole as JSON; every item says its `kind`."""
    at_s = status.at_s
    return {
        "v": 1,
        "at": iso(at_s),
        "blocked": status.blocked,
        "notes": list(status.notes),
        "hosts": [host_item(row, at_s) for row in status.hosts],
        "consumers": [consumer_item(row, at_s) for row in status.consumers],
        "quotas": [quota_item(row, at_s) for row in status.quotas],
        "queues": [queue_item(row) for row in status.queues],
    }


def host_item(row: HostRow, at_s: float) -> dict[str, Any]:
    """A host as JSON."""
    return {
        "kind": "host",
        "host": row.host,
        "listed": row.listed,
        "state": row.state.value,
        "counts": {state.value: number for state, number in row.counts.items()},
        "since": iso(row.since_s),
        "why": row.why or None,
        "machine": row.machine,
        "processes": row.processes,
        "processes_heard": row.heard,
        **_seen(row.seen, at_s),
    }


def consumer_item(row: ConsumerRow, at_s: float) -> dict[str, Any]:
    """A consumer as JSON."""
    return {
        "kind": "consumer",
        "host": row.host,
        "consumer": row.consumer,
        "queue": row.queue,
        "state": row.state.value,
        "counts": {state.value: number for state, number in row.counts.items()},
        "why": row.why or None,
        "since": iso(row.since_s),
        "pauses": [_order(pause) for pause in row.pauses],
        "holds": [{"cause": one.cause, "words": one.words, "until": iso(one.until_s)} for one in row.holds],
        "costs_units": dict(row.costs),
        "running": row.running,
        "waiting": row.waiting,
        "concurrency": row.concurrency,
        "rate_per_s": row.rate_per_s,
        "put_off_per_s": row.put_off_per_s if row.rate_per_s is not None else None,
        "settled": dict(row.settled) if row.settled is not None else None,
        **_seen(row.seen, at_s),
    }


def quota_item(row: QuotaRow, at_s: float) -> dict[str, Any]:
    """A quota as JSON."""
    return {
        "kind": "quota",
        "host": row.host,
        "quota": row.quota,
        "limits": list(row.rates),
        "inventory_limits": list(row.inventory_rates),
        "used_units": row.used_units,
        "limit_units": row.limit_units,
        "period_s": row.period_s,
        "spend_per_s": row.spend_per_s,
        "spend_estimated": row.spend_per_s is not None and row.spend_estimated,
        "exhausted_at": iso(row.exhausted_at_s),
        "exhausted_limit": row.exhausted_rate or None,
        "held": row.held,
        "back_at": iso(row.back_at_s) if row.dry else iso(row.blocked_until_s),
        "returns_at": iso(row.returns_at_s),
        "blocked_until": iso(row.blocked_until_s),
        "override": _order(row.override) if row.override else None,
        "fault": row.fault or None,
        "window": row.window,
        "resets_at": iso(row.resets_at_s),
        "burst_units": burst_units(row),
        "pace_per_s": pace_per_s(row),
        "foreign": foreign_item(row.foreign) if row.foreign else None,
        "costs": [cost_item(one) for one in judged([row])],
        **_seen(row.seen, at_s),
    }


def foreign_item(foreign: ForeignReading) -> dict[str, Any]:
    """What somebody else has spent of a quota, as JSON."""
    return {
        "units": foreign.units,
        "most_units": foreign.most,
        "ours_units": foreign.ours,
        "period_s": foreign.period_s,
        "api_limit_units": foreign.limit,
        "api_remaining_units": foreign.remaining,
        "since": iso(foreign.since_s),
        "until": iso(foreign.until_s),
        "lasting": foreign.lasting,
    }


def cost_item(cost: Judged) -> dict[str, Any]:
    """What tasks were seen to cost, as JSON."""
    return {
        "kind": "cost",
        "consumer": cost.consumer,
        "type": cost.type or None,
        "quota": cost.quota,
        "declared_units": cost.declared,
        "tasks": cost.tasks,
        "p50_units": cost.p50,
        "p95_units": cost.p95,
        "mean_units": cost.mean,
        "gave_up": cost.gave_up,
        "hosts": list(cost.hosts),
        "verdict": cost.verdict.value,
        "advised_units": cost.advised,
    }


def queue_item(row: QueueRow) -> dict[str, Any]:
    """A queue as JSON."""
    return {
        "kind": "queue",
        "queue": row.queue,
        "work": row.work,
        "ready": row.ready,
        "unacked": row.unacked,
        "in_per_s": row.in_per_s,
        "out_per_s": row.out_per_s,
        "out_estimated": row.out_estimated,
        "empty_at": iso(row.empty_at_s),
        "consumers": list(row.consumers),
        "why": row.why or None,
    }


def _seen(seen: Seen | None, at_s: float) -> dict[str, Any]:
    return {"source": seen and seen.source.value, "age_s": seen and round(max(0.0, at_s - seen.at_s), 3)}


def _order(order: Order) -> dict[str, Any]:
    found = {
        "id": order.id,
        "target": order.target,
        "by": order.by,
        "as": order.claimed_by,
        "at": iso(order.at_s),
        "reason": order.reason,
        "until": iso(order.until_s),
    }
    return {**found, "limits": list(order.rates)} if order.rates else found
