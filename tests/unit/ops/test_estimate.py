"""What a fleet spends by the broker's counters alone: given lists, one after the other, each at its moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qctl.broker.listing import ListedChannel, ListedConnection, ListedConsumer
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops import estimate
from qctl.ops.estimate import Counted, Estimates, Tally
from qctl.ops.status import QuotaRow, Seen, Source, State

NOW_S = 1_800_000_000.0


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    """Two hosts, two consumers of one quota with two limits, at 2 and 5 units a task."""
    consumer = {"handler": {"exec": ["true"]}}
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:5672/", "username": "guest"},
        "quotas": {"twitter": ["100/m", "2000/h"]},
        "consumers": {
            "timeline": {**consumer, "quota": {"twitter": 2}},
            "mail": {**consumer, "quota": {"twitter": 5}, "directed": True},
        },
        "hosts": {"web-1": {}, "web-2": {"consumers": {"timeline": {}}}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


def connection(host: str = "web-1", opened_s: float | None = NOW_S - 600) -> ListedConnection:
    return ListedConnection(f"qctl {host}/0 consuming", "/", host, f"{host}:1", opened_s)


def consumer(tag: str, number: int = 1) -> ListedConsumer:
    host = tag.split("/")[1] if "/" in tag else "x"
    return ListedConsumer("q", tag, True, f"{host}:1 ({number})")


def channel(acked: int | None, host: str = "web-1", number: int = 1) -> ListedChannel:
    return ListedChannel(f"{host}:1 ({number})", f"{host}:1", acked)


def counted(inventory: Inventory, *, opened_s: float | None = NOW_S - 600) -> Counted:
    """web-1 is connected and takes timeline and mail; web-2 is not there."""
    found = Counted(inventory)
    found.connections([connection(opened_s=opened_s), ListedConnection("shop", "/", "", "shop:1")], NOW_S)
    tags = [
        consumer("qctl/web-1/timeline/0"),
        consumer("qctl/web-1/mail/0", 2),
        consumer("qctl/web-1/mail/0/directed", 3),
    ]
    found.consumers([*tags, ListedConsumer("q", "ctag1.0", True, "shop:1 (1)")], NOW_S)
    return found


def estimated(found: Counted, at_s: float) -> Estimates:
    estimates = found.estimates(at_s)
    assert estimates is not None
    return estimates


def quota(found: Counted, at_s: float, host: str = "web-1") -> QuotaRow:
    return next(row for row in estimated(found, at_s).quotas if row.host == host)


def test_acknowledgements_are_tasks_that_cost_what_their_consumer_declares(inventory: Inventory) -> None:
    # given 10 tasks of timeline a second for 20 s, and 1 of mail on each of its two queues
    found = counted(inventory)
    found.channels([channel(1_000), channel(50, number=2), channel(70, number=3)], NOW_S)
    at_s = NOW_S + 20
    found.channels([channel(1_200), channel(70, number=2), channel(90, number=3)], at_s)

    # then the burn is of the limit that is nearest to its end, and marked as what it is
    row = quota(found, at_s)
    assert row.estimated
    assert row.spend_per_s == pytest.approx(10 * 2 + 2 * 5)
    assert row.seen == Seen(Source.BROKER, at_s)
    assert row.rates == ("100/m", "2000/h")
    # in the minute before it was looked, as much as was usual in the connection's ten minutes
    usual_per_s = (1_000 * 2 + 120 * 5) / 600
    assert (row.limit_units, row.period_s) == (100, 60.0)
    assert row.used_units == round(20 * 30 + 40 * usual_per_s)


def test_a_limit_that_does_not_last_has_an_end(inventory: Inventory) -> None:
    # given 3 units a second, of 100 a minute, for ten seconds
    found = counted(inventory, opened_s=NOW_S - 1)
    for second in range(0, 11, 5):
        found.channels([channel(3 * second // 2)], NOW_S + second)
    row = quota(found, NOW_S + 10)
    assert row.exhausted_at_s is not None
    assert row.used_units is not None
    assert row.spend_per_s
    assert row.exhausted_at_s == pytest.approx(NOW_S + 10 + (100 - row.used_units) / row.spend_per_s, abs=1)
    # and one that lasts has none
    for second in range(70, 200, 10):
        found.channels([channel(15)], NOW_S + second)
    assert quota(found, NOW_S + 190).exhausted_at_s is None


def test_where_nothing_says_what_was_before_only_what_is_seen_counts(inventory: Inventory) -> None:
    found = counted(inventory, opened_s=None)
    found.channels([channel(1_000)], NOW_S)
    assert quota(found, NOW_S).used_units == 0
    found.channels([channel(1_010)], NOW_S + 5)
    assert quota(found, NOW_S + 5).used_units == 20


def test_what_is_never_counted_is_unknown_and_not_zero(inventory: Inventory) -> None:
    # given channels on which the broker has not counted, or is told not to
    found = counted(inventory)
    assert quota(found, NOW_S).used_units is None
    found.channels([channel(None)], NOW_S)
    row = quota(found, NOW_S)
    assert (row.used_units, row.spend_per_s, row.limit_units) == (None, None, None)
    assert row.rates == ("100/m", "2000/h")
    assert row.estimated


def test_a_channel_that_is_new_under_an_old_name_counts_from_zero(inventory: Inventory) -> None:
    found = counted(inventory, opened_s=NOW_S)
    found.channels([channel(0)], NOW_S + 1)
    found.channels([channel(20)], NOW_S + 5)
    found.channels([channel(7)], NOW_S + 10)
    assert quota(found, NOW_S + 10).used_units == 2 * 27


def test_a_host_that_connects_again_keeps_what_it_has_spent(inventory: Inventory) -> None:
    # given 20 tasks on a connection that is lost, and 3 on the next
    found = counted(inventory, opened_s=NOW_S)
    found.channels([channel(20)], NOW_S + 5)
    found.channels([], NOW_S + 10)
    again = ListedConnection("qctl web-1/0 consuming", "/", "web-1", "again:1", NOW_S + 12)
    found.connections([again], NOW_S + 15)
    found.consumers([ListedConsumer("q", "qctl/web-1/timeline/0", True, "again:1 (1)")], NOW_S + 16)
    found.channels([ListedChannel("again:1 (1)", "again:1", 3)], NOW_S + 20)
    assert quota(found, NOW_S + 20).used_units == 2 * 23


def test_nobody_is_counted_under_a_host_that_its_connection_does_not_name(inventory: Inventory) -> None:
    # given a client that calls its subscription after web-2, over a connection of web-1
    found = counted(inventory)
    found.consumers([ListedConsumer("q", "qctl/web-2/timeline/0", True, "web-1:1 (1)")], NOW_S)
    found.channels([channel(1_000)], NOW_S)
    assert quota(found, NOW_S, "web-2").used_units is None


def test_a_consumer_that_is_off_is_counted_to_its_last_task(inventory: Inventory) -> None:
    # given a subscription that has gone, and two tasks that still ran
    found = counted(inventory, opened_s=NOW_S)
    found.channels([channel(10)], NOW_S + 5)
    found.consumers([], NOW_S + 6)
    found.channels([channel(12)], NOW_S + 10)
    assert quota(found, NOW_S + 10).used_units == 2 * 12
    # and its channel is nobody's when it is gone as well
    found.channels([], NOW_S + 15)
    found.consumers([], NOW_S + 16)
    assert found._takers == {}


def test_what_was_long_counted_and_is_first_seen_now_did_not_come_about_now(inventory: Inventory) -> None:
    # given a second process of as long a life, whose subscription was listed late
    found = counted(inventory, opened_s=NOW_S - 600)
    found.channels([channel(10), channel(5_000, number=9)], NOW_S)
    found.consumers([consumer("qctl/web-1/timeline/0"), consumer("qctl/web-1/timeline/1", 9)], NOW_S + 1)
    found.channels([channel(10), channel(5_000, number=9)], NOW_S + 5)
    found.channels([channel(10), channel(5_003, number=9)], NOW_S + 10)
    row = quota(found, NOW_S + 10)
    assert row.used_units is not None
    assert row.used_units <= 2 * 13


def test_who_has_just_come_is_there_by_its_subscription(inventory: Inventory) -> None:
    # given a connection that was not there when connections were listed, a moment before
    found = Counted(inventory)
    found.connections([], NOW_S)
    found.consumers([consumer("qctl/web-1/timeline/0")], NOW_S + 1)
    states = {row.address: row.state for row in estimated(found, NOW_S + 1).consumers}
    assert states["web-1/timeline"] is State.CONSUMING


def test_what_is_listed_consumes_and_who_is_gone_is_down(inventory: Inventory) -> None:
    # given web-1, of whose consumers only one is subscribed, and web-2, which is not connected
    found = counted(inventory)
    found.consumers([consumer("qctl/web-1/timeline/0")], NOW_S)
    estimates = estimated(found, NOW_S)
    states = {row.address: (row.state, row.why) for row in estimates.consumers}
    assert states["web-1/timeline"] == (State.CONSUMING, "")
    assert states["web-1/mail"] == (State.UNKNOWN, "it is not subscribed: paused, held or ended")
    assert states["web-2/timeline"] == (State.DOWN, "the broker lists no connection of its host")
    assert [(row.host, row.state) for row in estimates.hosts] == [("web-1", State.MIXED), ("web-2", State.DOWN)]

    # when the connection of web-1 has no channel any more
    found.channels([], NOW_S + 5)

    # then it is gone too, at once
    gone = estimated(found, NOW_S + 5)
    assert {row.state for row in gone.hosts} == {State.DOWN}


def test_nothing_follows_from_a_gap_in_a_part_of_the_list(inventory: Inventory) -> None:
    found = Counted(inventory)
    found.sees_all = False
    found.connections([], NOW_S)
    found.consumers([], NOW_S + 1)
    assert {row.state for row in estimated(found, NOW_S + 1).hosts} == {State.UNKNOWN}


def test_nothing_is_said_before_the_lists_are_there(inventory: Inventory) -> None:
    found = Counted(inventory)
    found.consumers([], NOW_S)
    assert found.estimates(NOW_S) is None
    assert not found.complete


def test_hosts_that_the_inventory_does_not_have_are_shown_but_not_without_end(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "MAX_STRANGERS", 2)
    found = Counted(inventory)
    found.connections([connection(f"old-{number}") for number in range(5)], NOW_S)
    found.consumers([consumer("qctl/old-1/mail/0")], NOW_S)
    estimates = estimated(found, NOW_S)
    assert [(row.host, row.state) for row in estimates.hosts if not row.listed] == [
        ("old-0", State.UNKNOWN),
        ("old-1", State.CONSUMING),
    ]
    # and nothing is kept of what they do, since nobody knows what it costs
    found.channels([channel(7, "old-1")], NOW_S + 5)
    assert found._tallies == {}


def test_a_tally_forgets_moments_and_not_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    # given as many tasks each second, for longer than is remembered moment by moment
    tally = Tally(0.0)
    for second in range(1, 10_001):
        tally.add(float(second), 3)
    assert tally.since(-5.0) == 30_000
    assert tally.since(9_990.0) == pytest.approx(30)
    assert tally.since(5_000.0) == pytest.approx(15_000)
    assert tally.since(10_000.0) == 0
    assert tally.per_s(10_000.0) == pytest.approx(3)
    assert len(tally._at_s) <= estimate.MAX_MOMENTS


def test_one_count_alone_is_no_rate() -> None:
    assert Tally(1.0).per_s(5.0) is None


def test_a_host_that_is_gone_spends_nothing_any_more(inventory: Inventory) -> None:
    # given 10 tasks a second, until its connection is lost
    found = counted(inventory, opened_s=NOW_S)
    for second in range(5, 45, 5):
        found.channels([channel(10 * second)], NOW_S + second)
    assert quota(found, NOW_S + 40).spend_per_s == pytest.approx(20)

    # then it spends less and less, and nothing after a while, nor does its quota run out
    found.channels([], NOW_S + 50)
    assert quota(found, NOW_S + 50).spend_per_s == pytest.approx(10)
    found.channels([], NOW_S + 1_840)
    row = quota(found, NOW_S + 1_840)
    assert (row.spend_per_s, row.exhausted_at_s) == (0.0, None)
