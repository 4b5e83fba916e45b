"""What the management API says, beside what is heard: the younger one counts, and nothing is lost."""

from __future__ import annotations

from qctl.ops.estimate import Estimates
from qctl.ops.found import Depth
from qctl.ops.status import ConsumerRow, HostRow, Order, QueueRow, QuotaRow, Seen, Source, State, Status
from qctl.tui import merge
from qctl.tui.snapshot import TagRow

NOW_S = 1_000.0
LIVE, OLD, LISTED = Seen(Source.LIVE, NOW_S - 1), Seen(Source.LOG, NOW_S - 60), Seen(Source.BROKER, NOW_S - 2)
PAUSE = Order("1", "web-1", "oncall")


def test_what_the_broker_counts_stands_where_nothing_is_heard() -> None:
    # given a host that is heard, one that was, and one that never was
    status = Status(
        NOW_S,
        blocked=False,
        hosts=(HostRow("live", State.HELD, seen=LIVE), HostRow("old", State.UNKNOWN, seen=OLD)),
        consumers=(ConsumerRow("old", "calls", "calls", State.UNKNOWN, pauses=(PAUSE,), costs={"api": 2}, seen=OLD),),
        quotas=(
            QuotaRow("live", "api", ("9/s",), used_units=1, seen=LIVE),
            QuotaRow("old", "api", ("9/s",), used_units=1, override=PAUSE, seen=OLD),
        ),
    )
    rows = [HostRow(name, State.CONSUMING, seen=LISTED) for name in ("live", "old", "new")]
    quotas = [QuotaRow(name, "api", ("8/s",), used_units=5, estimated=True, seen=LISTED) for name in ("live", "old")]
    consumer = ConsumerRow("old", "calls", "calls", State.CONSUMING, rate_per_s=4.0, seen=LISTED)

    merged = merge.estimated(status, Estimates(NOW_S - 2, tuple(rows), (consumer,), tuple(quotas)))

    # then only the one that is not heard is told of by the broker, and what was commanded stays
    assert [(row.host, row.state) for row in merged.hosts] == [
        ("live", State.HELD),
        ("old", State.CONSUMING),
        ("new", State.CONSUMING),
    ]
    assert [(row.used_units, row.estimated, row.override) for row in merged.quotas] == [
        (1, False, None),
        (5, True, PAUSE),
    ]
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
    page = [QueueRow("calls", ready=5, unacked=2, seen=OLD), QueueRow("other", ready=9, seen=OLD)]
    depths = {"calls": Depth(8), "mail": Depth(None, "it does not exist")}

    rows = merge.queues(page, known, only_listed=True, depths=depths, depths_at_s=NOW_S)

    assert [(row.queue, row.ready, row.unacked, row.consumers) for row in rows] == [
        ("calls", 8, None, ("web-1/calls",)),
        ("other", 9, None, ()),
    ]
    assert [row.seen for row in rows] == [Seen(Source.LIVE, NOW_S), OLD]

    # and where the list is not on screen, or there is none, those of the fleet are told of
    rows = merge.queues(page, known, only_listed=False, depths={}, depths_at_s=None)
    assert [(row.queue, row.ready) for row in rows] == [("calls", 5), ("mail", None)]
    rows = merge.queues((), known, only_listed=False, depths=depths, depths_at_s=NOW_S)
    assert [(row.queue, row.ready, row.why) for row in rows] == [("calls", 8, ""), ("mail", None, "it does not exist")]


def test_queues_of_dead_letters_are_told_of_where_they_are_there() -> None:
    names = ("calls.dead", "mail.dead", "gone.dead")
    depths = {"calls.dead": Depth(3), "mail.dead": Depth(0), "gone.dead": Depth(None, "it does not exist")}

    rows = merge.dead_queues(names, depths, NOW_S)

    assert [(row.queue, row.ready, row.work) for row in rows] == [("calls.dead", 3, False), ("mail.dead", 0, False)]
