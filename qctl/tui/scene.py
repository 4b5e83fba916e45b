"""What a view is made from: the newest snapshot, what was before it, and the present instant. Pure.

The instant is the snapshot's own plus the time since it came, so that ages grow while nothing comes, and a recording of
last week looks as it looked then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import tzinfo
from functools import cached_property

from qctl.ops.status import ConsumerRow, QueueRow, QuotaRow
from qctl.tui.history import History
from qctl.tui.snapshot import Snapshot

#: Tasks a second below which a queue neither grows nor shrinks.
STILL_PER_S = 0.05


@dataclass(frozen=True)
class Scene:
    """A snapshot as it is looked at. width: terminal cells there are; zone: of instants, None: the machine's."""

    snapshot: Snapshot
    now_s: float
    past: History = field(default_factory=History)
    width: int = 120
    zone: tzinfo | None = None

    @cached_property
    def consumers(self) -> dict[str, list[ConsumerRow]]:
        """The consumers of each host."""
        found: dict[str, list[ConsumerRow]] = {}
        for row in self.snapshot.status.consumers:
            found.setdefault(row.host, []).append(row)
        return found

    @cached_property
    def quotas(self) -> dict[str, list[QuotaRow]]:
        """The quotas of each host."""
        found: dict[str, list[QuotaRow]] = {}
        for row in self.snapshot.status.quotas:
            found.setdefault(row.host, []).append(row)
        return found

    @cached_property
    def takers(self) -> dict[str, ConsumerRow]:
        """Every consumer by its address."""
        return {row.address: row for row in self.snapshot.status.consumers}

    @property
    def narrow(self) -> bool:
        """Whether there is no more room than an ordinary terminal has."""
        return self.width < 110

    def growth_per_s(self, row: QueueRow) -> float | None:
        """Tasks a second by which a queue grows: by its rates, else by its depth over the last minute."""
        if row.in_per_s is not None and row.out_per_s is not None and not row.out_estimated:
            return row.in_per_s - row.out_per_s
        return self.past.growth(row.queue)
