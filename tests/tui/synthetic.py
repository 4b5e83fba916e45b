"""A fleet that nobody runs: snapshots of any size, every number in them moving, and sources that show them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from qctl.errors import QctlError
from qctl.inventory.model import Broker, Consumer, Endpoint, ExecHandler, Host, Inventory, Quota, WorkerSettings
from qctl.ops.events import Happened
from qctl.ops.status import ConsumerRow, HeldBy, HostRow, Order, QueueRow, QuotaRow, Seen, Source, State, Status
from qctl.tui.snapshot import PAGE_ROWS, Focus, Health, Page, Snapshot, SourceState, TagRow, View
from qctl.units import Rate

#: So long somebody looks at one thing before it is asked for.
RESTS_S = 0.3
NOW_S = 1_795_354_200.0
QUOTAS = (("twitter", 20_000, 3_600.0), ("search", 180, 900.0))
NAMES = ("timeline", "mail", "crawl", "index", "thumbs", "billing", "export", "sync", "notify", "audit")


@dataclass(frozen=True, slots=True)
class Size:
    """How large the fleet is. consumers: on each host."""

    hosts: int = 500
    consumers: int = 10
    queues: int = 10_000


SMALL = Size(hosts=6, consumers=3, queues=12)
FULL = Size()


def inventory(size: Size = SMALL, *, environment: str = "development") -> Inventory:
    """An inventory with the hosts and consumers of that fleet."""
    quotas = {name: Quota(name, (Rate(limit, int(period_s * 1e9)),)) for name, limit, period_s in QUOTAS}
    consumers = {
        name: Consumer(name, name, ExecHandler(("true",)), {"twitter": 2, "search": 1})
        for name in NAMES[: size.consumers]
    }
    hosts = {host_name(n): Host(host_name(n), None, quotas, consumers) for n in range(size.hosts)}
    return Inventory(
        path=Path("inventory.yaml"),
        environment="production" if environment == "production" else "development",
        broker=Broker(local=False, amqp=(Endpoint("127.0.0.1", 5672, False, "/"),), username="guest"),
        operators=("oncall",),
        worker=WorkerSettings(),
        quotas=quotas,
        consumers=consumers,
        groups={},
        hosts=hosts,
    )


def host_name(number: int) -> str:
    """`web-1`, and so on."""
    return f"web-{number + 1}"


def snapshot(size: Size = SMALL, *, tick: int = 0, focus: Focus | None = None) -> Snapshot:
    """The fleet, `tick` seconds after NOW_S. The same arguments give the same snapshot."""
    now_s = NOW_S + tick
    seen = Seen(Source.LIVE, now_s - 0.4)
    hosts, consumers, quotas, tags = [], [], [], []
    for number in range(size.hosts):
        host = host_name(number)
        down = number % 97 == 5
        gone = replace(seen, at_s=NOW_S - 42) if down else seen
        rows = [_quota(host, number, at, now_s, gone) for at in range(len(QUOTAS))]
        quotas += rows
        states = []
        for at, name in enumerate(NAMES[: size.consumers]):
            row = _consumer(host, name, number, at, rows[0], down, gone, now_s)
            states.append(row.state)
            consumers.append(row)
            tags.append(_tag(row, now_s))
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        hosts.append(
            HostRow(
                host,
                states[0] if len(counts) == 1 else State.MIXED,
                counts,
                since_s=NOW_S - 42 if down else NOW_S - 3_600,
                why="silent" if down else "",
                machine=f"ip-10-0-{number // 250}-{number % 250}",
                processes=2,
                heard=0 if down else 2,
                seen=gone,
            )
        )
    queues, page = _queues(size, tick, focus or Focus(), now_s)
    dead = tuple(
        QueueRow(f"{name}.dead", work=False, ready=(at * 37) % 90, unacked=0, seen=Seen(Source.BROKER, now_s - 2))
        for at, name in enumerate(NAMES[: size.consumers])
    )
    status = Status(now_s, False, tuple(hosts), tuple(consumers), tuple(quotas), queues)
    return Snapshot(
        now_s,
        status,
        tuple(tags),
        page,
        dead,
        tuple(_event(number) for number in range(min(1_000, 4 * size.hosts))),
        (
            SourceState("broker", Health.OK, now_s),
            SourceState("workers", Health.OK, now_s - 0.4),
            SourceState("control log", Health.OK, now_s - 12),
            SourceState("management API", Health.OK, now_s - 2),
        ),
    )


def _quota(host: str, number: int, at: int, now_s: float, seen: Seen) -> QuotaRow:
    name, limit, period_s = QUOTAS[at]
    speed = limit / period_s * (0.3 + (number * 7 + at * 3) % 20 / 12)
    used = int((number * 137 % limit) + speed * (now_s - NOW_S))
    dry = used >= limit
    return QuotaRow(
        host,
        name,
        (f"{limit}/{'h' if at == 0 else '15m'}",),
        (f"{limit}/{'h' if at == 0 else '15m'}",),
        min(used, limit),
        limit,
        period_s,
        0.0 if dry else speed,
        exhausted_at_s=None if dry else now_s + (limit - used) / speed,
        returns_at_s=now_s + 417 if dry else None,
        seen=seen,
    )


def _consumer(
    host: str, name: str, number: int, at: int, quota: QuotaRow, down: bool, seen: Seen, now_s: float
) -> ConsumerRow:
    state, holds, pauses = State.CONSUMING, (), ()
    if down:
        state = State.DOWN
    elif (number * 10 + at) % 41 == 3:
        state = State.PAUSED
        pauses = (Order("0191", f"{host}/{name}", "oncall", None, NOW_S - 600, "deploy of the parser", NOW_S + 1_800),)
    elif quota.dry:
        state, holds = State.HELD, (HeldBy("quota", "quota twitter is used up", now_s + 417),)
    working = state is State.CONSUMING
    return ConsumerRow(
        host,
        name,
        name,
        state,
        why="silent" if down else "",
        since_s=NOW_S - 60 * (at + 1),
        counts={state: 2},
        pauses=pauses,
        holds=holds,
        costs={"twitter": 2},
        running=None if down else 3 if working else 0,
        waiting=None if down else 5 if working else 0,
        concurrency=8,
        rate_per_s=None if down else 4.0 + math.sin(now_s / 7 + number) if working else 0.0,
        settled=None if down else {"acked": int(now_s - NOW_S) * 4},
        seen=seen,
    )


def _tag(row: ConsumerRow, now_s: float) -> TagRow:
    return TagRow(
        f"qctl/{row.host}/{row.consumer}/0",
        row.host,
        row.consumer,
        row.queue,
        row.state,
        row.why or (row.holds[0].words if row.holds else row.pauses[0].reason or "" if row.pauses else ""),
        row.since_s,
        row.pauses[0].by if row.pauses else "",
        row.holds[0].until_s if row.holds else row.pauses[0].until_s if row.pauses else None,
        row.running,
        row.waiting,
        row.rate_per_s,
        row.seen,
    )


def _queues(size: Size, tick: int, focus: Focus, now_s: float) -> tuple[tuple[QueueRow, ...], Page]:
    match = focus.match.lower() if focus.view is View.QUEUES else ""
    names = [queue_name(n) for n in range(size.queues)]
    if match:
        names = [name for name in names if (match in name.lower()) != focus.invert]
    if focus.view is View.QUEUES and focus.descending:
        names.reverse()
    pages = max(1, math.ceil(len(names) / PAGE_ROWS))
    number = min(max(1, focus.page), pages)
    chosen = names[(number - 1) * PAGE_ROWS : number * PAGE_ROWS]
    return tuple(_queue(name, tick, now_s) for name in chosen), Page(number, pages, len(names))


def queue_name(number: int) -> str:
    """`timeline`, `timeline.shard-0001`, and so on: the consumers' own first."""
    name = NAMES[number % len(NAMES)]
    return name if number < len(NAMES) else f"{name}.shard-{number // len(NAMES):04}"


def _queue(name: str, tick: int, now_s: float) -> QueueRow:
    seed = sum(map(ord, name))
    ready = int(400 + 390 * math.sin((tick + seed) / 9)) * (seed % 23)
    return QueueRow(
        name,
        work="." not in name,
        ready=ready,
        unacked=seed % 40,
        in_per_s=float(seed % 17),
        out_per_s=float(seed % 19),
        empty_at_s=now_s + ready / (seed % 19 - seed % 17) if seed % 19 > seed % 17 else None,
        consumers=(f"web-1/{name}",) if "." not in name else (),
        seen=Seen(Source.BROKER, now_s - 2),
    )


def _event(number: int) -> Happened:
    return Happened(
        offset=number,
        id=f"0191-{number}",
        user="oncall",
        verb=("pause", "resume", "quota-set")[number % 3],
        target=f"web-{number % 7 + 1}/timeline",
        at="2026-11-22T21:00:00.123Z",
        reason="deploy of the parser",
    )


class StillSource:
    """Shows what it is given, when it is given; remembers what it was told."""

    def __init__(self, *shown: Snapshot) -> None:
        self.error: QctlError | None = None
        self.focuses: list[Focus] = []
        self.refreshed = 0
        self.stopped = False
        self._shown = shown
        self._show: Callable[[Snapshot], None] | None = None

    def start(self, show: Callable[[Snapshot], None]) -> None:
        """Begin with what was given."""
        self._show = show
        for each in self._shown:
            show(each)

    def push(self, shown: Snapshot) -> None:
        """Show this too."""
        assert self._show is not None
        self._show(shown)

    def look_at(self, focus: Focus) -> None:
        """Remember it."""
        self.focuses.append(focus)

    def refresh(self) -> None:
        """Count it."""
        self.refreshed += 1

    def stop(self) -> None:
        """Remember it."""
        self.stopped = True


class MovingSource(StillSource):
    """A fleet whose every number moves, shown each second from a thread of its own.

    Another focus is heeded as soon as it has rested for a moment, as by the source of a live console.
    """

    def __init__(self, size: Size = FULL, *, every_s: float = 1.0) -> None:
        super().__init__()
        self.made = 0
        self._size = size
        self._every_s = every_s
        self._focus = Focus()
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="synthetic", daemon=True)

    def start(self, show: Callable[[Snapshot], None]) -> None:
        """Begin."""
        self._show = show
        self._thread.start()

    def look_at(self, focus: Focus) -> None:
        """Show that page of the queues."""
        self._focus = focus
        self._asked.set()

    def refresh(self) -> None:
        """Show now."""
        super().refresh()
        self._asked.set()

    def stop(self) -> None:
        """End."""
        super().stop()
        self._asked.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self.stopped:
            self._asked.clear()
            assert self._show is not None
            self._show(snapshot(self._size, tick=self.made, focus=self._focus))
            self.made += 1
            if self._asked.wait(self._every_s):
                time.sleep(RESTS_S)
