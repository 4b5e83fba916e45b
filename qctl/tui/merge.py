"""What the management API says, beside what is heard or in its place. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from qctl.ops.estimate import Estimates
from qctl.ops.found import Depth
from qctl.ops.status import QueueRow, Seen, Source, Status
from qctl.tui.snapshot import TagRow

#: What was heard is believed first, until it is so much older than what was counted.
LATER_S = 5.0


class Row(Protocol):
    """Any row that knows where it comes from."""

    @property
    def seen(self) -> Seen | None:
        """Where from, and of when."""


RowT = TypeVar("RowT", bound=Row)


def estimated(status: Status, estimates: Estimates | None) -> Status:
    """With what the broker lists and counts where nothing is heard; what was commanded is known all the same."""
    if estimates is None:
        return status
    hosts = _instead(status.hosts, {row.host: row for row in estimates.hosts}, lambda row: row.host, lambda _, new: new)
    consumers = _instead(
        status.consumers,
        {row.address: row for row in estimates.consumers},
        lambda row: row.address,
        lambda old, new: replace(new, pauses=old.pauses, costs=old.costs or new.costs),
    )
    quotas = _instead(
        status.quotas,
        {row.address: row for row in estimates.quotas},
        lambda row: row.address,
        lambda old, new: replace(new, override=old.override),
    )
    return replace(status, hosts=hosts, consumers=consumers, quotas=quotas)


def listed(tags: tuple[TagRow, ...], by_broker: Iterable[TagRow] | None) -> tuple[TagRow, ...]:
    """With the subscriptions that the broker lists where nothing is heard of them."""
    if by_broker is None:
        return tags
    return _instead(tags, {row.tag: row for row in by_broker}, lambda row: row.tag, lambda old, new: _known(new, old))


def _known(row: TagRow, before: TagRow) -> TagRow:
    return replace(row, by=row.by or before.by, queue=row.queue or before.queue)


def _instead(
    rows: Iterable[RowT], others: Mapping[str, RowT], key: Callable[[RowT], str], put: Callable[[RowT, RowT], RowT]
) -> tuple[RowT, ...]:
    found: dict[str, RowT] = {}
    for row in rows:
        other = others.get(key(row))
        found[key(row)] = put(row, other) if other is not None and _outdated(row.seen, other.seen) else row
    return (*found.values(), *(row for name, row in others.items() if name not in found))


def _outdated(seen: Seen | None, other: Seen | None) -> bool:
    return other is not None and (seen is None or other.at_s > seen.at_s + LATER_S)


def queues(
    listed: Iterable[QueueRow],
    known: Iterable[QueueRow],
    *,
    only_listed: bool,
    depths: Mapping[str, Depth],
    depths_at_s: float | None,
) -> tuple[QueueRow, ...]:
    """The queues of a snapshot. listed: by the management API; known: those of the fleet; only_listed: no others.

    A depth that the queue itself has said later than the list counts.
    """
    mine = {row.queue: row for row in known}
    found = {row.queue: _with_takers(row, mine.get(row.queue)) for row in listed if only_listed or row.queue in mine}
    rows = found.values() if only_listed else (found.get(name, row) for name, row in mine.items())
    if depths_at_s is None:
        return tuple(rows)
    seen = Seen(Source.LIVE, depths_at_s)
    return tuple(_deep(row, depths.get(row.queue), seen) for row in rows)


def _with_takers(row: QueueRow, mine: QueueRow | None) -> QueueRow:
    return row if mine is None or row.consumers == mine.consumers else replace(row, consumers=mine.consumers)


def _deep(row: QueueRow, depth: Depth | None, seen: Seen) -> QueueRow:
    if depth is None or not (row.seen is None or seen.at_s > row.seen.at_s + LATER_S):
        return row
    return replace(row, ready=depth.ready, why=depth.why, seen=seen, unacked=None if row.seen else row.unacked)


def dead_queues(names: Iterable[str], depths: Mapping[str, Depth], at_s: float | None) -> tuple[QueueRow, ...]:
    """Queues of dead letters that are there, by their own word."""
    seen = Seen(Source.LIVE, at_s) if at_s is not None else None
    return tuple(
        QueueRow(queue=name, work=False, ready=depth.ready, seen=seen)
        for name in names
        if (depth := depths.get(name)) is not None and depth.ready is not None
    )
