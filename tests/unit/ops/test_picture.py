"""What everything that was heard means: from built values to rows; no broker, no clock."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qctl.control.desired import Desired, Override, Pause
from qctl.control.host_answer import HostAnswer, ProcessLook, ProcessState
from qctl.control.quota_reading import CostReading, ForeignReading, LimitReading, OverrideReading, QuotaReading
from qctl.control.reading import (
    ConsumerReading,
    Counts,
    Goodbye,
    Hold,
    HostReading,
    Reading,
    Tag,
)
from qctl.control.target import Target
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops.found import Depth, Flow, Found, Heard, Silence
from qctl.ops.picture import picture
from qctl.ops.status import Source, State
from qctl.ops.status_json import document
from qctl.ops.when import iso

NOW_S = 1_795_354_200.0
GONE = {"web-1": Silence.ABSENT, "web-2": Silence.ABSENT}


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    """Two hosts, two consumers that spend the same quota."""
    consumer = {"handler": {"exec": ["true"]}, "quota": {"twitter": 2}}
    document_ = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:5672/", "username": "guest"},
        "quotas": {"twitter": "20000/h", "unused": "1/s"},
        "consumers": {"timeline": consumer, "mail": {**consumer, "directed": True}},
        "hosts": {"web-1": {}, "web-2": {"consumers": {"timeline": {}}}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document_), encoding="utf-8")
    return load(path)


def consumer(name: str = "timeline", state: str = "consuming", **more: Any) -> ConsumerReading:
    """A consumer of a process, doing ten tasks a second."""
    tag = Tag(f"qctl/web-1/{name}/0", name, state)
    return ConsumerReading(
        **{
            "name": name,
            "queue": name,
            "state": state,
            "since_s": NOW_S - 100,
            "tags": (tag,),
            "running": 3,
            "waiting": 1,
            "concurrency": 8,
            "counts": Counts(acked=7),
            "rate_per_s": 10.0,
            **more,
        }
    )


def quota(used: int = 500, limit: int = 20_000, **more: Any) -> QuotaReading:
    """The quota with one limit an hour."""
    return QuotaReading(
        **{
            "name": "twitter",
            "used": used,
            "limit": limit,
            "period_s": 3600.0,
            "limits": (LimitReading(limit, 3600.0, used),),
            **more,
        }
    )


def reading(*consumers: ConsumerReading, host: str = "web-1", index: int = 0, **more: Any) -> Reading:
    """What a process says."""
    return Reading(
        **{
            "at_s": NOW_S - 0.5,
            "host": host,
            "index": index,
            "pid": 7,
            "machine": "m1",
            "started_at_s": NOW_S - 1000,
            "heartbeat_s": 10.0,
            "consumers": consumers,
            "quotas": (quota(),),
            **more,
        }
    )


def live(*readings: Reading) -> Found:
    """Readings heard half a second ago, and nobody else."""
    return Found(at_s=NOW_S, live=tuple(Heard(one, NOW_S - 0.5) for one in readings), supervisors=GONE)


def answer(*states: ProcessState, host: str = "web-1") -> HostAnswer:
    """A supervisor that answers."""
    looks = tuple(ProcessLook(i, 100 + i, state, "2026-11-22T13:00:00.000Z") for i, state in enumerate(states))
    return HostAnswer(host, "m1", 99, "2026-11-22T12:00:00Z", "r1", 10, looks)


def pause(target: Target, *, until_s: float | None = None) -> Desired:
    """A log in which oncall paused `target`."""
    return Desired(pauses=(Pause("a1", "oncall", "ann@laptop", "2026-11-22T13:10:00Z", "slow API", until_s, target),))


def test_processes_of_a_consumer_are_taken_together_and_the_first_state_shows(inventory: Inventory) -> None:
    # given one process that consumes and one that is held
    held = consumer(state="held", holds=(Hold("quota", "quota twitter", NOW_S + 60),), since_s=NOW_S - 10)
    found = live(reading(consumer(), consumer("mail")), reading(held, consumer("mail"), index=1))

    # when
    rows = {row.address: row for row in picture(found, inventory).consumers}

    # then
    row = rows["web-1/timeline"]
    assert (row.state, row.since_s, row.why) == (State.HELD, NOW_S - 10, "quota twitter")
    assert row.counts == {State.CONSUMING: 1, State.HELD: 1}
    assert (row.running, row.waiting, row.concurrency, row.rate_per_s) == (6, 2, 16, 20.0)
    assert row.settled is not None
    assert row.settled["acked"] == 14
    assert row.seen is not None
    assert (row.seen.source, row.seen.at_s) == (Source.LIVE, NOW_S - 0.5)


def test_a_host_is_what_its_consumers_agree_on_else_counts(inventory: Inventory) -> None:
    agreed = live(reading(consumer(), consumer("mail")), reading(consumer(), host="web-2"))
    mixed = live(reading(consumer(state="held"), consumer("mail")))

    assert [row.words for row in picture(agreed, inventory).hosts] == ["consuming", "consuming"]
    assert picture(mixed, inventory).hosts[0].words == "1 held 1 consuming"


def test_a_host_without_supervisor_is_down_since_its_goodbye(inventory: Inventory) -> None:
    found = Found(at_s=NOW_S, supervisors=GONE, last={"web-1": Goodbye(NOW_S - 600, "web-1")})

    [one, two] = picture(found, inventory).hosts
    assert (one.state, one.since_s, one.why) == (State.DOWN, NOW_S - 600, "its worker has ended")
    assert (two.state, two.since_s, two.why) == (State.DOWN, None, "no worker of it is connected")


def test_a_host_that_died_is_down_since_it_was_last_heard_and_its_numbers_are_old(inventory: Inventory) -> None:
    entry = HostReading(NOW_S - 300, "web-1", "m1", 99, (reading(consumer()),))
    status = picture(Found(at_s=NOW_S, supervisors=GONE, last={"web-1": entry}), inventory)

    assert (status.hosts[0].state, status.hosts[0].since_s) == (State.DOWN, NOW_S - 300)
    row = status.consumers[0]
    assert (row.state, row.running, row.rate_per_s) == (State.DOWN, None, None)
    # what it had spent then still counts, and says how old it is
    spent = status.quota("web-1", "twitter")
    assert spent is not None
    assert (spent.used_units, spent.exhausted_at_s) == (500, None)
    assert document(status)["quotas"][0]["age_s"] == 300.0


def test_what_was_spent_before_a_whole_window_is_not_told_as_spent_now(inventory: Inventory) -> None:
    entry = HostReading(NOW_S - 3601, "web-1", "m1", 99, (reading(consumer()),))
    status = picture(Found(at_s=NOW_S, supervisors=GONE, last={"web-1": entry}), inventory)

    spent = status.quota("web-1", "twitter")
    assert spent is not None
    assert (spent.used_units, spent.rates) == (None, ("20000/h",))


def test_silence_while_the_broker_is_blocked_is_unknown(inventory: Inventory) -> None:
    status = picture(Found(at_s=NOW_S, blocked=True), inventory)

    assert {row.state for row in status.hosts} == {State.UNKNOWN}
    assert status.hosts[0].words == "unknown (broker blocked)"
    assert {row.state for row in status.consumers} == {State.UNKNOWN}


@pytest.mark.parametrize(
    ("supervisor", "state", "words"),
    [
        (answer(ProcessState.CONNECTED), State.UNKNOWN, "connected and say nothing"),
        (answer(ProcessState.STARTING), State.DOWN, "starting"),
        (answer(ProcessState.DISCONNECTED, ProcessState.ENDED), State.DOWN, "no connection"),
        (answer(ProcessState.ENDED), State.DOWN, "its processes do not"),
        (answer(), State.DOWN, "its processes do not"),
        (Silence.SILENT, State.UNKNOWN, "nobody answers"),
        (Silence.UNASKED, State.UNKNOWN, "nothing is heard"),
        (Silence.ABSENT, State.DOWN, "no worker of it is connected"),
    ],
)
def test_what_the_silence_of_a_host_means(
    inventory: Inventory, supervisor: HostAnswer | Silence, state: State, words: str
) -> None:
    # given a host that was heard five minutes ago and not since
    entry = HostReading(NOW_S - 300, "web-1", "m1", 99, (reading(consumer()),))
    found = Found(at_s=NOW_S, supervisors={"web-1": supervisor}, last={"web-1": entry})

    row = picture(found, inventory, hosts=["web-1"]).hosts[0]
    assert row.state is state
    assert words in row.why


@pytest.mark.parametrize("state", ["paused", "held", "consuming"])
def test_a_silent_process_that_is_connected_makes_its_consumers_unknown(inventory: Inventory, state: str) -> None:
    # given two connected processes, of which the second was stopped with tasks in it
    found = replace(
        live(reading(consumer(state=state, running=0))),
        supervisors={**GONE, "web-1": answer(ProcessState.CONNECTED, ProcessState.CONNECTED)},
    )
    status = picture(found, inventory)

    # then nobody says that it does nothing
    row = status.consumers[0]
    assert (row.state, row.why) == (State.UNKNOWN, "1 of its 2 processes is connected and silent")
    assert row.counts == {State(state): 1, State.UNKNOWN: 1}
    item = document(status)["consumers"][0]
    assert item["state"] == "unknown"
    assert [item[name] for name in ("running", "waiting", "concurrency", "rate_per_s", "settled")] == [None] * 5
    host = status.hosts[0]
    assert (host.counts[State.UNKNOWN], host.heard, host.processes) == (1, 1, 2)


def test_a_silent_process_that_is_not_connected_takes_nothing_away(inventory: Inventory) -> None:
    found = replace(
        live(reading(consumer(state="paused"), consumer("mail", state="paused"))),
        supervisors={**GONE, "web-1": answer(ProcessState.CONNECTED, ProcessState.DISCONNECTED, ProcessState.ENDED)},
    )

    row = picture(found, inventory).consumers[0]
    assert (row.state, row.running) == (State.PAUSED, 3)


@pytest.mark.parametrize(
    ("last", "listed", "state", "why"),
    [
        (HostReading(NOW_S - 59, "web-1", "m1", 99, ()), None, State.UNKNOWN, "no worker of it is connected"),
        (HostReading(NOW_S - 61, "web-1", "m1", 99, ()), frozenset(), State.DOWN, "no worker of it is connected"),
        (HostReading(NOW_S - 600, "web-1", "m1", 99, ()), {"web-1"}, State.UNKNOWN, "the broker lists a connection"),
        (None, {"web-1"}, State.UNKNOWN, "the broker lists a connection"),
        (None, {"web-2"}, State.DOWN, "no worker of it is connected"),
        (Goodbye(NOW_S - 5, "web-1"), None, State.DOWN, "its worker has ended"),
    ],
)
def test_a_host_that_may_run_on_without_the_broker_is_not_called_down(
    inventory: Inventory, last: HostReading | Goodbye | None, listed: frozenset[str] | None, state: State, why: str
) -> None:
    found = Found(at_s=NOW_S, supervisors=GONE, last={"web-1": last} if last else {}, listed=listed)

    row = picture(found, inventory, hosts=["web-1"]).hosts[0]
    assert row.state is state
    assert row.why.startswith(why)


def test_a_name_that_is_taken_is_unknown_also_after_a_goodbye(inventory: Inventory) -> None:
    # given a worker that was started again after its goodbye and stopped before its first entry in the log
    last = {"web-1": Goodbye(NOW_S - 5, "web-1")}

    row = picture(Found(at_s=NOW_S, supervisors={"web-1": Silence.SILENT}, last=last), inventory).hosts[0]
    assert row.state is State.UNKNOWN


def test_equal_pauses_are_told_once_with_how_often(inventory: Inventory) -> None:
    one = pause(Target(host="web-1")).pauses[0]
    again = replace(one, id="a2", at="2026-11-22T13:11:00Z")
    found = replace(
        live(reading(consumer(state="paused"))), desired=Desired(pauses=(one, again, replace(one, id="a3", user="ann")))
    )

    assert picture(found, inventory).consumers[0].why == "by oncall: slow API (2 times); by ann: slow API"


def test_who_is_heard_is_alive_whatever_the_supervisor_is(inventory: Inventory) -> None:
    # given no supervisor to be found, since it may not make its queue
    assert picture(live(reading(consumer(), consumer("mail"))), inventory).hosts[0].state is State.CONSUMING


def test_the_pauses_of_a_host_that_is_down_are_read_from_the_log(inventory: Inventory) -> None:
    found = Found(at_s=NOW_S, supervisors=GONE, desired=pause(Target(host="*", consumer="timeline")))

    rows = {row.address: row for row in picture(found, inventory).consumers}
    [order] = rows["web-2/timeline"].pauses
    assert (order.by, order.claimed_by, order.reason, order.target) == (
        "oncall",
        "ann@laptop",
        "slow API",
        "*/timeline",
    )
    assert order.at_s is not None
    assert rows["web-1/mail"].pauses == ()


def test_a_pause_of_the_directed_queue_alone_is_found_too(inventory: Inventory) -> None:
    found = Found(at_s=NOW_S, supervisors=GONE, desired=pause(Target(queue="mail@web-1")))

    rows = {row.address: row for row in picture(found, inventory).consumers}
    assert len(rows["web-1/mail"].pauses) == 1


def test_a_pause_that_is_over_is_not_told(inventory: Inventory) -> None:
    found = Found(at_s=NOW_S, supervisors=GONE, desired=pause(Target(host="web-1"), until_s=NOW_S - 1))

    assert all(not row.pauses for row in picture(found, inventory).consumers)


def test_without_the_control_log_a_pause_is_what_its_process_says(inventory: Inventory) -> None:
    paused = consumer(state="paused", by="oncall", claimed_by="ann@laptop", reason="slow API")

    row = picture(live(reading(paused)), inventory).consumers[0]
    assert [one.by for one in row.pauses] == ["oncall"]
    assert row.why == "by oncall: slow API"


def test_a_host_that_the_inventory_does_not_have_is_shown(inventory: Inventory) -> None:
    status = picture(live(reading(consumer("other"), host="guest-7")), inventory)

    row = status.host("guest-7")
    assert row is not None
    assert (row.listed, row.state) == (False, State.CONSUMING)
    assert status.host("web-1") is not None


def test_of_these_hosts_only_but_the_queue_counts_all_who_take_from_it(inventory: Inventory) -> None:
    found = replace(
        live(reading(consumer(), consumer("mail")), reading(consumer(), host="web-2")),
        depths={"timeline": Depth(100), "mail": Depth(5)},
    )

    status = picture(found, inventory, hosts=["web-2"])
    assert [row.host for row in status.hosts] == ["web-2"]
    assert {row.host for row in status.consumers} == {"web-2"}
    [queue] = status.queues
    assert (queue.queue, queue.out_per_s, queue.out_estimated) == ("timeline", 20.0, True)
    assert queue.empty_at_s == NOW_S + 5


def test_the_rate_of_a_quota_and_when_it_is_used_up(inventory: Inventory) -> None:
    # given 10 tasks a second of each of two consumers, 2 units a task: 40 units a second, of 20000/h
    row = picture(live(reading(consumer(), consumer("mail"))), inventory).quota("web-1", "twitter")

    assert row is not None
    assert row.spend_per_s == 40.0
    assert row.exhausted_at_s == NOW_S + (20_000 - 500) / 40


def test_a_quota_that_refills_as_fast_as_it_is_spent_lasts(inventory: Inventory) -> None:
    slow = live(reading(consumer(rate_per_s=1.0), consumer("mail", rate_per_s=0.0)))

    row = picture(slow, inventory).quota("web-1", "twitter")
    assert row is not None
    assert (row.spend_per_s, row.exhausted_at_s) == (2.0, None)


def test_a_lowered_limit_shows_what_is_over_it_and_who_lowered_it(inventory: Inventory) -> None:
    lowered = quota(100, 100, over=400, override=OverrideReading(("100/h",), by="oncall"))
    override = Override(
        "b1", "oncall", "ann@laptop", "2026-11-22T13:00:00Z", "gentle", None, "*", "twitter", ("100/h",)
    )
    found = replace(live(reading(consumer(), quotas=(lowered,))), desired=Desired(overrides=(override,)))

    row = picture(found, inventory).quota("web-1", "twitter")
    assert row is not None
    assert (row.used_units, row.limit_units, row.rates, row.inventory_rates) == (500, 100, ("100/h",), ("20000/h",))
    assert row.override is not None
    assert (row.override.by, row.override.claimed_by, row.override.target) == ("oncall", "ann@laptop", "*/twitter")


def test_an_override_of_a_host_that_is_down_is_read_from_the_log(inventory: Inventory) -> None:
    override = Override("b1", "oncall", None, "2026-11-22T13:00:00Z", None, None, "web-2", "twitter", ("5/s",))
    found = Found(at_s=NOW_S, supervisors=GONE, desired=Desired(overrides=(override,)))

    row = picture(found, inventory).quota("web-2", "twitter")
    assert row is not None
    assert (row.rates, row.used_units) == (("5/s",), None)


def test_a_live_process_is_believed_about_its_limit_and_not_the_log(inventory: Inventory) -> None:
    # given an override in the log that the process does not obey yet
    override = Override("b1", "oncall", None, "2026-11-22T13:00:00Z", None, None, "web-1", "twitter", ("5/s",))
    found = replace(live(reading(consumer())), desired=Desired(overrides=(override,)))

    row = picture(found, inventory).quota("web-1", "twitter")
    assert row is not None
    assert (row.rates, row.override) == (("20000/h",), None)


def test_rates_of_the_management_api_go_before_estimates(inventory: Inventory) -> None:
    found = replace(
        live(reading(consumer())),
        depths={"timeline": Depth(90)},
        flows={"timeline": Flow(unacked=8, in_per_s=1.0, out_per_s=10.0)},
    )

    queue = picture(found, inventory).queue("timeline")
    assert queue is not None
    assert (queue.unacked, queue.in_per_s, queue.out_per_s, queue.out_estimated) == (8, 1.0, 10.0, False)
    assert queue.empty_at_s == NOW_S + 10


def test_what_nobody_knows_is_none_and_not_nothing(inventory: Inventory) -> None:
    # given silent hosts and queues that did not answer
    status = picture(Found(at_s=NOW_S, supervisors={"web-1": Silence.SILENT}), inventory)

    queue = status.queue("timeline")
    assert queue is not None
    assert (queue.ready, queue.out_per_s, queue.empty_at_s) == (None, None, None)
    item = document(status)["consumers"][0]
    assert (item["running"], item["rate_per_s"], item["age_s"], item["since"]) == (None, None, None, None)


def test_queues_of_qctls_own_are_shown_when_they_hold_something(inventory: Inventory) -> None:
    depths = {"timeline": Depth(0), "qctl.retry.5m": Depth(4), "qctl.retry.1h": Depth(0), "timeline.dead": Depth(2)}
    status = picture(Found(at_s=NOW_S, supervisors=GONE, depths=depths), inventory)

    assert [(row.queue, row.ready) for row in status.queues if not row.work] == [
        ("qctl.retry.5m", 4),
        ("timeline.dead", 2),
    ]


def test_a_consumer_that_its_worker_does_not_run_is_down_with_that_cause(inventory: Inventory) -> None:
    # given a worker started with --only timeline
    rows = {row.address: row for row in picture(live(reading(consumer())), inventory).consumers}

    assert (rows["web-1/mail"].state, rows["web-1/mail"].why) == (State.DOWN, "its worker does not run it")


def test_a_consumer_that_did_not_fit_into_its_reading_is_unknown_and_not_down(inventory: Inventory) -> None:
    rows = {row.address: row for row in picture(live(reading(consumer(), omitted=1)), inventory).consumers}

    assert rows["web-1/mail"].state is State.UNKNOWN


def test_a_state_of_a_later_version_is_unknown(inventory: Inventory) -> None:
    row = picture(live(reading(consumer(state="meditating"))), inventory).consumers[0]

    assert row.state is State.UNKNOWN


OTHERS = ForeignReading(212, 260, 600, 3600.0, 1_000, 188, since_s=NOW_S - 60, until_s=NOW_S + 600, lasting=True)


def test_what_somebody_else_spends_is_gone_as_well(inventory: Inventory) -> None:
    # given 788 of ours used, and 212 of others, of 1000
    said = quota(788, 1_000, foreign=OTHERS)

    row = picture(live(reading(consumer(), quotas=(said,))), inventory).quota("web-1", "twitter")

    assert row is not None
    assert (row.used_units, row.foreign_units, row.dry) == (788, 212, True)
    assert row.exhausted_at_s is None


def test_a_quota_that_somebody_else_spends_too_is_used_up_sooner(inventory: Inventory) -> None:
    # given two consumers with 10 tasks a second that cost 2 each, and 20000 an hour, of which others have 15000
    others = replace(OTHERS, units=15_000, most=15_000)
    said = quota(3_000, foreign=others)

    row = picture(live(reading(consumer(), consumer("mail"), quotas=(said,))), inventory).quota("web-1", "twitter")

    assert row is not None
    assert row.exhausted_at_s == NOW_S + 2_000 / 40


def test_spending_of_others_is_over_at_its_end_whoever_still_tells_of_it(inventory: Inventory) -> None:
    said = quota(788, 1_000, foreign=replace(OTHERS, until_s=NOW_S - 1))

    row = picture(live(reading(consumer(), quotas=(said,))), inventory).quota("web-1", "twitter")

    assert row is not None
    assert (row.foreign, row.dry) == (None, False)


def test_spending_of_others_is_as_old_as_its_host_s_last_word(inventory: Inventory) -> None:
    # given a host that was last heard five minutes ago
    entry = HostReading(NOW_S - 300, "web-1", "m1", 99, (reading(quotas=(quota(600, 1_000, foreign=OTHERS),)),))

    status = picture(Found(at_s=NOW_S, supervisors=GONE, last={"web-1": entry}), inventory)
    row = status.quota("web-1", "twitter")

    assert row is not None
    assert (row.foreign, row.seen and row.seen.at_s) == (OTHERS, NOW_S - 300)
    item = next(item for item in document(status)["quotas"] if item["host"] == "web-1")
    assert item["age_s"] == 300.0
    assert item["foreign"] == {
        "units": 212,
        "most_units": 260,
        "ours_units": 600,
        "period_s": 3600.0,
        "api_limit_units": 1_000,
        "api_remaining_units": 188,
        "since": iso(NOW_S - 60),
        "until": iso(NOW_S + 600),
        "lasting": True,
    }


def test_a_quota_says_how_its_window_moves(inventory: Inventory) -> None:
    limits = (LimitReading(900_000, 86_400.0, 500, NOW_S + 9_000), LimitReading(20_000, 3600.0, 500, NOW_S + 90))
    fixed = picture(live(reading(consumer(), quotas=(quota(window="fixed", limits=limits),))), inventory)
    paced = picture(live(reading(consumer(), quotas=(quota(window="paced", burst=4, limits=limits[1:]),))), inventory)
    silent = picture(Found(at_s=NOW_S, supervisors=GONE), inventory)

    items = [document(status)["quotas"][0] for status in (fixed, paced, silent)]
    assert [(one["window"], one["resets_at"], one["burst_units"], one["pace_per_s"]) for one in items] == [
        ("fixed", iso(NOW_S + 90), None, None),
        ("paced", None, 4, pytest.approx(20_000 / 3600)),
        ("sliding", None, None, None),
    ]


def test_costs_stand_at_the_quota_that_pays_them(inventory: Inventory) -> None:
    # given two processes that saw tasks of a type cost 3 and mostly 7, where 2 is declared
    cost = CostReading("timeline", "refresh", "twitter", 2, 30, 3, 7, 3.5, 1)
    found = live(reading(consumer(), costs=(cost, replace(cost, quota="gone"))), reading(index=1, costs=(cost,)))

    (item, *_) = document(picture(found, inventory))["quotas"]

    assert item["costs"] == [
        {
            "kind": "cost",
            "consumer": "timeline",
            "type": "refresh",
            "quota": "twitter",
            "declared_units": 2,
            "tasks": 60,
            "p50_units": 3,
            "p95_units": 7,
            "mean_units": 3.5,
            "gave_up": 2,
            "hosts": ["web-1"],
            "verdict": "too low",
            "advised_units": 7,
        }
    ]


def test_a_quota_that_a_consumer_is_held_for_is_back_then_and_has_no_end(inventory: Inventory) -> None:
    # given 57 of 60 spent, a task that costs more than the rest, and another quota's hold
    said = quota(57, 60, returns_at_s=NOW_S + 2, spend_per_s=4.0)
    for words, held in (("quota twitter", True), ("quota mail", False)):
        waits = consumer(state="held", holds=(Hold("quota", words, NOW_S + 60),))

        row = picture(live(reading(waits, quotas=(said,))), inventory).quota("web-1", "twitter")

        assert row is not None
        assert (row.held, row.dry, row.spent) == (held, held, False)
        assert (row.exhausted_at_s is None, row.back_at_s) == (held, NOW_S + 60 if held else NOW_S + 2)


def test_the_rate_of_a_quota_is_what_was_settled_where_its_host_says_it(inventory: Inventory) -> None:
    # given tasks whose calls are metered: one task a second, twenty units a second
    said = quota(500, spend_per_s=20.0, limits=(LimitReading(20, 1.0, 0), LimitReading(20_000, 3600.0, 500)))
    slow = consumer(rate_per_s=1.0)

    row = picture(live(reading(slow, quotas=(said,))), inventory).quota("web-1", "twitter")

    assert row is not None
    assert (row.spend_per_s, row.spend_estimated) == (20.0, False)
    assert (row.exhausted_at_s, row.exhausted_rate) == (NOW_S + 19_500 / 20, "20000/h")


HELD = consumer(state="held", holds=(Hold("quota", "quota twitter", NOW_S + 60),))


@pytest.mark.parametrize(
    ("one", "flow", "out_per_s", "empty_in_s"),
    [
        (HELD, Flow(in_per_s=0.0, out_per_s=10.0), 10.0, None),  # nobody can take
        (consumer(put_off_per_s=6.0), Flow(in_per_s=0.0, out_per_s=10.0), 4.0, 22.5),  # what comes back is not done
        (consumer(put_off_per_s=10.0), Flow(in_per_s=0.0, out_per_s=10.0), 0.0, None),
        (consumer(), Flow(in_per_s=0.0, out_per_s=0.0), 10.0, 9.0),  # the broker has not counted it yet
        (consumer(rate_per_s=0.0), Flow(in_per_s=0.0, out_per_s=0.0), 0.0, None),
    ],
)
def test_an_end_of_a_queue_is_only_told_where_tasks_are_done(
    inventory: Inventory, one: ConsumerReading, flow: Flow, out_per_s: float, empty_in_s: float | None
) -> None:
    found = live(reading(one), reading(consumer("mail"), host="web-2"))
    found = replace(found, depths={"timeline": Depth(90)}, flows={"timeline": flow}, supervisors=GONE)

    queue = picture(found, inventory).queue("timeline")

    assert queue is not None
    assert (queue.out_per_s, queue.empty_at_s) == (out_per_s, None if empty_in_s is None else NOW_S + empty_in_s)


@pytest.mark.parametrize(("apart_s", "same"), [(-0.9, True), (0.4, True), (-1.5, False)])
def test_units_that_return_with_the_next_window_return_at_its_instant(
    inventory: Inventory, apart_s: float, same: bool
) -> None:
    resets_s = NOW_S + 15
    limits = (LimitReading(60, 15.0, 60, resets_at_s=resets_s),)
    said = quota(60, 60, period_s=15.0, limits=limits, window="fixed", returns_at_s=resets_s + apart_s)

    row = picture(live(reading(consumer(), quotas=(said,))), inventory).quota("web-1", "twitter")

    assert row is not None
    assert (row.resets_at_s, row.returns_at_s) == (resets_s, resets_s if same else resets_s + apart_s)
