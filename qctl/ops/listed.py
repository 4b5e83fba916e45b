"""Queues as the management API lists them, put as rows. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from qctl.broker.listing import QueueLook
from qctl.inventory.model import Inventory
from qctl.ops.backlog import empty_at_s, queues_of
from qctl.ops.status import QueueRow, Seen, Source


def takers(inventory: Inventory) -> Mapping[str, tuple[str, ...]]:
    """Of each work queue, directed ones too, who takes from it: `HOST/CONSUMER`."""
    found: dict[str, list[str]] = {}
    for host in inventory.hosts.values():
        for consumer in host.consumers.values():
            for queue in queues_of(host.name, consumer):
                found.setdefault(queue, []).append(f"{host.name}/{consumer.name}")
    return {queue: tuple(its) for queue, its in found.items()}


def queue_row(look: QueueLook, taken: Mapping[str, tuple[str, ...]], at_s: float) -> QueueRow:
    """A queue as it was listed at `at_s`; taken: as `takers` gives it.

    Where nobody is subscribed it does not get empty, whatever left it in the seconds before.
    """
    empties_at_s = empty_at_s(look.ready, look.in_per_s, look.out_per_s, at_s) if look.consumers != 0 else None
    return QueueRow(
        queue=look.name,
        work=look.name in taken,
        ready=look.ready,
        unacked=look.unacked,
        in_per_s=look.in_per_s,
        out_per_s=look.out_per_s,
        empty_at_s=empties_at_s,
        consumers=taken.get(look.name, ()),
        why="" if look.ready is not None else "the broker does not say how much is in it",
        seen=Seen(Source.BROKER, at_s),
    )
