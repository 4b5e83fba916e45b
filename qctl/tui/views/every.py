"""The table of views: what lists each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qctl.tui.scene import Scene
from qctl.tui.snapshot import View
from qctl.tui.views import consumers, dead, events, hosts, queues, quotas
from qctl.tui.views.listing import Listing

LISTINGS: Mapping[View, Callable[[Scene], Listing[Any]]] = {
    View.HOSTS: hosts.listing,
    View.QUEUES: queues.listing,
    View.CONSUMERS: consumers.listing,
    View.QUOTAS: quotas.listing,
    View.DEAD: dead.listing,
    View.EVENTS: events.listing,
}
