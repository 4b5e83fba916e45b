"""A small fleet in which something of everything is wrong, as a snapshot."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from qctl.ops.events import Happened
from qctl.ops.status import ConsumerRow, HeldBy, HostRow, Order, QueueRow, QuotaRow, Seen, Source, State, Status
from qctl.tui.snapshot import Health, Page, Snapshot, SourceState, TagRow

NOW_S = datetime(2026, 11, 22, 13, 30, tzinfo=UTC).timestamp()
LIVE = Seen(Source.LIVE, NOW_S - 0.4)
BROKER = Seen(Source.BROKER, NOW_S - 2.0)
PAUSE = Order("a1", "web-3/timeline", "oncall", "ann@laptop", NOW_S - 600, "deploy of the parser", NOW_S + 1_800)
#: What a broker could send to take over a terminal, to write markup, or to be clicked.
HOSTILE = "\x1b]0;owned\x07[bold red]x[/][@click=app.bell]y[/]\u202eevil"


def at(hour: int, minute: int, second: int = 0) -> float:
    """An instant of that day."""
    return datetime(2026, 11, 22, hour, minute, second, tzinfo=UTC).timestamp()


def consumer(host: str, name: str, state: State = State.CONSUMING, **more: Any) -> ConsumerRow:
    """One that is at work, unless said otherwise."""
    row = ConsumerRow(
        host,
        name,
        name,
        state,
        since_s=at(12, 0),
        counts={state: 1},
        costs={"twitter": 1} if name == "timeline" else {"mail": 1},
        running=3,
        waiting=1,
        concurrency=8,
        rate_per_s=4.0,
        settled={"acked": 100, "retried": 2, "deferred": 0, "dead": 1, "given_back": 0},
        seen=LIVE,
    )
    return replace(row, **more)


def quota(host: str, name: str = "twitter", used: int | None = 5_000, **more: Any) -> QuotaRow:
    """One that lasts, unless said otherwise."""
    limit, rate = (20_000, "20000/h") if name == "twitter" else (500, "500/d")
    period_s = 3_600.0 if name == "twitter" else 86_400.0
    row = QuotaRow(host, name, (rate,), (rate,), used, limit, period_s, 4.0, seen=LIVE)
    return replace(row, **more)


def host(name: str, state: State = State.CONSUMING, **more: Any) -> HostRow:
    """One whose two consumers agree, unless said otherwise."""
    row = HostRow(name, state, {state: 2}, since_s=at(12, 0), machine="m", processes=1, heard=1, seen=LIVE)
    return replace(row, **more)


HOSTS = (
    host("web-1", State.HELD, why="quota twitter", counts={State.HELD: 1}),
    host("web-2"),
    host("web-3", State.MIXED, counts={State.PAUSED: 1, State.CONSUMING: 1}),
    host(
        "web-4",
        State.DOWN,
        why="no worker of it is connected",
        since_s=NOW_S - 42,
        heard=0,
        seen=Seen(Source.LOG, NOW_S - 42),
    ),
    host("web-10", seen=Seen(Source.LIVE, NOW_S - 12)),
    host("lab-1", listed=False),
)
CONSUMERS = (
    consumer(
        "web-1",
        "timeline",
        State.HELD,
        holds=(HeldBy("quota", "quota twitter is used up", at(14, 0, 7)),),
        why="quota twitter is used up",
        running=0,
        rate_per_s=0.0,
    ),
    consumer("web-2", "timeline"),
    consumer("web-3", "timeline", State.PAUSED, pauses=(PAUSE,), why="by oncall: deploy of the parser"),
    consumer("web-3", "mail"),
    consumer("web-4", "timeline", State.DOWN, why="no worker of it is connected", running=None, rate_per_s=None),
    consumer("web-10", "timeline"),
    consumer("lab-1", "timeline"),
)
QUOTAS = (
    quota("web-1", used=20_000, returns_at_s=at(14, 0, 7)),
    quota("web-2", used=19_600, exhausted_at_s=NOW_S + 192),
    quota("web-2", "mail", 120),
    quota("web-3", used=5_000, exhausted_at_s=NOW_S + 7_200),
    quota("web-4", used=None, spend_per_s=None, limit_units=None),
    quota(
        "web-10",
        estimated=True,
        override=replace(PAUSE, target="web-10/twitter", rates=("9000/h",), reason="half speed"),
    ),
    quota("lab-1", fault="the disk is full"),
)
QUEUES = (
    QueueRow(
        "timeline", ready=7_312, unacked=40, in_per_s=20.0, out_per_s=7.6, consumers=("web-1/timeline",), seen=BROKER
    ),
    QueueRow(
        "mail",
        ready=90,
        unacked=3,
        in_per_s=1.0,
        out_per_s=4.0,
        empty_at_s=NOW_S + 30,
        consumers=("web-3/mail",),
        seen=BROKER,
    ),
    QueueRow("idle", ready=0, unacked=0, in_per_s=0.0, out_per_s=0.0, consumers=("web-2/idle",), seen=BROKER),
    QueueRow("unknown", why="no right to see it"),
)
TAGS = tuple(
    TagRow(
        f"qctl/{row.address}/0",
        row.host,
        row.consumer,
        row.queue,
        row.state,
        row.why,
        row.since_s,
        "oncall" if row.pauses else "",
        row.holds[0].until_s if row.holds else None,
        row.running,
        row.waiting,
        row.rate_per_s,
        row.seen,
    )
    for row in CONSUMERS
)
EVENTS = (
    Happened(
        7, "a1", "oncall", "pause", "web-3/timeline", (), "2026-11-22T13:20:00.000Z", "ann@laptop", "deploy", at(14, 0)
    ),
    Happened(9, "a2", "guest", "resume", "*", at="2026-11-22T13:21:00.000Z", ignored="guest is no operator"),
)
SOURCES = (
    SourceState("broker", Health.OK, NOW_S),
    SourceState("workers", Health.OK, NOW_S - 0.4),
    SourceState("control log", Health.OK, NOW_S - 1),
    SourceState("management API", Health.FAILED, NOW_S - 34, "it answers 401: set $QCTL_PASSWORD for guest"),
)


def troubled(**more: Any) -> Snapshot:
    """All of it; more: fields of the snapshot that are otherwise."""
    status = Status(NOW_S, False, HOSTS, CONSUMERS, QUOTAS, QUEUES)
    dead = (QueueRow("timeline.dead", work=False, ready=17, seen=BROKER), QueueRow("mail.dead", work=False, ready=0))
    shown = Snapshot(NOW_S, status, TAGS, Page(1, 1, len(QUEUES)), dead, EVENTS, SOURCES)
    return replace(shown, **more)


def hostile() -> Snapshot:
    """Everything that a broker names is written by somebody with bad intentions."""
    return Snapshot(
        NOW_S,
        Status(
            NOW_S,
            False,
            (host(HOSTILE, State.DOWN, why=HOSTILE, listed=False, machine=HOSTILE),),
            (
                consumer(
                    HOSTILE, HOSTILE, State.PAUSED, pauses=(replace(PAUSE, by=HOSTILE, reason=HOSTILE),), why=HOSTILE
                ),
            ),
            (quota(HOSTILE, HOSTILE, override=replace(PAUSE, by=HOSTILE, reason=HOSTILE), fault=HOSTILE),),
            (
                QueueRow(HOSTILE, ready=5, in_per_s=9.0, out_per_s=1.0, consumers=(HOSTILE,), why=HOSTILE),
                QueueRow("n" * 10_000),
            ),
        ),
        (TagRow(HOSTILE, HOSTILE, HOSTILE, HOSTILE, State.PAUSED, HOSTILE, by=HOSTILE),),
        Page(1, 1, 2),
        (QueueRow(f"{HOSTILE}.dead", work=False, ready=3),),
        (Happened(1, HOSTILE, HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), HOSTILE, HOSTILE, HOSTILE, ignored=HOSTILE),),
        (SourceState(HOSTILE, Health.FAILED, NOW_S - 3, HOSTILE),),
    )
