"""The queues: how much waits in them, how fast that changes, and when they are empty. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

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
    out_per_s, estimated = flow.out_per_s, False
    if out_per_s is None:
        out_per_s, estimated = _drained(name, takers), True
    return QueueRow(
        queue=name,
        ready=depth.ready,
        unacked=flow.unacked,
        in_per_s=flow.in_per_s,
        out_per_s=out_per_s,
        out_estimated=estimated and out_per_s is not None,
        empty_at_s=empty_at_s(depth.ready, flow.in_per_s, out_per_s, found.at_s),
        consumers=tuple(row.address for row in takers),
        why=depth.why,
    )


def _drained(name: str, takers: list[ConsumerRow]) -> float | None:
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
