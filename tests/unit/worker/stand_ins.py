"""A consumer of a process without a broker: what stands in place of its subscriptions and of its slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

from qctl.broker import topology
from qctl.worker.consumer import LiveConsumer
from qctl.worker.delivery import Delivery
from qctl.worker.pace import Allowance


class Place:
    """In place of a subscription: notes what is settled on it."""

    scattered = cancelling = False

    def __init__(self, queue: str = "work") -> None:
        self.queue = queue
        self.is_open = True
        self.acked: list[int] = []
        self.back: list[int] = []
        self.channel = SimpleNamespace(connection=SimpleNamespace(patience_s=20.0, silent_s=lambda: 0.0))

    def give_back(self, tags: list[int]) -> None:
        self.back += tags

    def ack(self, tags: list[int]) -> None:
        self.acked += tags


class Slots:
    """In place of the executor: whatever is handed in waits. starting: allowed, and not inside its handler yet."""

    active = waiting = paying = 0

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.starting: list[Delivery] = []

    def expire(self) -> float:
        return 0.0

    def put(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)

    def take_back(self, which: Callable[[Delivery], bool] = lambda _: True) -> list[Delivery]:
        found = [one for one in self.deliveries if which(one)]
        self.deliveries = [one for one in self.deliveries if not which(one)]
        return found

    def is_starting(self, which: Callable[[Delivery], bool]) -> bool:
        return any(map(which, self.starting))


def hearing(
    name: str,
    queues: Mapping[str, str],
    *,
    declarations: Sequence[topology.Declaration] = (),
    served: bool = True,
    concurrency: int = 1,
    allowance: Callable[[], Allowance] = Allowance,
) -> LiveConsumer:
    """A consumer of web-1 that hears what is commanded. queues: tags by queue; served: nothing is wrong with them."""
    live = LiveConsumer(
        address=f"web-1/{name}",
        host="web-1",
        queues=dict(queues),
        work_queue=next(iter(queues)),
        declarations=declarations,
        persistent=True,
        ladder_s=(1.0,),
        concurrency=concurrency,
        flush_soon=lambda: None,
        publisher=lambda: None,
        allowance=allowance,
    )
    live._deaf = False
    for keeper in live._keepers.values():
        keeper.served = served
    return live
