"""What one consumer's runs go by, of all that the inventory says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from qctl.inventory.model import Consumer, HttpHandler, Quota
from qctl.worker.learned import Learned
from qctl.worker.outbox import Outbox

if TYPE_CHECKING:
    from qctl.worker.plan import Plan


@dataclass(frozen=True, slots=True)
class Rules:
    """What one consumer's runs go by."""

    host: str
    consumer: Consumer
    quotas: Mapping[str, Quota]
    ladder_s: tuple[float, ...]
    max_body_bytes: int
    make_outbox: Callable[[], Outbox]
    learned: Learned = field(default_factory=Learned)

    @classmethod
    def of(cls, plan: Plan, consumer: Consumer) -> Rules:
        """Those of a consumer of this host."""
        host = plan.host
        settings = plan.settings
        return cls(
            host.name, consumer, host.quotas, plan.ladder_s, settings.max_body_bytes, partial(Outbox, plan.inventory)
        )

    @property
    def address(self) -> str:
        """`HOST/CONSUMER`."""
        return f"{self.host}/{self.consumer.name}"

    @property
    def proven(self) -> bool:
        """True when qctl itself makes every call of this consumer, so that what was not metered was not used."""
        return isinstance(self.consumer.handler, HttpHandler)
