"""What the management API lists, read; and the question for a page of queues, put."""

from __future__ import annotations

import re

import pytest

from qctl.broker import listing
from qctl.broker.listing import ListedChannel, ListedConsumer, ManagementError, QueuesAsked, Sort

NAMES = ("timeline", "TimeLine.dead", "time-line", "web(1)", "a\nb", "x.dead", "x.dead\n", "deadx")


def matching(asked: QueuesAsked) -> list[str]:
    """The names that the pattern finds, by an engine like the broker's, which heeds no case."""
    pattern = asked.parameters().get("name", "")
    return [name for name in NAMES if re.search(pattern.replace(r"\z", r"\Z"), name, re.IGNORECASE)]


def test_a_page_is_asked_for_with_its_order_and_the_columns_that_are_shown() -> None:
    asked = QueuesAsked(page=3, sort=Sort.IN, descending=True).parameters()
    assert (asked["page"], asked["page_size"]) == ("3", "500")
    assert (asked["sort"], asked["sort_reverse"]) == ("message_stats.publish_details.rate", "true")
    assert "messages_ready" in asked["columns"]
    assert "arguments" not in asked["columns"]
    assert "name" not in asked


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (QueuesAsked(match="TIME"), ["timeline", "TimeLine.dead", "time-line"]),
        (QueuesAsked(match="e-l"), ["time-line"]),
        (QueuesAsked(match="e.l"), []),
        (QueuesAsked(match="(1"), ["web(1)"]),
        (QueuesAsked(match="a\nb"), ["a\nb"]),
        (QueuesAsked(match="time", invert=True), ["web(1)", "a\nb", "x.dead", "x.dead\n", "deadx"]),
        (QueuesAsked(ending=".dead"), ["TimeLine.dead", "x.dead"]),
        (QueuesAsked(ending=".dead", match="x"), ["x.dead"]),
        (QueuesAsked(ending=".dead", match="x", invert=True), ["TimeLine.dead"]),
    ],
)
def test_a_plain_text_is_looked_for_and_nothing_else(asked: QueuesAsked, found: list[str]) -> None:
    assert matching(asked) == found


def test_a_long_text_does_not_become_an_address_that_is_too_long() -> None:
    name = QueuesAsked(match="(" * 10_000).parameters()["name"]
    assert len(name) < 5 * listing.MAX_MATCH_CHARS


@pytest.mark.parametrize("nothing", [{}, {"message_stats": []}, {"message_stats": {"ack": "undefined"}}, {"ack": -1}])
def test_what_is_not_there_is_not_zero(nothing: dict[str, object]) -> None:
    assert listing.channel(nothing) == ListedChannel("", "", None)
    assert listing.queue({"messages_ready": "undefined", **nothing}).ready is None
    assert listing.queue(nothing).out_per_s is None
    assert listing.connection({"connected_at": [], **nothing}).opened_s is None


@pytest.mark.parametrize("value", [True, "7", 10**400, -1, 1.5, None, [], {}])
def test_what_is_no_count_is_unknown(value: object) -> None:
    assert listing.count(value) is None


def test_a_rate_beyond_all_measure_is_unknown() -> None:
    assert listing.queue({"message_stats": {"ack_details": {"rate": 10**400}}}).out_per_s is None


def test_what_leaves_a_queue_is_acknowledged_or_given_to_who_acknowledges_nothing() -> None:
    asked = listing.QUEUE_COLUMNS.split(",")
    assert {f"message_stats.{name}_details.rate" for name in ("ack", "deliver_no_ack", "get_no_ack")} < set(asked)
    assert "type" in asked
    stats = {f"{name}_details": {"rate": rate} for name, rate in {"publish": 9, "ack": 2, "deliver_no_ack": 4}.items()}
    assert listing.queue({"message_stats": stats}).out_per_s == 6.0
    stats["get_no_ack_details"] = {"rate": 1}
    found = listing.queue({"type": "classic", "message_stats": stats})
    assert (found.in_per_s, found.out_per_s) == (9.0, 7.0)

    # and readers of a stream take nothing out
    found = listing.queue({"type": "stream", "message_stats": stats})
    assert (found.in_per_s, found.out_per_s) == (9.0, None)


def test_a_subscription_names_its_channel() -> None:
    item = {"consumer_tag": "t", "queue": {"name": "q"}, "active": False, "channel_details": {"name": "c (1)"}}
    assert listing.consumer(item) == ListedConsumer("q", "t", False, "c (1)")
    assert listing.consumer({"channel_details": [], "queue": "q"}) == ListedConsumer("", "", True, "")


def test_a_list_without_end_is_an_error() -> None:
    with pytest.raises(ManagementError, match="more than 20000"):
        listing.objects([{}] * (listing.MAX_LISTED + 1))


def of_publishing(*totals: int, every_ms: int = 5_000) -> dict[str, object]:
    """A queue into which so many had come at the end of each five seconds, the newest first, as the broker tells it."""
    samples = [{"sample": total, "timestamp": number * every_ms} for number, total in enumerate(totals)]
    return {"name": "timeline", "message_stats": {"publish_details": {"rate": 0.0, "samples": samples[::-1]}}}


@pytest.mark.parametrize(
    ("totals", "lasting"),
    [
        ((0, 50, 100, 150, 200), 10.0),  # a stream
        ((0, 50, 250, 300, 350), 10.0),  # ... with a bulk in it
        ((0, 0, 2_000, 2_000, 2_000), 0.0),  # a bulk alone
        ((2_000, 2_000, 2_000, 0, 0), 0.0),  # counted anew
        ((0, 50, 100), None),  # too short a while
        ((), None),
    ],
)
def test_what_comes_in_all_the_time_is_told_from_a_bulk(totals: tuple[int, ...], lasting: float | None) -> None:
    assert listing.queue(of_publishing(*totals)).lasting_in_per_s == lasting
