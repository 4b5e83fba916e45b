"""The causal chain in words: one test a cause, from built values; no broker, no clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from qctl.control.quota_reading import CostReading, ForeignReading
from qctl.ops import why
from qctl.ops.status import (
    ConsumerRow,
    HeldBy,
    HostRow,
    Order,
    QueueRow,
    QuotaRow,
    Seen,
    Source,
    State,
    Status,
)

NOW_S = datetime(2026, 11, 22, 13, 30, tzinfo=UTC).timestamp()


def at(hour: int, minute: int, second: int = 0) -> float:
    """An instant of that day."""
    return datetime(2026, 11, 22, hour, minute, second, tzinfo=UTC).timestamp()


LIVE = Seen(Source.LIVE, NOW_S)
SPENT = QuotaRow(
    host="web-1",
    quota="twitter",
    rates=("20000/h",),
    inventory_rates=("20000/h",),
    used_units=20_000,
    limit_units=20_000,
    period_s=3600.0,
    returns_at_s=at(14, 0, 7),
    seen=LIVE,
)
HELD = ConsumerRow(
    host="web-1",
    consumer="timeline",
    queue="timeline",
    state=State.HELD,
    since_s=at(13, 12, 4),
    counts={State.HELD: 1},
    holds=(HeldBy("quota", "quota twitter", at(14, 0, 7)),),
    costs={"twitter": 1},
    seen=LIVE,
)
QUEUE = QueueRow(queue="timeline", ready=8_520, in_per_s=0.0, out_per_s=2.0, empty_at_s=at(14, 41))
PAUSE = Order("a1", "web-1/timeline", "oncall", "ann@laptop", at(13, 10), "API is down", at(15, 0))


def other(host: str, state: State, **more: Any) -> ConsumerRow:
    """The same consumer on another host."""
    return replace(HELD, host=host, state=state, counts={}, holds=(), since_s=None, **more)


def told(row: ConsumerRow, *others: ConsumerRow, **status: Any) -> list[str]:
    """The sentences about `row`."""
    found = Status(
        at_s=NOW_S,
        blocked=False,
        **{"consumers": (row, *others), "quotas": (SPENT,), "queues": (QUEUE,), **status},
    )
    return [fact.sentence for fact in why.consumer(found, row, zone=UTC)]


def test_the_whole_chain_of_a_quota_that_is_spent() -> None:
    # given web-1 held for its quota, two others that consume, one that is down
    others = (
        other("web-2", State.CONSUMING),
        other("web-3", State.CONSUMING),
        replace(other("web-4", State.DOWN), since_s=at(13, 12)),
    )

    # then cause after cause is told, in order
    assert told(HELD, *others) == [
        "web-1/timeline is held since 13:12:04 UTC",
        "not paused",
        "quota twitter: 20000/20000 used, first units return at 14:00:07 UTC",
        "two other hosts are consuming (web-2, web-3), web-4 is down since 13:12:00 UTC",
        "8520 tasks are ready in queue timeline; it will be empty at 14:41:00 UTC at this rate",
    ]


def test_who_paused_it_when_why_and_until_when() -> None:
    row = replace(HELD, state=State.PAUSED, holds=(), pauses=(PAUSE,), counts={State.PAUSED: 1})

    assert told(row)[1] == (
        "paused by oncall (says it is ann@laptop) at 13:10:00 UTC, until 15:00:00 UTC: API is down; "
        "it names web-1/timeline"
    )
    assert "not paused" not in told(row)


def test_every_pause_is_told_and_what_it_names() -> None:
    second = replace(PAUSE, id="a2", by="deploy", claimed_by=None, until_s=None, reason=None, target="*/timeline")
    row = replace(HELD, state=State.PAUSED, pauses=(PAUSE, second))

    assert "paused by deploy at 13:10:00 UTC; it names */timeline" in told(row)


def test_equal_pauses_are_told_once_with_how_often() -> None:
    # given the same pause twice, and one for another reason
    again = replace(PAUSE, id="a2", at_s=at(13, 11))
    row = replace(HELD, state=State.PAUSED, pauses=(PAUSE, again, replace(PAUSE, id="a3", reason="also slow")))

    first, second = (one for one in told(row) if one.startswith("paused by"))
    assert first.endswith("at 13:10:00 UTC, until 15:00:00 UTC: API is down; it names web-1/timeline (2 times)")
    assert second.endswith("also slow; it names web-1/timeline")


def test_of_what_is_silent_in_part_nobody_says_that_it_obeys() -> None:
    row = replace(HELD, state=State.UNKNOWN, why="1 of its 2 processes is connected and silent", pauses=(PAUSE,))

    sentences = told(row)
    assert sentences[0].startswith("it is not known what web-1/timeline does: 1 of its 2 processes is connected and")
    assert sentences[1].startswith("paused (whether all of it obeys is not known) by oncall")


def test_above_a_lowered_limit_it_is_told_when_a_unit_may_be_used_again() -> None:
    over = replace(SPENT, used_units=12_419, limit_units=5)

    assert "quota twitter: 12419/5 used, a unit may be used again at 14:00:07 UTC" in told(HELD, quotas=(over,))


def test_a_pause_and_a_hold_are_both_told() -> None:
    row = replace(HELD, state=State.PAUSED, pauses=(PAUSE,))

    sentences = told(row)
    assert any(one.startswith("paused by oncall") for one in sentences)
    assert "quota twitter: 20000/20000 used, first units return at 14:00:07 UTC" in sentences


def test_a_worker_that_is_down_with_its_cause_and_the_pause_that_waits_for_it() -> None:
    row = replace(HELD, state=State.DOWN, why="its worker has ended", holds=(), pauses=(PAUSE,))

    sentences = told(row)
    assert sentences[0] == "web-1/timeline is down since 13:12:04 UTC: its worker has ended"
    assert sentences[1].startswith("paused (obeyed when it starts) by oncall")
    assert "not paused" not in sentences
    assert told(replace(row, pauses=()))[1] == "not paused"


@pytest.mark.parametrize(
    ("cause", "words", "means"),
    [
        ("upstream refuses", "upstream refuses: 401 of https://api", "finds out whether it serves again"),
        ("upstream down", "upstream down: ten 5xx in a row", "finds out whether it serves again"),
        ("broker takes no retries", "broker takes no retries", "could not go back"),
        ("tasks cannot be forwarded", "tasks cannot be forwarded: ValueError", "tried again"),
        ("ledger", "ledger", "ledger can be written again"),
        ("something new", "of a later version", "of a later version"),
    ],
)
def test_every_other_cause_of_a_hold_is_told_in_its_words_and_what_it_means(cause: str, words: str, means: str) -> None:
    row = replace(HELD, holds=(HeldBy(cause, words),))

    [sentence] = [one for one in told(row) if one.startswith("held: ")]
    assert words in sentence
    assert means in sentence


def test_a_quota_that_is_not_spent_does_not_hide_what_its_hold_says() -> None:
    # given too little for the next task, but not nothing
    row = replace(HELD, holds=(HeldBy("quota", "quota twitter", at(14, 0, 7)),))
    nearly = replace(SPENT, used_units=19_998)

    assert "held: quota twitter, until about 14:00:07 UTC" in told(row, quotas=(nearly,))


def test_an_upstream_that_said_429() -> None:
    blocked = replace(SPENT, used_units=12, blocked_until_s=at(13, 45))

    sentence = "quota twitter: 12/20000 used; the upstream allows no calls until 13:45:00 UTC"
    assert sentence in told(HELD, quotas=(blocked,))


def test_a_quota_that_lasts_and_one_that_is_used_up_soon() -> None:
    row = replace(HELD, state=State.CONSUMING, holds=())
    lasts = replace(SPENT, used_units=100)

    assert "quota twitter: 100/20000 used" in told(row, quotas=(lasts,))
    assert "quota twitter: 100/20000 used, used up at about 13:50:00 UTC at this rate" in told(
        row, quotas=(replace(lasts, exhausted_at_s=at(13, 50)),)
    )


def test_what_is_not_known_of_a_quota_is_not_called_nothing() -> None:
    unknown = replace(SPENT, used_units=None, limit_units=None)

    assert "it is not known how much of quota twitter (20000/h) is used" in told(HELD, quotas=(unknown,))


def test_an_override_says_who_changed_what_and_why() -> None:
    override = Order("b2", "web-1/twitter", "oncall", None, at(13, 0), "told to be gentle", None, ("100/h",))
    lowered = replace(SPENT, rates=("100/h",), used_units=5_000, limit_units=100, override=override)

    sentence = "quota twitter is 100/h instead of 20000/h, set by oncall at 13:00:00 UTC: told to be gentle"
    assert sentence in told(HELD, quotas=(lowered,))


def test_a_ledger_at_fault() -> None:
    assert any("disk full" in one for one in told(HELD, quotas=(replace(SPENT, fault="disk full"),)))


def test_draining() -> None:
    row = replace(HELD, state=State.DRAINING, holds=())

    assert told(row)[0] == "web-1/timeline is draining since 13:12:04 UTC"


def test_silence_of_a_blocked_broker_is_not_taken_for_a_death() -> None:
    row = replace(HELD, state=State.UNKNOWN, why="broker blocked", holds=(), counts={}, seen=None, since_s=None)

    sentences = told(row)
    assert sentences[0] == "it is not known what web-1/timeline does: broker blocked"
    assert not any("down" in one for one in sentences)


def test_processes_that_do_not_agree_and_one_that_is_silent() -> None:
    row = replace(HELD, counts={State.HELD: 1, State.CONSUMING: 2})
    host = HostRow("web-1", State.HELD, processes=4, heard=3, seen=LIVE)

    sentences = told(row, hosts=(host,))
    assert "its processes do not agree: 1 held, 2 consuming" in sentences
    assert "only 3 of 4 processes of web-1 were heard" in sentences


def test_nobody_else_takes_its_tasks() -> None:
    assert "no other host consumes timeline" in told(HELD)
    assert "no other hosts are consuming, one other host is paused (web-2)" in told(HELD, other("web-2", State.PAUSED))


def test_nothing_is_queued() -> None:
    assert "nothing waits in queue timeline" in told(HELD, queues=(replace(QUEUE, ready=0, empty_at_s=None),))


@pytest.mark.parametrize(
    ("queue", "sentence"),
    [
        (
            replace(QUEUE, ready=1, in_per_s=None),
            "1 task is ready in queue timeline; it will be empty at 14:41:00 UTC at this rate if nothing is added",
        ),
        (
            replace(QUEUE, in_per_s=5.0, empty_at_s=None),
            "8520 tasks are ready in queue timeline; 5.0/s come and 2.0/s go: it does not get empty at this rate",
        ),
        (
            replace(QUEUE, out_per_s=0.0, empty_at_s=None),
            "8520 tasks are ready in queue timeline; nothing is taken out at present",
        ),
        (
            replace(QUEUE, out_per_s=None, empty_at_s=None),
            "8520 tasks are ready in queue timeline; nobody says at which rate they are taken",
        ),
        (
            replace(QUEUE, ready=None, empty_at_s=None, why="it does not exist"),
            "it is not known how many tasks are ready in queue timeline: it does not exist",
        ),
    ],
)
def test_what_becomes_of_the_queue(queue: QueueRow, sentence: str) -> None:
    assert sentence in told(HELD, other("web-2", State.CONSUMING), queues=(queue,))


def test_while_all_who_take_are_kept_from_it_no_end_of_the_queue_is_named() -> None:
    # given one that is held until 14:00:07, one that is held by something that does not say, and one that is down
    queue = replace(QUEUE, empty_at_s=None)
    endless = other("web-2", State.HELD)
    endless = replace(endless, holds=(HeldBy("upstream down", "api.example.org", None),))

    # then
    assert "8520 tasks are ready in queue timeline; nobody takes them before about 14:00:07 UTC" in told(
        HELD, endless, other("web-3", State.DOWN), queues=(queue,)
    )
    words = "8520 tasks are ready in queue timeline; nobody takes them at present"
    assert words in told(other("web-3", State.DOWN), endless, queues=(queue,))


def test_what_was_deferred_and_what_is_dead() -> None:
    queues = (
        replace(QUEUE, ready=0, empty_at_s=None),
        QueueRow("qctl.retry.5m", work=False, ready=400),
        QueueRow("qctl.retry.1h", work=False, ready=12),
        QueueRow("timeline.dead", work=False, ready=3),
    )

    sentences = told(HELD, queues=queues)
    assert "412 tasks of any queue wait to be tried again later" in sentences
    assert "3 dead letters lie in timeline.dead" in sentences


def test_old_numbers_say_how_old_they_are() -> None:
    row = replace(HELD, state=State.UNKNOWN, seen=Seen(Source.LOG, NOW_S - 42))

    assert told(row)[-1] == "its numbers are 42s old: nothing newer was heard"


def test_many_others_are_counted_and_not_all_named() -> None:
    others = [other(f"web-{number}", State.CONSUMING) for number in range(2, 42)]

    [sentence] = [one for one in told(HELD, *others) if "other host" in one]
    assert sentence.startswith("40 other hosts are consuming (web-2, web-3,")
    assert sentence.endswith("and 32 more)")


def test_a_queue_tells_who_takes_from_it_and_why_the_others_do_not() -> None:
    # given one that consumes, one held, one paused, one down
    rows = (
        HELD,
        other("web-2", State.CONSUMING),
        replace(other("web-3", State.PAUSED), pauses=(PAUSE,), since_s=at(13, 10)),
        replace(other("web-4", State.DOWN), why="no worker of it is connected", since_s=at(13, 12)),
    )
    status = Status(at_s=NOW_S, blocked=False, consumers=rows, quotas=(SPENT,), queues=(QUEUE,))

    # then
    assert [fact.sentence for fact in why.queue(status, QUEUE, zone=UTC)] == [
        "one host is consuming (web-2)",
        (
            "web-1/timeline is held since 13:12:04 UTC: quota twitter: 20000/20000 used, first units return at "
            "14:00:07 UTC"
        ),
        (
            "web-3/timeline is paused since 13:10:00 UTC, by oncall (says it is ann@laptop) at 13:10:00 UTC, until "
            "15:00:00 UTC: API is down"
        ),
        "web-4/timeline is down since 13:12:00 UTC: no worker of it is connected",
        "8520 tasks are ready in queue timeline; it will be empty at 14:41:00 UTC at this rate",
    ]


def test_a_queue_that_nobody_takes_from() -> None:
    nobody = Status(at_s=NOW_S, blocked=False, queues=(QUEUE,))
    all_held = replace(nobody, consumers=(HELD,), quotas=(SPENT,))

    assert why.queue(nobody, QUEUE, zone=UTC)[0].sentence == "no host is known to consume timeline"
    assert why.queue(all_held, QUEUE, zone=UTC)[0].sentence == "nobody is consuming it at present"


def test_tasks_that_gave_up_half_way_are_counted_and_what_is_declared_is_named() -> None:
    # given a consumer of which 17 of 82 tasks were not paid to their end, and another one with as many
    cost = CostReading("timeline", "", "twitter", 1, 82, 1, 5, gave_up=17)
    costs = (cost, replace(cost, consumer="mails", gave_up=80))
    status = Status(at_s=NOW_S, blocked=False, consumers=(HELD,), quotas=(replace(SPENT, costs=costs),))

    (fact,) = [fact for fact in why.consumer(status, HELD, zone=UTC) if fact.kind is why.Kind.COST]

    assert fact.sentence.startswith("17 of 82 tasks of timeline gave up half-way, since twitter could not pay for more")
    assert [item["consumer"] for item in fact.item()["costs"]] == ["timeline"]


def test_the_facts_are_values_too() -> None:
    status = Status(at_s=NOW_S, blocked=False, consumers=(HELD,), quotas=(SPENT,), queues=(QUEUE,))

    items = [fact.item() for fact in why.consumer(status, HELD, zone=UTC)]
    quota = next(item for item in items if item["fact"] == "quota")
    assert quota["used_units"] == 20_000
    assert quota["returns_at"] == "2026-11-22T14:00:07.000Z"
    assert all(item["sentence"] for item in items)


OTHERS = ForeignReading(212, 212, 600, 3600.0, 1_000, 188, since_s=at(13, 2), until_s=at(14, 0), lasting=True)


def test_a_hold_because_somebody_else_spends_says_so_with_numbers() -> None:
    # given a quota of which this host has spent 788, and somebody else 212
    shared = replace(SPENT, rates=("1000/h",), used_units=788, limit_units=1_000, foreign=OTHERS)

    sentences = told(HELD, quotas=(shared,))

    counted = "the API counts 812 of 1000 used; this host spent 600"
    assert sentences[2:4] == [
        "quota twitter: 788/1000 used and 212 by someone else, first units return at 14:00:07 UTC",
        f"quota twitter is spent by someone else too: {counted}; 212 by someone else, since 13:02:00 UTC",
    ]


def test_a_hold_while_it_is_not_certain_that_nothing_is_left_says_both() -> None:
    shared = replace(SPENT, used_units=600, limit_units=1_000, foreign=replace(OTHERS, most=420))

    sentences = told(HELD, quotas=(shared,))

    assert "held: quota twitter, until about 14:00:07 UTC" in sentences
    assert "quota twitter: 600/1000 used and 212 to 420 by someone else" in sentences


def test_a_trifle_of_others_is_not_told() -> None:
    trifle = replace(SPENT, foreign=replace(OTHERS, units=3, most=3, since_s=None))

    assert not any("someone else too" in one for one in told(HELD, quotas=(trifle,)))


def test_spending_of_others_has_its_numbers_as_json() -> None:
    status = Status(at_s=NOW_S, blocked=False, consumers=(HELD,), quotas=(replace(SPENT, foreign=OTHERS),))

    items = [fact.item() for fact in why.consumer(status, HELD, zone=UTC)]
    (item,) = [item for item in items if item["fact"] == "someone else"]
    assert (item["quota"], item["units"], item["ours_units"], item["api_remaining_units"]) == ("twitter", 212, 600, 188)


@pytest.mark.parametrize(
    ("cause", "said"),
    [("quota", "quota twitter: 784/1000 used and 212 by someone else"), ("upstream down", "api.example.org")],
)
def test_a_queue_says_that_somebody_else_spends_what_its_taker_waits_for(cause: str, said: str) -> None:
    # given a consumer that is held, and tasks that cost more than the 4 units that are left
    shared = replace(SPENT, used_units=784, limit_units=1_000, foreign=OTHERS)
    held = replace(HELD, holds=(HeldBy(cause, "quota twitter" if cause == "quota" else "api.example.org"),))
    status = Status(at_s=NOW_S, blocked=False, consumers=(held,), quotas=(shared,), queues=(QUEUE,))

    sentences = [fact.sentence for fact in why.queue(status, QUEUE, zone=UTC)]

    assert f"web-1/timeline is held since 13:12:04 UTC: {said}" in sentences


# What is left and does not pay for a task, and what limits


def test_too_little_for_the_next_task_says_when_there_is_enough_and_no_end() -> None:
    # given 57 of 60 spent, and a task that costs 4
    short = replace(
        SPENT, used_units=57, limit_units=60, held=True, held_until_s=at(13, 31), returns_at_s=at(13, 30, 5)
    )

    assert "quota twitter: 57/60 used, too little for the next task until about 13:31:00 UTC" in told(
        HELD, quotas=(short,)
    )
    gone = replace(short, used_units=60)
    words = "quota twitter: 60/60 used, first units return at 13:30:05 UTC"
    assert f"{words}, enough for the next task at about 13:31:00 UTC" in told(HELD, quotas=(gone,))
    assert words in told(HELD, quotas=(replace(gone, held_until_s=at(13, 30, 6)),))


def test_of_several_limits_it_says_which_is_used_up() -> None:
    row = replace(
        SPENT,
        rates=("20/s", "5000/h"),
        used_units=0,
        limit_units=20,
        exhausted_at_s=at(14, 16),
        exhausted_rate="5000/h",
    )

    assert "quota twitter: 0/20 used, 5000/h is used up at about 14:16:00 UTC at this rate" in told(HELD, quotas=(row,))


def test_a_pace_that_is_reached_is_what_limits_it() -> None:
    row = replace(
        SPENT, rates=("100/10s",), used_units=54, limit_units=100, window="paced", burst_units=5, spend_per_s=9.6
    )

    assert "quota twitter: 10/s paced, 54/100 used, and that pace is what limits it" in told(HELD, quotas=(row,))
    assert "quota twitter: 10/s paced, 54/100 used" in told(HELD, quotas=(replace(row, spend_per_s=2.0),))
