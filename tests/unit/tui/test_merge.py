"""What the management API says, beside what is heard: the younger one counts, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace

from qctl.ops.estimate import Estimates
from qctl.ops.found import Depth
from qctl.ops.status import ConsumerRow, HostRow, Order, QueueRow, QuotaRow, Seen, Source, State, Status
from qctl.tui import merge
from qctl.tui.snapshot import TagRow

NOW_S = 1_000.0
LIVE, OLD, LISTED = Seen(Source.LIVE, NOW_S - 1), Seen(Source.LOG, NOW_S - 60), Seen(Source.BROKER, NOW_S - 2)
PAUSE = Order("1", "web-1", "oncall")
SET = Order("2", "set/api", "oncall", rates=("3/m",))
QUOTAS = ("live", "old", "set")


def test_what_the_broker_counts_stands_where_nothing_is_heard() -> None:
    # given a host that is heard, one that was, and one that never was
    status = Status(
        NOW_S,
        blocked=False,
        hosts=(HostRow("live", State.HELD, seen=LIVE), HostRow("old", State.UNKNOWN, seen=OLD)),
        consumers=(ConsumerRow("old", "calls", "calls", State.UNKNOWN, pauses=(PAUSE,), costs={"api": 2}, seen=OLD),),
        quotas=(
            QuotaRow("live", "api", ("9/s",), used_units=1, seen=LIVE),
            QuotaRow("old", "api", ("9/s",), used_units=1, seen=OLD),
            QuotaRow("set", "api", ("3/m",), ("9/s",), used_units=1, override=SET, seen=OLD),
        ),
    )
    rows = [HostRow(name, State.CONSUMING, seen=LISTED) for name in ("live", "old", "new")]
    spent = {"used_units": 5, "limit_units": 9, "period_s": 1.0, "spend_per_s": 2.0, "exhausted_at_s": NOW_S + 2}
    quotas = [QuotaRow(name, "api", ("9/s",), ("9/s",), **spent, estimated=True, seen=LISTED) for name in QUOTAS]
    consumer = ConsumerRow("old", "calls", "calls", State.CONSUMING, rate_per_s=4.0, seen=LISTED)

    merged = merge.estimated(status, Estimates(NOW_S - 2, tuple(rows), (consumer,), tuple(quotas)))

    # then only the one that is not heard is told of by the broker, and what was commanded stays
    assert [(row.host, row.state) for row in merged.hosts] == [
        ("live", State.HELD),
        ("old", State.CONSUMING),
        ("new", State.CONSUMING),
    ]
    assert [(row.used_units, row.limit_units, row.estimated) for row in merged.quotas] == [
        (1, None, False),
        (5, 9, True),
        (None, None, True),
    ]
    # of a limit that an operator set it is known what is spent, and not when it is gone
    limited = merged.quotas[-1]
    assert (limited.rates, limited.inventory_rates, limited.override) == (("3/m",), ("9/s",), SET)
    assert (limited.spend_per_s, limited.exhausted_at_s) == (2.0, None)
    [row] = merged.consumers
    assert (row.state, row.pauses, row.costs, row.rate_per_s) == (State.CONSUMING, (PAUSE,), {"api": 2}, 4.0)
    assert merge.estimated(status, None) == status


def test_subscriptions_that_are_listed_keep_who_paused_them() -> None:
    mine = TagRow("qctl/w/c/0", "w", "c", "c", State.UNKNOWN, by="oncall", seen=OLD)
    listed = [TagRow(f"qctl/w/c/{index}", "w", "c", "c", State.CONSUMING, seen=LISTED) for index in range(2)]

    rows = merge.listed((mine,), listed)

    assert [(row.tag, row.state, row.by) for row in rows] == [
        ("qctl/w/c/0", State.CONSUMING, "oncall"),
        ("qctl/w/c/1", State.CONSUMING, ""),
    ]
    assert merge.listed((mine,), None) == (mine,)


def test_a_page_of_queues_has_who_takes_from_them_and_the_younger_depth() -> None:
    # given a page of two queues, one of them the fleet's, whose depth was asked for later
    known = [QueueRow("calls", consumers=("web-1/calls",), out_per_s=3.0), QueueRow("mail")]
    page = [
        QueueRow("calls", ready=5, unacked=2, in_per_s=9.0, out_per_s=1.0, empty_at_s=7.0, seen=OLD),
        QueueRow("other", ready=9, seen=OLD),
    ]
    depths = {"calls": Depth(8), "mail": Depth(None, "it does not exist")}

    rows = merge.queues(page, known, only_listed=True, depths=depths, depths_at_s=NOW_S)

    assert [(row.queue, row.ready, row.unacked, row.consumers) for row in rows] == [
        ("calls", 8, None, ("web-1/calls",)),
        ("other", 9, None, ()),
    ]
    assert [row.seen for row in rows] == [Seen(Source.LIVE, NOW_S), OLD]
    # with what its consumers finish, and no rate that is as old as the list
    assert (rows[0].in_per_s, rows[0].out_per_s, rows[0].empty_at_s) == (None, 3.0, None)

    # and where the list is not on screen, or there is none, those of the fleet are told of
    rows = merge.queues(page, known, only_listed=False, depths={}, depths_at_s=None)
    assert [(row.queue, row.ready) for row in rows] == [("calls", 5), ("mail", None)]
    rows = merge.queues(page, known, only_listed=False, depths=depths, depths_at_s=NOW_S)
    assert [(row.queue, row.ready, row.in_per_s) for row in rows] == [("calls", 8, None), ("mail", None, None)]
    rows = merge.queues((), known, only_listed=False, depths=depths, depths_at_s=NOW_S)
    assert [(row.queue, row.ready, row.why) for row in rows] == [("calls", 8, ""), ("mail", None, "it does not exist")]


def test_queues_of_dead_letters_are_told_of_where_they_are_there() -> None:
    names = ("calls.dead", "mail.dead", "gone.dead")
    depths = {"calls.dead": Depth(3), "mail.dead": Depth(0), "gone.dead": Depth(None, "it does not exist")}

    def told(*listed: QueueRow, at_s: float | None) -> list[tuple[str, int | None]]:
        rows = merge.dead_queues(listed, at_s, names=names, depths=depths, depths_at_s=NOW_S)
        assert not any(row.work for row in rows)
        return [(row.queue, row.ready) for row in rows]

    assert told(at_s=None) == [("calls.dead", 3), ("mail.dead", 0)]
    # a list that is younger counts alone, one that is older until the queue itself has spoken, and hides no other
    listed = QueueRow("calls.dead", work=False, ready=0, seen=LISTED)
    assert told(listed, at_s=NOW_S - 2) == [("calls.dead", 0)]
    assert told(replace(listed, seen=OLD), at_s=NOW_S - 60) == [("calls.dead", 3), ("mail.dead", 0)]
    other = QueueRow("other.dead", work=False, ready=4, seen=OLD)
    assert told(other, at_s=NOW_S - 60) == [("other.dead", 4), ("calls.dead", 3), ("mail.dead", 0)]
