"""The queues: how much waits in them, how fast that changes, and when they are empty. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace

from qctl.broker import topology
from qctl.inventory.model import Consumer, Inventory
from qctl.ops.found import MAX_FORESIGHT_S, Depth, Flow, Found
from qctl.ops.status import ConsumerRow, QueueRow, State


def work_queues(inventory: Inventory, *, hosts: Iterable[str] = ()) -> tuple[str, ...]:
    """The queues that these hosts, or all, take tasks from, directed ones too, each once."""
    chosen = set(hosts) or inventory.hosts.keys()
    found: dict[str, None] = {}
    for name in inventory.hosts:
        for consumer in inventory.hosts[name].consumers.values() if name in chosen else ():
            found.update(dict.fromkeys(queues_of(name, consumer)))
    return tuple(found)


def queues_of(host: str, consumer: Consumer) -> tuple[str, ...]:
    """The queues of a consumer on a host."""
    return (consumer.queue, topology.directed_queue(consumer.queue, host))[: 1 + consumer.directed]


def rows(
    found: Found, inventory: Inventory, *, consumers: Iterable[Iterable[ConsumerRow]], chosen: Container[str]
) -> Iterator[QueueRow]:
    """The queues from which hosts of `chosen` take, and what all consumers do to them; then what else holds tasks."""
    takers: dict[str, list[ConsumerRow]] = {}
    for row in (row for host in consumers for row in host):
        for queue in _taken(inventory, row):
            takers.setdefault(queue, []).append(row)
    names = [queue for queue, its in takers.items() if any(row.host in chosen for row in its)]
    for name in names:
        yield _queue(found, name, takers[name])
    dead = {topology.dead_queue(name.partition("@")[0]) for name in names}
    for name, depth in found.depths.items():
        if name not in takers and depth.ready and (name.startswith("qctl.") or name in dead):
            yield QueueRow(queue=name, work=False, ready=depth.ready)


def _taken(inventory: Inventory, row: ConsumerRow) -> tuple[str, ...]:
    host = inventory.hosts.get(row.host)
    known = host.consumers.get(row.consumer) if host else None
    return queues_of(row.host, known) if known else (row.queue,)


def _queue(found: Found, name: str, takers: list[ConsumerRow]) -> QueueRow:
    depth = found.depths.get(name, Depth(None))
    flow = found.flows.get(name, Flow())
    row = QueueRow(
        queue=name,
        ready=depth.ready,
        unacked=flow.unacked,
        in_per_s=flow.in_per_s,
        out_per_s=flow.out_per_s,
        consumers=tuple(row.address for row in takers),
        why=depth.why,
    )
    return foretold(row, takers, found.at_s)


def foretold(row: QueueRow, takers: Sequence[ConsumerRow], at_s: float) -> QueueRow:
    """With what its consumers say: how fast tasks leave it for good, and when it is empty; `row` has what was counted.

    Tasks that come back later are no progress, though the broker counts them as done. Its counts are seconds old: where
    it has seen nothing yet, what consumers finish stands. While all who take are kept from it, there is no end.
    """
    out_per_s, estimated = row.out_per_s, False
    put_off_per_s = sum(one.put_off_per_s for one in takers)
    if not out_per_s and (drained_per_s := _drained(row.queue, takers)) is not None:
        out_per_s, estimated = max(drained_per_s, out_per_s or 0.0), row.out_per_s is None or drained_per_s > 0
    elif out_per_s and put_off_per_s:
        out_per_s, estimated = max(0.0, round(out_per_s - put_off_per_s, 3)), True
    kept = bool(takers) and all(is_kept(one) for one in takers)
    return replace(
        row,
        out_per_s=out_per_s,
        out_estimated=estimated,
        empty_at_s=None if kept else empty_at_s(row.ready, row.in_per_s, out_per_s, at_s),
    )


def corrected(
    rows: Iterable[QueueRow], consumers: Iterable[ConsumerRow], at_s: float, *, inventory: Inventory
) -> tuple[QueueRow, ...]:
    """Queues as the broker counts them; where it names an end, what their consumers say of it counts."""
    takers: dict[str, list[ConsumerRow]] = {}
    for one in consumers:
        for queue in _taken(inventory, one):
            takers.setdefault(queue, []).append(one)
    return tuple(
        foretold(row, its, at_s) if row.empty_at_s is not None and (its := takers.get(row.queue)) else row
        for row in rows
    )


def is_kept(row: ConsumerRow) -> bool:
    """Whether it is known that a consumer takes nothing at present."""
    takes = (State.CONSUMING, State.UNKNOWN)
    return row.state not in takes and not any(row.counts.get(state) for state in takes)


def _drained(name: str, takers: Sequence[ConsumerRow]) -> float | None:
    """What the consumers finish in a second; None when one is not known, or takes from another queue as well."""
    total = 0.0
    for row in takers:
        unknown = row.state is State.UNKNOWN or bool(row.counts.get(State.UNKNOWN))
        if not unknown and not row.counts.get(State.CONSUMING):
            continue  # its rate is of what ran until lately
        if unknown or row.rate_per_s is None or row.queue != name:
            return None
        total += row.rate_per_s
    return round(total, 3)


def empty_at_s(ready: int | None, in_per_s: float | None, out_per_s: float | None, now_s: float) -> float | None:
    """When a queue is empty at this rate; with in_per_s None, if nothing is added."""
    net_per_s = (out_per_s or 0.0) - (in_per_s or 0.0)
    if not ready or net_per_s <= 0 or ready / net_per_s > MAX_FORESIGHT_S:
        return None
    return now_s + ready / net_per_s
