"""`qctl plan` from built values: what is asked, who works, and what is said of queues and quotas."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qctl.control.desired import Desired, Pause
from qctl.control.quota_reading import CostReading, ForeignReading, LimitReading, QuotaReading
from qctl.control.reading import ConsumerReading, Hold, HostReading, Reading, Tag
from qctl.control.target import Target
from qctl.errors import UnknownName, UsageError
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops.found import Depth, Flow, Found, Heard
from qctl.ops.plan import Never, Plan, QueuePlan, document, plan
from qctl.ops.plan_crews import ASSUMED_RUN_S
from qctl.ops.plan_question import Question, question

NOW_S = 1_795_354_200.0


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    """Two hosts that share a queue, with 100 and 300 units in 20 seconds."""
    handler = {"exec": ["true"]}
    written = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:5672/", "username": "guest"},
        "quotas": {"twitter": "100/20s"},
        "consumers": {
            "timeline": {"handler": handler, "quota": {"twitter": 1}},
            "mail": {"handler": handler, "quota": {}, "directed": True},
        },
        "groups": {"large": {"quotas": {"twitter": "300/20s"}}},
        "hosts": {"web-1": {"consumers": {"timeline": {}}}, "web-2": {"group": "large"}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(written), encoding="utf-8")
    return load(path)


def consumer(host: str, **more: Any) -> ConsumerReading:
    """`timeline` of a process: eight slots, tasks of 50 ms."""
    tag = Tag(f"qctl/{host}/timeline/0", "timeline", "consuming")
    given = {"name": "timeline", "queue": "timeline", "state": "consuming", "tags": (tag,), "concurrency": 8}
    return ConsumerReading(**{**given, "prefetch": 16, "run_s": 0.05, **more})


def twitter(units: int, used: int = 0, **more: Any) -> QuotaReading:
    """The quota of a host, of which nothing is free again before the tenth second."""
    returns = ((10.0, used),) if used else ()
    limits = (LimitReading(units, 20.0, used, returns=returns),)
    return QuotaReading("twitter", used, units, 20.0, **{"limits": limits, **more})


def heard(host: str, *consumers: ConsumerReading, quota: QuotaReading, at_s: float = NOW_S) -> Heard:
    """A process's reading."""
    reading = Reading(at_s, host, 0, 1, "m", NOW_S - 60, 60.0, consumers or (consumer(host),), (quota,))
    return Heard(reading, at_s)


def found(*live: Heard, ready: int | None = 700, **more: Any) -> Found:
    """What was heard; by default both hosts with nothing spent."""
    both = (heard("web-1", quota=twitter(100)), heard("web-2", quota=twitter(300)))
    given = {"live": live or both, "depths": {"timeline": Depth(ready, at_s=NOW_S)}, "desired": Desired()}
    return Found(NOW_S, **{**given, **more})


def timeline(planned: Plan) -> QueuePlan:
    """The queue that both share."""
    return next(one for one in planned.queues if one.queue == "timeline")


def in_s(planned: Plan) -> float:
    """In how many seconds it is empty."""
    at_s = timeline(planned).empty_at_s
    assert at_s is not None
    return at_s - planned.at_s


class TestAsIs:
    def test_the_queue_is_empty_when_the_quotas_have_paid_for_it(self, inventory: Inventory) -> None:
        # given 700 tasks, and 400 in each 20 seconds
        planned = plan(found(), inventory, Question())

        # then the first 400 are done at once, and 300 when units return
        assert 20 < in_s(planned) < 22
        assert dict(timeline(planned).by_host).keys() == {"web-1", "web-2"}
        assert sum(tasks for _, tasks in timeline(planned).by_host) == 700

    def test_each_quota_says_when_it_runs_out_and_returns_and_one_is_the_first(self, inventory: Inventory) -> None:
        planned = plan(found(), inventory, Question())

        first, second = planned.quotas
        assert (first.address, second.address) == ("web-1/twitter", "web-2/twitter")
        assert first.out_at_s == pytest.approx(NOW_S + 100 / 160, abs=0.1)
        assert first.returns_at_s == pytest.approx(NOW_S + 20, abs=0.2)
        assert second.out_at_s == pytest.approx(NOW_S + 300 / 160, abs=0.1)
        assert planned.first_out is first

    def test_what_is_used_returns_when_its_reading_says(self, inventory: Inventory) -> None:
        # given a host alone whose limit is used up until the tenth second
        live = heard("web-1", quota=twitter(100, used=100))
        planned = plan(found(live, ready=50), inventory, Question())

        assert 10 < in_s(planned) < 11

    def test_a_reading_is_of_the_moment_at_which_it_was_heard(self, inventory: Inventory) -> None:
        # given the same, heard a second ago
        live = heard("web-1", quota=twitter(100, used=100), at_s=NOW_S - 1)
        planned = plan(found(live, ready=50), inventory, Question())

        assert 9 < in_s(planned) < 10

    def test_what_others_spend_is_not_there_to_be_spent(self, inventory: Inventory) -> None:
        # given that somebody else has spent 60 of the 100, until the fifteenth second
        foreign = ForeignReading(60, 60, ours=0, period_s=20.0, since_s=NOW_S - 5, until_s=NOW_S + 15)
        live = heard("web-1", quota=twitter(100, foreign=foreign))
        planned = plan(found(live, ready=50), inventory, Question())

        assert 15 < in_s(planned) < 16

    def test_tasks_in_workers_are_waited_for(self, inventory: Inventory) -> None:
        # given an empty queue, eight tasks that run and eight that wait in the worker
        live = heard("web-1", consumer("web-1", run_s=4.0, running=8, waiting=8), quota=twitter(100, used=8))
        planned = plan(found(live, ready=0), inventory, Question())

        assert timeline(planned).in_workers == 16
        assert in_s(planned) == pytest.approx(6.0, abs=0.1)

    def test_a_pause_and_its_end_are_known_from_the_control_log(self, inventory: Inventory) -> None:
        # given the only host that is heard, paused for half a minute
        pause = Pause("a", "oncall", None, "", None, NOW_S + 30, Target(host="web-1"))
        live = heard("web-1", consumer("web-1", state="paused"), quota=twitter(100))
        planned = plan(found(live, ready=50, desired=Desired(pauses=(pause,))), inventory, Question())

        assert 30 < in_s(planned) < 31

    def test_a_queue_into_which_more_comes_is_empty_later(self, inventory: Inventory) -> None:
        calm = plan(found(), inventory, Question())
        busy = plan(found(flows={"timeline": Flow(in_per_s=10.0)}), inventory, Question())

        assert in_s(calm) < in_s(busy)


class TestNever:
    def test_when_nobody_is_there(self, inventory: Inventory) -> None:
        live = heard("web-2", quota=twitter(300))
        depths = {"timeline": Depth(5), "mail@web-2": Depth(3)}
        planned = plan(found(live, depths=depths), inventory, Question())

        queue = next(one for one in planned.queues if one.queue == "mail@web-2")
        assert (queue.never, queue.empty_at_s) == (Never.NOBODY, None)
        assert queue.words == "web-2/mail down: its worker does not run it"

    def test_when_all_are_paused_without_an_end(self, inventory: Inventory) -> None:
        pause = Pause("a", "oncall", None, "", None, None, Target(consumer="timeline"))
        planned = plan(found(desired=Desired(pauses=(pause,))), inventory, Question())

        assert timeline(planned).never is Never.PAUSED
        assert timeline(planned).words == "web-1/timeline paused; web-2/timeline paused"

    def test_when_it_is_held_and_nobody_knows_how_long(self, inventory: Inventory) -> None:
        held = consumer("web-1", state="held", holds=(Hold("upstream down", "upstream down: 10 of 500 in a row"),))
        planned = plan(found(heard("web-1", held, quota=twitter(100))), inventory, Question())

        assert timeline(planned).never is Never.HELD
        assert "web-1/timeline held: upstream down: 10 of 500 in a row" in timeline(planned).words

    def test_when_a_task_costs_more_than_there_is(self, inventory: Inventory) -> None:
        costly = replace(inventory.hosts["web-1"].consumers["timeline"], cost={"twitter": 5})
        hosts = {"web-1": replace(inventory.hosts["web-1"], consumers={"timeline": costly})}
        asked = Question(
            limits={
                ("web-1", "twitter"): question(inventory, sets=("web-1/twitter=4/20s",)).limits[("web-1", "twitter")]
            }
        )
        live = heard("web-1", quota=twitter(100))
        planned = plan(found(live), replace(inventory, hosts=hosts), asked)

        assert timeline(planned).never is Never.COST
        assert timeline(planned).words == "web-1/timeline a task is expected to need 5 units of twitter, more than 4"

    def test_when_more_comes_in_than_can_be_done_and_the_quotas_are_told_of_all_the_same(
        self, inventory: Inventory
    ) -> None:
        planned = plan(found(flows={"timeline": Flow(in_per_s=30.0)}), inventory, Question())

        assert (timeline(planned).never, timeline(planned).words) == (
            Never.GROWS,
            "30.0 a second come in, 20.0 can be done",
        )
        assert all(one.out_at_s is not None for one in planned.quotas)

    def test_when_nobody_knows_how_many_wait(self, inventory: Inventory) -> None:
        depths = {"timeline": Depth(None, "it did not answer")}
        planned = plan(found(depths=depths), inventory, Question())

        assert timeline(planned).never is Never.UNKNOWN
        assert timeline(planned).words == "it is not known how many tasks wait: it did not answer"

    def test_what_nobody_takes_from_and_holds_nothing_is_empty(self, inventory: Inventory) -> None:
        depths = {"timeline": Depth(5), "mail@web-2": Depth(0)}
        planned = plan(found(depths=depths), inventory, Question())

        queue = next(one for one in planned.queues if one.queue == "mail@web-2")
        assert (queue.never, queue.empty_at_s) == (None, NOW_S)


class TestWhatIf:
    def test_a_higher_limit_is_sooner_done(self, inventory: Inventory) -> None:
        asked = question(inventory, sets=("web-1/twitter=400/20s",))

        assert in_s(plan(found(), inventory, asked)) < 5

    def test_a_limit_of_another_period_inherits_what_was_spent(self, inventory: Inventory) -> None:
        # given a limit that is used up until the tenth second of its twenty
        live = heard("web-1", quota=twitter(100, used=100))
        asked = question(inventory, sets=("web-1/twitter=100/10s",))

        # then of ten seconds it is free now, since it was spent ten seconds ago
        assert in_s(plan(found(live, ready=50), inventory, asked)) < 2

    def test_what_is_used_is_shown_of_the_limit_that_is_asked_about(self, inventory: Inventory) -> None:
        # given that all of 100 is used
        live = heard("web-1", quota=twitter(100, used=100))

        def used(rate: str) -> tuple[int | None, int | None]:
            asked = question(inventory, sets=(f"web-1/twitter={rate}",))
            (one, *_) = plan(found(live, ready=50), inventory, asked).quotas
            return one.used_units, one.limit_units

        assert [used(rate) for rate in ("120/20s", "2/20s", "100/10s")] == [(100, 120), (100, 2), (0, 100)]

    def test_of_two_options_for_a_quota_the_last_holds(self, inventory: Inventory) -> None:
        asked = question(inventory, sets=("*/twitter=1/s", "web-1/twitter=2/s"))

        assert {host: str(rates[0]) for (host, _), rates in asked.limits.items()} == {"web-1": "2/s", "web-2": "1/s"}

    def test_one_more_host_runs_what_the_others_run(self, inventory: Inventory) -> None:
        asked = question(inventory, added=("web-3/twitter=1000/20s",))
        planned = plan(found(), inventory, asked)

        assert dict(timeline(planned).by_host)["web-3"] > 200
        assert in_s(planned) < 5
        assert "web-3 is assumed to run what web-1 runs, one process, with nothing spent" in planned.assumed
        assert asked.item()["like"] == {"web-3": "web-1"}

    def test_a_range_of_hosts_is_as_many(self, inventory: Inventory) -> None:
        asked = question(inventory, added=("web-[3-5]/twitter=100/20s",))

        assert [one.name for one in asked.added] == ["web-3", "web-4", "web-5"]

    def test_what_is_paused_takes_nothing_and_that_holds_for_added_hosts_too(self, inventory: Inventory) -> None:
        only = plan(found(), inventory, question(inventory, paused=("web-2",)))
        none = plan(found(), inventory, question(inventory, added=("web-3/twitter=1/s",), paused=("*/timeline",)))

        assert dict(timeline(only).by_host) == {"web-1": 700}
        assert timeline(none).never is Never.PAUSED
        assert "web-3/timeline paused" in timeline(none).words

    @pytest.mark.parametrize(
        ("options", "message", "hint"),
        [
            ({"sets": ("web-1/twiter=5/h",)}, "has no quota 'twiter'", "Did you mean twitter?"),
            ({"sets": ("wbe-1/twitter=5/h",)}, "has no host 'wbe-1'", "Did you mean web-1?"),
            ({"sets": ("web-1/twitter",)}, "--set takes HOST/QUOTA=RATE, found 'web-1/twitter'", "For example"),
            ({"sets": ("web-1/twitter=5",)}, "--set web-1/twitter=5: expected a rate N/PERIOD", ""),
            ({"sets": ("web-1/twitter=",)}, "--set web-1/twitter=: expected a rate N/PERIOD", ""),
            ({"added": ("web-3/twitter=x",)}, "--add-host web-3/twitter=x: expected a rate N/PERIOD", ""),
            ({"added": ("web-1/twitter=5/h",)}, "has a host 'web-1' already", "--set web-1/twitter=RATE"),
            ({"added": ("web-3/twiter=5/h",)}, "has no quota 'twiter'", "Did you mean twitter?"),
            ({"added": ("web-3=5/h",)}, "--add-host takes NAME/QUOTA=RATE, found 'web-3=5/h'", ""),
            ({"added": ("web 3/twitter=5/h",)}, "--add-host web 3/twitter=5/h: ", ""),
            ({"paused": ("web-3",)}, "has no host 'web-3'", "Did you mean web-"),
            ({"paused": ("web-1,web-2",)}, "--pause web-1,web-2: ", "--pause web-1 --pause web-2"),
        ],
    )
    def test_what_cannot_be_is_refused_with_the_nearest_name(
        self, inventory: Inventory, options: dict[str, Any], message: str, hint: str
    ) -> None:
        with pytest.raises((UsageError, UnknownName)) as refused:
            question(inventory, **options)

        assert message in refused.value.message
        assert hint in refused.value.hint


class TestCosts:
    """What a task costs is what tasks were seen to use, if enough were seen; else what is declared."""

    def planned(self, inventory: Inventory, *costs: CostReading, ready: int = 50) -> Plan:
        """By web-1 alone, with 100 units in 20 seconds."""
        live = heard("web-1", quota=twitter(100))
        told = replace(live, reading=replace(live.reading, costs=costs))
        return plan(found(told, ready=ready), inventory, Question())

    def cost(self, tasks: int, mean: float | None, *, gave_up: int = 0, kind: str = "") -> CostReading:
        return CostReading("timeline", kind, "twitter", 1, tasks, p50=1, p95=12, mean=mean, gave_up=gave_up)

    def test_of_enough_tasks_the_mean_is_taken_and_that_is_said(self, inventory: Inventory) -> None:
        # given 50 tasks, of which one uses 6.5 units where 1 is declared
        planned = self.planned(inventory, self.cost(20, 6.0), self.cost(20, 7.0, gave_up=3, kind="other"))

        # then they need 325 units: four windows of 100
        assert 60 < in_s(planned) < 63
        assert planned.quotas[0].units == pytest.approx(325, abs=1)
        assert (
            "a task of timeline costs 6.5 of twitter at least, the mean of 40 seen, 3 of which gave up half-way; "
            "1 is declared" in planned.assumed
        )

    def test_what_was_declared_too_high_is_settled_at_what_was_used(self, inventory: Inventory) -> None:
        planned = self.planned(inventory, self.cost(40, 0.25), ready=350)

        assert in_s(planned) < 5
        assert planned.quotas[0].units == pytest.approx(87, abs=2)

    @pytest.mark.parametrize(
        ("tasks", "few"), [(None, ""), (19, "; only 19 were seen")], ids=["none were seen", "too few were seen"]
    )
    def test_of_too_few_the_declaration_is_taken_and_that_is_said(
        self, inventory: Inventory, tasks: int | None, few: str
    ) -> None:
        planned = self.planned(inventory, *([self.cost(tasks, 9.0)] if tasks else []))

        assert in_s(planned) < 2
        assert f"a task of timeline costs 1 of twitter as declared{few}" in planned.assumed

    def test_nothing_is_said_of_a_cost_that_was_seen_to_be_right(self, inventory: Inventory) -> None:
        planned = self.planned(inventory, self.cost(40, 1.0))

        assert not any("costs" in one for one in planned.assumed)


class TestAssumptions:
    def test_with_nobody_at_work_the_inventory_is_planned_and_that_is_said(self, inventory: Inventory) -> None:
        silent = Found(NOW_S, depths={"timeline": Depth(700)}, desired=Desired())
        planned = plan(silent, inventory, Question())

        assert 20 < in_s(planned) < 23
        assert planned.unheard
        assert planned.assumed[:2] == (
            "no worker is heard: every host of the inventory is assumed to run, one process each, with nothing spent",
            f"nobody has told how long a task of timeline takes: {ASSUMED_RUN_S:g} s is assumed",
        )

    def test_what_silent_hosts_had_spent_still_counts(self, inventory: Inventory) -> None:
        # given that web-1 said, five seconds ago and before it went, that its 100 units return ten seconds later
        told = heard("web-1", quota=twitter(100, used=100), at_s=NOW_S - 5).reading
        gone = HostReading(NOW_S - 5, "web-1", "m", 1, (told,))
        silent = Found(NOW_S, depths={"timeline": Depth(330)}, desired=Desired(), before={"web-1": gone})

        planned = plan(silent, inventory, Question())

        assert 5 < in_s(planned) < 7
        assert "a task of timeline takes 0.05 s, as was told before" in planned.assumed
        assert planned.assumed[0].endswith("with nothing spent but what was told before")

    def test_how_long_tasks_take_is_known_from_other_hosts(self, inventory: Inventory) -> None:
        new = heard("web-2", consumer("web-2", run_s=None), quota=twitter(300))
        planned = plan(found(heard("web-1", quota=twitter(100)), new), inventory, Question())

        assert "web-2 has run no task of timeline: 0.05 s is assumed, as on other hosts" in planned.assumed

    def test_what_comes_in_is_not_guessed(self, inventory: Inventory) -> None:
        planned = plan(found(), inventory, Question())

        assert any(one.startswith("nobody says how much comes in: nothing is taken to") for one in planned.assumed)

    def test_tasks_that_wait_for_another_try_are_not_forgotten(self, inventory: Inventory) -> None:
        depths = {"timeline": Depth(1), "qctl.retry.5m": Depth(4)}
        planned = plan(found(depths=depths), inventory, Question())

        assert "4 tasks wait to be tried again later: they are not counted" in planned.assumed


def test_every_field_of_the_document_is_on_the_page(inventory: Inventory) -> None:
    # given a plan that is as full as can be
    asked = question(inventory, sets=("web-1/twitter=5/h",), added=("web-3/twitter=5/h",), paused=("web-2",))
    whole = document(plan(found(), inventory, asked))
    page = (Path(__file__).parents[3] / "docs" / "json.md").read_text(encoding="utf-8")
    section = re.search(r"^## `qctl plan`$.*?(?=^## )", page, re.DOTALL | re.MULTILINE)
    assert section is not None

    # then the page has each of its fields, and its sample has no other
    sample = json.loads(re.findall(r"```json\n(.*?)```", section[0], re.DOTALL)[0])
    assert sample.keys() == whole.keys()
    for part in ("queues", "quotas", "absent"):
        assert sample[part][0].keys() == whole[part][0].keys()
    for name in (*whole, *whole["queues"][0], *whole["quotas"][0], *whole["absent"][0], *whole["what_if"]):
        assert f"`{name}`" in section[0] or name == "v"
