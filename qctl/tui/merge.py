"""What the management API says, beside what is heard or in its place. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from qctl.ops.estimate import Estimates
from qctl.ops.found import Depth
from qctl.ops.status import QueueRow, QuotaRow, Seen, Source, Status
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
        _limited,
    )
    return replace(status, hosts=hosts, consumers=consumers, quotas=quotas)


def _limited(old: QuotaRow, new: QuotaRow) -> QuotaRow:
    """What is spent is known, but not of which limit where an operator has set another than the inventory's."""
    if old.override is None:
        return new
    return replace(
        new,
        rates=old.rates,
        override=old.override,
        used_units=None,
        limit_units=None,
        period_s=None,
        exhausted_at_s=None,
    )


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

    Where the queue itself has said its depth later than the list, that counts, and no rate that is as old as the list.
    """
    mine = {row.queue: row for row in known}
    page = {row.queue: row for row in listed}
    seen = Seen(Source.LIVE, depths_at_s) if depths_at_s is not None else None
    return tuple(
        _newest(page.get(name), mine.get(name), depths.get(name), seen) for name in (page if only_listed else mine)
    )


def _newest(listed: QueueRow | None, mine: QueueRow | None, depth: Depth | None, seen: Seen | None) -> QueueRow:
    """A queue by the list, or by its own word. One of `listed` and `mine` is there."""
    if listed is None or (depth is not None and _outdated(listed.seen, seen)):
        row = mine or (listed and QueueRow(listed.queue, work=listed.work, consumers=listed.consumers))
        assert row is not None
        return row if depth is None else replace(row, ready=depth.ready, why=depth.why, seen=seen)
    return listed if mine is None or listed.consumers == mine.consumers else replace(listed, consumers=mine.consumers)


def dead_queues(
    listed: Iterable[QueueRow],
    listed_at_s: float | None,
    *,
    names: Iterable[str],
    depths: Mapping[str, Depth],
    depths_at_s: float | None,
) -> tuple[QueueRow, ...]:
    """Queues of dead letters: as they are listed, until they have been asked later themselves; all of them then."""
    seen = Seen(Source.LIVE, depths_at_s) if depths_at_s is not None else None
    rows = {row.queue: _newest(row, None, depths.get(row.queue), seen) for row in listed}
    if listed_at_s is None or (depths_at_s is not None and depths_at_s > listed_at_s + LATER_S):
        for name in names:
            if name not in rows and (depth := depths.get(name)) is not None and depth.ready is not None:
                rows[name] = QueueRow(queue=name, work=False, ready=depth.ready, seen=seen)
    return tuple(rows.values())
