"""One picture of the fleet from all that was heard of it: live readings, the log of readings, supervisors, the control
log, the broker's queues. Pure; `sources` listens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qctl.control.reading import HostReading
from qctl.inventory.model import Inventory
from qctl.ops import backlog
from qctl.ops.found import Found, Heard
from qctl.ops.host_view import HostView, Pauses
from qctl.ops.status import Status

#: A host that my inventory does not have and that is silent is shown for so long.
STRANGER_S = 900.0


@dataclass(frozen=True, slots=True)
class Picture:
    """The rows, and the hosts they are about, each as it was looked at."""

    status: Status
    hosts: tuple[HostView, ...]


def picture(found: Found, inventory: Inventory, *, hosts: Iterable[str] = ()) -> Status:
    """What all that means; of these hosts only, or of all."""
    return picture_of(found, inventory, hosts=hosts).status


def picture_of(found: Found, inventory: Inventory, *, hosts: Iterable[str] = ()) -> Picture:
    """The same, with what it was made from."""
    listed = dict.fromkeys(inventory.hosts)
    live: dict[str, list[Heard]] = {}
    for heard in found.live:
        live.setdefault(heard.reading.host, []).append(heard)
    names = [*listed, *_strangers(found, listed)]
    pauses = Pauses(found.desired.pauses if found.desired else ())
    views = [HostView(found, name, inventory.hosts.get(name), live.get(name, []), pauses) for name in names]
    chosen = set(hosts) or {view.name for view in views}
    consumers = {view: tuple(view.consumers()) for view in views}
    mine = tuple(view for view in views if view.name in chosen)
    status = Status(
        at_s=found.at_s,
        blocked=found.blocked,
        hosts=tuple(view.row(consumers[view]) for view in mine),
        consumers=tuple(row for view in mine for row in consumers[view]),
        quotas=tuple(row for view in mine for row in view.quotas(consumers[view])),
        queues=tuple(backlog.rows(found, inventory, consumers=consumers.values(), chosen=chosen)),
        notes=found.notes,
    )
    return Picture(status, mine)


def _strangers(found: Found, listed: Mapping[str, None]) -> list[str]:
    """Hosts on the wire that the inventory does not have."""
    live = {heard.reading.host for heard in found.live}
    recent = {
        name
        for name, last in found.last.items()
        if isinstance(last, HostReading) and found.at_s - last.at_s < STRANGER_S
    }
    return sorted((live | recent | set(found.known)) - listed.keys())
