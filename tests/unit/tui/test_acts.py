"""What the console would do, before it is confirmed: targets, words, what has to be typed, and what is no plan."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qctl.control.event import Command, Verb
from qctl.control.verdict import Standing, Verdict
from qctl.errors import BrokerBlocked, BrokerRefused, BrokerUnreachable, QctlError, UnknownName, UsageError
from qctl.inventory.load import load
from qctl.ops import access, queues, quotas
from qctl.ops import pausing as ops_pausing
from qctl.ops.letters import DeadLetter
from qctl.ops.pausing import Report
from qctl.ops.status import ConsumerRow, QueueRow, Seen, Source, State, Status
from qctl.ops.triage import Act
from qctl.tui.acts import enqueueing, limits, pausing, triage
from qctl.tui.acts.plan import MAX_TYPED_CHARS, Draft, Plan, Selection, Where
from qctl.tui.cells import plain
from qctl.tui.snapshot import Snapshot, TagRow, View

NOW_S = 1_795_354_200.0
TIMELINE = {"handler": {"exec": ["true"]}, "quota": {"twitter": 5}, "queue": "posts", "directed": True}
MAIL = {"handler": {"exec": ["true"]}, "quota": {}}
DOCUMENT: dict[str, Any] = {
    "version": 1,
    "environment": "production",
    "broker": {"amqp": "amqp://127.0.0.1:1/"},
    "quotas": {"twitter": "20000/h", "mails": "500/d"},
    "consumers": {"timeline": TIMELINE, "mail": MAIL},
    "hosts": {"web-1": {}, "web-2": {"consumers": {"timeline": {}}}},
}


@pytest.fixture
def where(tmp_path: Path) -> Where:
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(DOCUMENT), encoding="utf-8")
    return Where(load(path))


def about(view: View, *keys: str, **changed: Any) -> Selection:
    return Selection(view, keys, Snapshot(NOW_S, changed.pop("status", Status(NOW_S, False)), **changed))


def tag_row(tag: str, host: str, consumer: str) -> TagRow:
    return TagRow(tag, host, consumer, consumer, State.CONSUMING)


def planned(draft: Draft, **values: str) -> Plan:
    return draft.plan({field.id: field.value for field in draft.fields} | values)


@pytest.mark.parametrize(
    ("view", "keys", "targets"),
    [
        (View.HOSTS, ("web-1",), ("web-1/timeline", "web-1/mail")),
        (View.HOSTS, ("web-1", "web-2"), ("web-1/timeline", "web-1/mail", "web-2/timeline")),
        (View.CONSUMERS, ("qctl/web-2/timeline/0",), ("web-2/timeline",)),
        (View.CONSUMERS, ("qctl/web-2/timeline/0", "qctl/web-2/timeline/1"), ("web-2/timeline",)),
        (View.CONSUMERS, ("qctl/web-2/timeline/0/directed",), ("web-2/timeline",)),
        (View.QUEUES, ("posts",), ("web-1/timeline", "web-2/timeline")),
        (View.QUEUES, ("posts", "mail"), ("web-1/timeline", "web-2/timeline", "web-1/mail")),
    ],
    ids=str,
)
def test_rows_become_the_targets_that_are_shown(
    where: Where, view: View, keys: tuple[str, ...], targets: tuple[str, ...]
) -> None:
    plan = planned(pausing.draft(where, Verb.PAUSE, about(view, *keys)))
    assert plan.targets == targets


def test_a_tag_of_the_wire_stands_for_what_its_row_says_it_is(where: Where) -> None:
    # given a row whose tag does not look like qctl's
    rows = (tag_row("weird", "web-1", "mail"),)
    plan = planned(pausing.draft(where, Verb.RESUME, about(View.CONSUMERS, "weird", tags=rows)))
    assert (plan.targets, plan.verb) == (("web-1/mail",), "Resume")


def test_a_queue_that_hosts_also_have_for_themselves_may_concern_hosts_that_come_later(where: Where) -> None:
    [more] = planned(pausing.draft(where, Verb.PAUSE, about(View.QUEUES, "posts"))).more
    assert "also later" in more


@pytest.mark.parametrize(
    ("view", "keys", "words"),
    [
        (View.HOSTS, ("web-7",), "has no host 'web-7'"),
        (View.CONSUMERS, ("qctl/web-2/mail/0",), "runs no consumer 'mail'"),
        (View.CONSUMERS, ("\x1b[2J",), "must be 1 to 255"),
        (View.QUEUES, ("nobody's",), "must be 1 to 255"),
        (View.QUEUES, ("foreign",), "has no queue 'foreign'"),
        (View.QUEUES, (), "nothing named"),
    ],
    ids=str,
)
def test_what_the_inventory_does_not_have_is_no_draft(
    where: Where, view: View, keys: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        pausing.draft(where, Verb.PAUSE, about(view, *keys))
    assert words in caught.value.message


def test_in_production_the_target_is_typed_and_of_many_their_number(where: Where) -> None:
    one = planned(pausing.draft(where, Verb.PAUSE, about(View.HOSTS, "web-1")))
    assert one.typed == "web-1"
    # given targets that nobody would type
    crowded = {**DOCUMENT, "hosts": {f"server-number-{n:03}": {} for n in range(20)}}
    where.inventory.path.write_text(json.dumps(crowded), encoding="utf-8")
    many = Where(load(where.inventory.path))
    plan = planned(pausing.draft(many, Verb.PAUSE, about(View.HOSTS, *many.inventory.hosts)))
    assert plan.typed == "40 consumers"
    assert plan.what == "pause 20 targets, 40 consumers"
    assert len(plan.typed) <= MAX_TYPED_CHARS


def test_in_production_a_single_name_is_typed_however_long_it_is(where: Where) -> None:
    host, queue = f"web-{'x' * 50}", "q" * 60
    consumers = {**DOCUMENT["consumers"], "posts": {**MAIL, "queue": queue}}
    document = {**DOCUMENT, "hosts": {host: {"consumers": {"posts": {}, "mail": {}}}}, "consumers": consumers}
    where.inventory.path.write_text(json.dumps(document), encoding="utf-8")
    there = Where(load(where.inventory.path))
    assert planned(pausing.draft(there, Verb.PAUSE, about(View.HOSTS, host))).typed == host
    assert planned(triage.purge(there, about(View.QUEUES, queue))).typed == queue
    assert planned(triage.draft(there, Act.DROP, about(View.DEAD, f"{queue}.dead"))).typed == f"{queue}.dead"
    assert planned(triage.draft_of(there, Act.DROP, f"{queue}.dead", [letter("a")], NOW_S)).typed == f"{queue}.dead"
    several = planned(triage.draft(there, Act.DROP, about(View.DEAD, f"{queue}.dead", "mail.dead")))
    assert several.typed == "2 queues"


def test_a_pause_says_of_when_each_state_is(where: Where) -> None:
    rows = (ConsumerRow("web-1", "mail", "mail", State.CONSUMING, seen=Seen(Source.LIVE, NOW_S - 900)),)
    status = Status(NOW_S, False, consumers=rows)
    plan = planned(pausing.draft(where, Verb.PAUSE, about(View.HOSTS, "web-1", status=status)))
    then = f"{datetime.fromtimestamp(NOW_S - 900, UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    assert plan.targets == ("web-1/timeline", f"web-1/mail  consuming, heard at {then}")


def test_what_lasts_for_a_time_lasts_from_its_confirmation_on(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    # given somebody who takes ten minutes to confirm
    given: list[Any] = []
    monkeypatch.setattr(ops_pausing, "Pausing", lambda order, **_: given.append(order))
    now = [NOW_S]
    monkeypatch.setattr("time.time", lambda: now[0])
    plan = planned(pausing.draft(where, Verb.PAUSE, about(View.HOSTS, "web-2")), lasts="1h", reason=" release ")
    assert plan.what == "pause web-2, 1 consumer for 1h"
    now[0] += 600
    # when
    plan.start()
    # then
    [order] = given
    assert (order.until_s, order.reason) == (now[0] + 3600, "release")


def test_a_time_of_day_is_the_one_that_was_read_and_not_the_next_days(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a time that passes while the question stands there
    given: list[Any] = []
    monkeypatch.setattr(ops_pausing, "Pausing", lambda order, **_: given.append(order))
    ends_s = NOW_S + 600
    clock = f"{datetime.fromtimestamp(ends_s, UTC).astimezone():%H:%M:%S}"
    now = [NOW_S]
    monkeypatch.setattr("time.time", lambda: now[0])
    plan = planned(pausing.draft(where, Verb.PAUSE, about(View.HOSTS, "web-2")), lasts=clock)
    now[0] += 601
    # when
    plan.start()
    # then it is an order whose time is over, which is refused when it is given
    assert given[0].until_s == pytest.approx(ends_s, abs=1)
    with pytest.raises(UsageError, match="its time is over"):
        ops_pausing.check_end(given[0].until_s)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lasts": "soon"}, "expected a duration"),
        ({"lasts": "0s"}, "above 0"),
        ({"lasts": "25:00"}, "expected a time"),
        ({"lasts": "2020-01-01T10:00"}, "has passed"),
        ({"reason": "x" * 501}, "at most 500 characters"),
    ],
    ids=str,
)
def test_what_is_typed_wrongly_is_no_plan(where: Where, values: Mapping[str, str], words: str) -> None:
    draft = pausing.draft(where, Verb.PAUSE, about(View.HOSTS, "web-1"))
    with pytest.raises(UsageError) as caught:
        planned(draft, **values)
    assert words in caught.value.message


def test_the_proof_shows_first_what_is_in_doubt_and_only_full_proof_is_good(where: Where) -> None:
    selection = pausing.selected(where.inventory, about(View.HOSTS, "web-1"))
    order = ops_pausing.order(Verb.PAUSE, selection, reason=None, until_s=None)
    command = ops_pausing.commands(order)
    rows = (
        Verdict("web-1", "mail", "mail", "qctl/web-1/mail/0", "paused", Standing.PROVEN, "", NOW_S, 2, 7),
        Verdict("web-1", "timeline", "posts", "qctl/web-1/timeline/0", "unproven", Standing.UNPROVEN, "is silent"),
    )
    shown = pausing.proof(Report(order, "oncall", command, NOW_S, rows, ("a note",)))
    assert [plain(row.cells[0]) for row in shown.rows] == ["web-1/timeline/0", "web-1/mail/0"]
    assert [plain(cell) for cell in shown.rows[0].cells[1:]] == ["? NOT proven", "unproven", "-", "-", "-"]
    assert [plain(cell) for cell in shown.rows[1].cells[4:]] == ["2", "7"]
    assert [row.why for row in shown.rows] == ["is silent", ""]
    assert shown.summary == "pause web-1, by oncall: 1 proven, 1 NOT proven"
    assert (shown.notes, shown.is_good) == (("a note",), False)
    assert pausing.proof(Report(order, "oncall", command, NOW_S, rows[:1], ())).is_good
    # and of what was never confirmed there is nothing to sum up
    assert pausing.proof(Report(order, "", (), None, (), ())).summary == ""


def test_a_limit_that_a_task_cannot_be_paid_from_is_warned_of(where: Where) -> None:
    draft = limits.draft(where, Verb.QUOTA_SET, about(View.QUOTAS, "web-1/twitter"))
    plan = planned(draft, rates="3/h", lasts="1h")
    assert plan.what == "set web-1/twitter to 3/h for 1h"
    assert plan.targets == ("web-1/twitter, 20000/h by the inventory",)
    [warning] = plan.warnings
    assert "web-1/timeline: a task is expected to need 5 units of twitter, more than 3" in warning
    assert planned(draft, rates="10/s, 100/h").warnings == ()


def test_several_quotas_are_set_at_once_and_named_one_by_one(where: Where) -> None:
    about_both = about(View.QUOTAS, "web-1/twitter", "web-2/twitter")
    plan = planned(limits.draft(where, Verb.QUOTA_CLEAR, about_both))
    assert plan.what == "clear what was set for 2 quotas"
    assert [line.partition(",")[0] for line in plan.targets] == ["web-1/twitter", "web-2/twitter"]


class Setting:
    """A command whose quota says what becomes of it: two fail in different ways, one holds, one is never confirmed."""

    def __init__(self, selection: quotas.Selection, command: Command) -> None:
        self._selection, self._command = selection, command
        self._confirmed = False

    @property
    def report(self) -> quotas.Report:
        rows = (quotas.Verdict("web-1", "twitter", Standing.PROVEN, "", ("9/h",), True, 2),) if self._confirmed else ()
        return quotas.Report(self._selection, self._command, "oncall", self._confirmed, rows)

    async def run(self, *_: Any, **__: Any) -> None:
        match str(self._selection):
            case "web-1/mails":
                raise BrokerBlocked("not confirmed: the log refused it", hint="Look.")
            case "web-2/twitter":
                raise BrokerRefused("not given, the broker refuses it")
            case "web-2/mails":
                await asyncio.Event().wait()
        self._confirmed = True


def test_of_several_limits_each_that_was_not_given_has_a_row_and_its_reason(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "Setting", Setting)
    monkeypatch.setattr(access, "operator", lambda _: (None, None))

    def given(*keys: str) -> Any:
        return planned(limits.draft(where, Verb.QUOTA_SET, about(View.QUOTAS, *keys)), rates="9/h").start()

    def rows(act: Any) -> list[tuple[str, str, str]]:
        return [(plain(row.cells[0]), plain(row.cells[1]), row.why) for row in act.shown().rows]

    act = given("web-1/twitter", "web-1/mails", "web-2/twitter")
    # when
    with pytest.raises(QctlError, match="2 of 3 quotas failed, the first one: not confirmed") as caught:
        asyncio.run(act.run())
    # then
    assert caught.value.hint == "Look."
    assert rows(act) == [
        ("web-1/mails", "✗ failed", "not confirmed: the log refused it"),
        ("web-2/twitter", "✗ failed", "not given, the broker refuses it"),
        ("web-1/twitter", "✓ proven", ""),
    ]
    assert act.shown().summary == "1 of 3 given, by oncall: 1 proven"
    assert not act.shown().is_good

    # and of one that was stopped nobody knows; of a single one its own error says it all
    act = given("web-2/mails", "web-1/twitter")
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(act.run(), 0.05))
    assert rows(act)[0] == ("web-2/mails", "? not known", "")
    act = given("web-1/mails")
    with pytest.raises(BrokerBlocked, match="not confirmed"):
        asyncio.run(act.run())
    assert rows(act) == []


@pytest.mark.parametrize(
    ("keys", "rates", "words"),
    [
        (("web-1/twitter",), "", "no limit yet"),
        (("web-1/twitter",), "many", "expected a rate"),
        (("web-1/twitter",), " ".join(["1/s"] * 99), "at most"),
        (("web-1/twiter",), "1/s", "has no quota 'twiter'"),
        (("web-9/twitter",), "1/s", "has no host 'web-9'"),
        (tuple(f"web-1/{n}" for n in range(limits.MAX_QUOTAS + 1)), "1/s", "more than 50"),
    ],
    ids=["nothing", "no rate", "many rates", "quota", "host", "many quotas"],
)
def test_what_is_no_limit_is_no_plan(where: Where, keys: tuple[str, ...], rates: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned(limits.draft(where, Verb.QUOTA_SET, about(View.QUOTAS, *keys)), rates=rates)
    assert words in caught.value.message


def test_a_limit_whose_time_passed_while_it_was_read_is_not_given(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.time()]
    monkeypatch.setattr("time.time", lambda: now[0])
    clock = f"{datetime.fromtimestamp(now[0] + 60, UTC).astimezone():%H:%M:%S}"
    draft = limits.draft(where, Verb.QUOTA_SET, about(View.QUOTAS, "web-1/twitter"))
    plan = planned(draft, rates="30/h", lasts=clock)
    now[0] += 61
    with pytest.raises(UsageError, match="its time is over"):
        plan.start()


@pytest.mark.parametrize(
    ("view", "key", "consumer"),
    [
        (View.CONSUMERS, "qctl/web-2/timeline/0", "timeline"),
        (View.QUEUES, "posts", "timeline"),
        (View.QUEUES, "foreign", ""),
        (View.CONSUMERS, "\x1b]0;x", ""),
    ],
)
def test_the_consumer_of_the_row_stands_in_the_form(where: Where, view: View, key: str, consumer: str) -> None:
    assert enqueueing.draft(where, about(view, key)).fields[0].value == consumer


def test_an_enqueue_says_how_many_and_where(where: Where) -> None:
    draft = enqueueing.draft(where, about(View.QUEUES, "posts"))
    plan = planned(draft, payload='{"user": 7}', count="20")
    assert (plan.what, plan.typed) == ("enqueue 20 tasks for timeline", "timeline")
    assert plan.targets == ("queue posts", 'payload {"user": 7}')


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"payload": "{"}, "the payload is"),
        ({"payload": "text"}, "the payload is"),
        ({"payload": "NaN"}, "the payload is"),
        ({"payload": '"' + "x" * (1 << 20) + '"'}, "longer than 1MiB"),
        ({"payload": "\ud800"}, "the payload is"),
        ({"count": "0"}, "from 1 to 10000"),
        ({"count": "10001"}, "from 1 to 10000"),
        ({"count": "٣"}, "from 1 to 10000"),
        ({"count": "9" * 5000}, "from 1 to 10000"),
        ({"consumer": "timelime"}, "has no consumer 'timelime'"),
        ({"consumer": " "}, "no consumer yet"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_task_is_no_plan(where: Where, values: Mapping[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned(enqueueing.draft(where, about(View.QUEUES, "posts")), **values)
    assert words in caught.value.message


def dead_row(queue: str, ready: int | None, at_s: float = NOW_S - 3) -> QueueRow:
    return QueueRow(queue, work=False, ready=ready, seen=Seen(Source.BROKER, at_s))


def test_a_replay_shows_how_many_lie_there_and_how_old_that_is(where: Where) -> None:
    rows = (dead_row("posts.dead", 12),)
    draft = triage.draft(where, Act.REPLAY, about(View.DEAD, "posts.dead", dead=rows))
    plan = planned(draft, rate="10/s")
    assert plan.what == "replay every dead letter of posts.dead, at most 10/s"
    # as an instant, which stays true while somebody thinks
    then = f"{datetime.fromtimestamp(NOW_S - 3, UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    assert plan.targets == (f"posts.dead: 12 there at {then}",)
    assert plan.typed == "posts.dead"


def test_a_drop_says_that_nothing_brings_them_back_and_unknown_numbers_are_said_to_be(where: Where) -> None:
    rows = (dead_row("posts.dead", None),)
    plan = planned(triage.draft(where, Act.DROP, about(View.DEAD, "posts.dead", dead=rows)))
    assert plan.what == "drop every dead letter of posts.dead"
    assert plan.targets == ("posts.dead: how many there are is not known",)
    assert plan.more == ("what is dropped is gone for good",)


def test_what_is_no_rate_is_no_plan(where: Where) -> None:
    with pytest.raises(QctlError, match="expected a rate"):
        planned(triage.draft(where, Act.REPLAY, about(View.DEAD, "posts.dead")), rate="fast")


def letter(identity: str) -> DeadLetter:
    return DeadLetter(
        "posts.dead", f"key-{identity}", identity, "t", "poison", "", 1, 0, 3, None, NOW_S - 60, "", 2, b"{}", {}
    )


def test_marked_letters_are_named_one_by_one(where: Where) -> None:
    draft = triage.draft_of(where, Act.DROP, "posts.dead", [letter("a"), letter("b")], NOW_S)
    plan = planned(draft)
    assert plan.what == "drop 2 dead letters of posts.dead"
    assert plan.targets == ("a  t  poison  1m00s ago", "b  t  poison  1m00s ago")


def test_a_purge_says_what_it_takes_and_what_stays(where: Where) -> None:
    status = Status(NOW_S, False, queues=(QueueRow("posts", ready=7, unacked=2, seen=Seen(Source.BROKER, NOW_S)),))
    plan = planned(triage.purge(where, about(View.QUEUES, "posts", status=status)))
    then = f"{datetime.fromtimestamp(NOW_S, UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"
    assert (plan.what, plan.targets) == ("purge posts", (f"posts: 7 there, 2 in hand at {then}",))
    assert "what consumers have in hand stays" in plan.more[0]


def test_what_a_purge_threw_away_is_said_also_when_it_is_stopped_right_after(
    where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a connection that does not end after the first queue is empty
    async def purge(_: Any, queue: str, *, connect_timeout_s: float, on_purged: Any) -> Any:
        on_purged(queues.Purged(queue, 45, 2))
        await asyncio.Event().wait()

    monkeypatch.setattr(queues, "purge", purge)
    act = planned(triage.purge(where, about(View.QUEUES, "posts", "mail"))).start()
    # when
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(act.run(), 0.05))
    # then
    assert act.shown().summary == "posts: purged 45, 2 were in hand and stay"
    assert not act.shown().is_good


def test_a_queue_that_is_nobodys_here_is_not_purged(where: Where) -> None:
    with pytest.raises(UnknownName):
        triage.purge(where, about(View.QUEUES, "foreign"))


@pytest.mark.parametrize("verb", [Verb.PAUSE, Verb.QUOTA_CLEAR])
def test_who_is_no_operator_is_refused_before_anybody_is_contacted(
    where: Where, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    # given a broker that is not there, and a user whom no worker would obey
    where.inventory.path.write_text(json.dumps({**DOCUMENT, "operators": ["oncall"]}), encoding="utf-8")
    strict = Where(load(where.inventory.path))
    monkeypatch.setenv("QCTL_USERNAME", "mallory")
    monkeypatch.setenv("QCTL_PASSWORD", "pw")
    if verb is Verb.PAUSE:
        act: Any = planned(pausing.draft(strict, verb, about(View.HOSTS, "web-1"))).start()
    else:
        act = planned(limits.draft(strict, verb, about(View.QUOTAS, "web-1/twitter"))).start()
    # when
    with pytest.raises(BrokerRefused, match="'mallory' is not an operator"):
        asyncio.run(act.run())
    # then nothing of it is claimed
    assert not act.is_given
    assert (act.shown().rows, act.shown().summary) == ((), "")


@pytest.mark.parametrize("act", ["pause", "enqueue", "replay", "purge"])
def test_a_broker_that_is_not_there_is_one_sentence_with_the_next_step(
    where: Where, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setenv("QCTL_USERNAME", "oncall")
    monkeypatch.setenv("QCTL_PASSWORD", "pw")
    near = Where(where.inventory, connect_timeout_s=0.2)
    drafts = {
        "pause": lambda: pausing.draft(near, Verb.PAUSE, about(View.HOSTS, "web-1")),
        "enqueue": lambda: enqueueing.draft(near, about(View.QUEUES, "posts")),
        "replay": lambda: triage.draft(near, Act.REPLAY, about(View.DEAD, "posts.dead")),
        "purge": lambda: triage.purge(near, about(View.QUEUES, "posts")),
    }
    work = planned(drafts[act]()).start()
    with pytest.raises(BrokerUnreachable) as caught:
        asyncio.run(work.run())
    assert "127.0.0.1:1/ does not answer" in caught.value.message
    assert caught.value.hint
    assert (work.shown().summary, work.shown().is_good) == ("", False)
