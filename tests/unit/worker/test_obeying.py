"""What a process does with what it hears from the control log and from its own host; the broker is not needed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from inspect import signature
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.message import Outgoing, utc
from qctl.control.desired import SEEN_BEFORE, Desired, fold
from qctl.control.event import Command, Record, Verb
from qctl.control.log import Heard, Known
from qctl.control.target import Target
from qctl.errors import LedgerError
from qctl.quota import Limit, Policy
from qctl.units import NS_PER_S
from qctl.worker import obey
from qctl.worker.consumer import LiveConsumer
from qctl.worker.limits import LOOKS, Limits
from qctl.worker.obey import Obeying
from qctl.worker.state import State
from tests.unit.worker.stand_ins import hearing

BEGIN = Known(7, "hello", Desired())
STEP_S = 5.0


class Ledger:
    """In place of the leases: the limits that were configured, or why they cannot be."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.units: dict[str, int] = {}
        self.looked = 0

    def look(self) -> dict[str, object]:
        self.looked += 1
        limits = {name: Limit(units, NS_PER_S) for name, units in self.units.items()}
        return {name: SimpleNamespace(limits=[SimpleNamespace(limit=one)]) for name, one in limits.items()}

    def readings(self) -> dict[str, object]:
        return {}

    def configure(self, policies: list[Policy]) -> None:
        if self.fault is not None:
            raise self.fault
        self.units |= {policy.name: policy.limits[0].units for policy in policies}


class Courier:
    """Keeps what would be sent, or says why not."""

    username = "worker"

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.why_not = ""

    def send(self, outgoing: Outgoing) -> str:
        if not self.why_not:
            self.sent.append(outgoing)
        return self.why_not


class Scene:
    """One process of web-1 with two consumers, one of which has a directed queue."""

    def __init__(self) -> None:
        self.live = {name: self._consumer(name, directed=name == "calls") for name in ("calls", "mail")}
        self.ledger = Ledger()
        self.limits = Limits(
            cast(Any, self.ledger),
            "web-1",
            [Policy("api", (Limit(1000, NS_PER_S),)), Policy("sms", (Limit(5, NS_PER_S),))],
        )
        self.courier = Courier()
        self.reports: list[dict[str, Any]] = []
        self.obeying = Obeying(
            host="web-1",
            index=0,
            pid=11,
            consumers=self.live,
            limits=self.limits,
            courier=cast(Any, self.courier),
            report=lambda **event: self.reports.append(event),
        )
        self.log = BEGIN

    @staticmethod
    def _consumer(name: str, *, directed: bool) -> LiveConsumer:
        queues = {name: f"qctl/web-1/{name}/0"}
        if directed:
            queues[f"{name}@web-1"] = f"qctl/web-1/{name}/0/directed"
        return hearing(name, queues)

    def states(self) -> dict[str, State]:
        return {
            tag.removeprefix("qctl/web-1/"): state
            for live in self.live.values()
            for tag, _, state in live.subscriptions()
        }

    def paused(self) -> set[str]:
        return {tag for tag, state in self.states().items() if state is State.PAUSED}

    def say(self, command: Command, *, refused: str = "", reply_to: str = "asker") -> None:
        """The log says this next."""
        desired = self.log.desired if refused else fold(self.log.desired, [command])
        self.log = Known(self.log.offset + 1, command.id, desired)
        record = Record(self.log.offset, "qctl.control", command.id, command.user, command.body(), reply_to)
        self.obeying.hear(Heard(record, command, refused, desired))

    async def answers(self, count: int = 1) -> list[dict[str, Any]]:
        await until(lambda: len(self.courier.sent) >= count)
        return [json.loads(one.body) for one in self.courier.sent]


async def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + STEP_S
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)


def command(verb: Verb = Verb.PAUSE, number: int = 1, **fields: Any) -> Command:
    target = fields.pop("target", Target(host="web-1", consumer="calls"))
    return Command(f"{number:032x}", "2026-11-22T21:00:00.000Z", verb, target, user="ops", **fields)


def scenario(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    def run(caplog: pytest.LogCaptureFixture) -> None:
        async def whole() -> None:
            scene = Scene()
            await scene.obeying.begin(BEGIN)
            await test(scene, *[caplog] * ("caplog" in signature(test).parameters))

        asyncio.run(whole())

    run.__name__ = test.__name__
    return run


@scenario
async def test_a_pause_applies_where_it_is_heard_and_is_answered_with_a_row_a_tag(scene: Scene) -> None:
    scene.say(command(reason="deploy", claimed_by="me@here"))

    # Then at once, and to what it names alone
    assert scene.paused() == {"calls/0", "calls/0/directed"}
    (answer,) = await scene.answers()
    assert {key: answer[key] for key in ("v", "id", "host", "index", "pid", "refused", "quotas")} == {
        "v": 1,
        "id": command().id,
        "host": "web-1",
        "index": 0,
        "pid": 11,
        "refused": None,
        "quotas": [],
    }
    assert [(row["tag"], row["state"], row["by"], row["cancelled_at"], row["running"]) for row in answer["rows"]] == [
        ("qctl/web-1/calls/0", "paused", "ops", None, 0),
        ("qctl/web-1/calls/0/directed", "paused", "ops", None, 0),
    ]
    assert answer["rows"][0]["remains"] == [
        {"id": command().id, "target": "web-1/calls", "by": "ops", "reason": "deploy", "until": None}
    ]
    (sent,) = scene.courier.sent
    assert (sent.exchange, sent.routing_key) == ("qctl.replies", "asker")
    assert (sent.properties.correlation_id, sent.properties.user_id) == (command().id, "worker")


@scenario
async def test_an_answer_waits_until_the_tag_is_cancelled_for_certain(scene: Scene) -> None:
    # Given a tag that is there, a delivery given back by it before, and three that the pause gives back
    mail = scene.live["mail"]
    keeper = mail._keepers["mail"]
    keeper.subscribed, keeper.given_back = True, 1

    def pause(pauses: Any) -> None:
        keeper.given_back += 3
        LiveConsumer.pause(mail, pauses)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mail, "pause", pause)
        scene.say(command(target=Target(host="web-1")))
    assert len(scene.paused()) == 3

    await asyncio.sleep(0.1)
    assert scene.courier.sent == []

    keeper.subscribed, keeper.cancelled_at_s = False, 1_700_000_000.25
    (answer,) = await scene.answers()
    assert answer["rows"][2]["cancelled_at"] == "2023-11-14T22:13:20.250Z"
    assert answer["rows"][2]["given_back"] == 3


@scenario
async def test_a_resume_lifts_its_part_and_says_what_remains(scene: Scene) -> None:
    scene.say(command(number=1, target=Target(host="*", consumer="calls")))
    scene.say(command(number=2))
    scene.say(command(Verb.RESUME, 3, target=Target(queue="calls")))

    assert scene.paused() == {"calls/0/directed"}
    resumed = next(one for one in await scene.answers(3) if one["id"] == command(number=3).id)
    assert [(row["tag"], row["state"], row["remains"]) for row in resumed["rows"]] == [
        ("qctl/web-1/calls/0", "consuming", [])
    ]


@scenario
async def test_what_is_refused_or_no_event_changes_nothing_and_is_answered(scene: Scene) -> None:
    scene.say(command(), refused="user ops is not an operator")
    assert scene.paused() == set()
    record = Record(9, "qctl.control", "x", "ops", b"{", "asker")
    scene.obeying.hear(Heard(record, None, "not understood: no JSON", Desired()))

    refused, unknown = await scene.answers(2)
    assert refused["refused"] == "user ops is not an operator"
    assert [row["state"] for row in refused["rows"]] == ["consuming", "consuming"]
    assert (unknown["id"], unknown["refused"], unknown["rows"]) == ("x", "not understood: no JSON", [])


@scenario
async def test_who_cannot_be_meant_or_is_not_asked_does_not_answer(scene: Scene) -> None:
    scene.say(command(number=1, target=Target(host="web-2")))
    scene.say(command(number=2), reply_to="")
    # A hello of another process
    scene.obeying.hear(Heard(Record(20, "qctl.hello", "n", "worker", b"{}", "asker"), None, "", scene.log.desired))
    # but who might be, and has nothing of it, says so
    scene.say(replace(command(number=3), target=Target(host="web-1", consumer="other")))
    scene.obeying._offset = 0
    scene.say(replace(command(number=4), target=Target(host="web-1", consumer="other")))

    (answer,) = await scene.answers()
    assert (answer["id"], answer["rows"]) == (command(number=4).id, [])


@scenario
async def test_an_event_that_is_heard_twice_is_obeyed_once_and_one_given_twice_is_answered_twice(scene: Scene) -> None:
    scene.say(command(number=1))
    scene.say(command(Verb.RESUME, 2))
    # Another follower of the same log says the pause again
    record = Record(8, "qctl.control", command().id, "ops", b"", "asker")
    scene.obeying.hear(Heard(record, command(), "", fold(Desired(), [command()])))
    assert scene.paused() == set()

    # The asker did not see its confirm, and gave it again
    scene.say(command(number=1), refused=SEEN_BEFORE)
    assert scene.paused() == set()
    again = [one for one in await scene.answers(3) if one["id"] == command(number=1).id]
    assert [(one["refused"], one["rows"][0]["state"]) for one in again] == [(None, "consuming")] * 2


@scenario
async def test_a_timed_pause_ends_by_itself_and_stays_ended_when_the_clock_is_set_back(scene: Scene) -> None:
    scene.say(command(until_s=time.time() + 0.15), reply_to="")
    assert scene.paused()

    await until(lambda: not scene.paused())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(obey, "time", SimpleNamespace(time=lambda: 1000.0))
        scene.say(command(number=2, target=Target(host="web-1", consumer="mail")), reply_to="")
    assert scene.paused() == {"mail/0"}


@scenario
async def test_a_quota_command_is_answered_when_the_ledger_has_the_limit(
    scene: Scene,
) -> None:
    # Given a ledger that cannot be written for a while
    scene.ledger.fault = LedgerError("the disk is full")
    scene.say(command(Verb.QUOTA_SET, 1, target=Target(host="web-*"), quota="api", rates=("20/h",), reason="storm"))
    await asyncio.sleep(0.1)
    assert scene.courier.sent == []

    scene.ledger.fault = None
    (answer,) = await scene.answers()
    assert scene.ledger.units == {"api": 20, "sms": 5}
    (quota,) = answer["quotas"]
    assert (quota["quota"], quota["limits"], quota["override"]["rates"]) == ("api", ["20/h"], ["20/h"])
    assert (quota["override"]["by"], quota["override"]["reason"]) == ("ops", "storm")

    scene.say(command(Verb.QUOTA_CLEAR, 2, target=Target(host="web-1"), quota="*"))
    cleared = (await scene.answers(2))[1]
    assert [(it["quota"], it["limits"], it["override"]) for it in cleared["quotas"]] == [
        ("api", ["1000/s"], None),
        ("sms", ["5/s"], None),
    ]


@scenario
async def test_a_bug_while_a_limit_is_set_is_told_and_the_limit_is_set_after_all(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.ledger.fault = KeyError("api")
    scene.say(command(Verb.QUOTA_SET, 1, target=Target(host="web-*"), quota="api", rates=("20/h",)))
    await until(lambda: "limits cannot be changed yet: KeyError" in caplog.text)

    scene.ledger.fault = None
    await scene.answers()
    assert scene.ledger.units == {"api": 20, "sms": 5}


@scenario
async def test_who_is_cut_off_raises_no_limit_until_it_hears_again(scene: Scene) -> None:
    # Given a limit that ends soon, and another process of the host that has set a lower one meanwhile
    ending = {"target": Target(host="web-1"), "quota": "api", "rates": ("100/s",), "until_s": time.time() + 0.3}
    scene.say(command(Verb.QUOTA_SET, 1, **ending))
    await scene.answers()
    assert scene.ledger.units["api"] == 100
    scene.ledger.units["api"] = 50
    scene.obeying.cut_off()

    # When it ends in this one, which does not know of that
    await until(lambda: scene.ledger.looked)
    await asyncio.sleep(0.05)
    assert scene.ledger.units["api"] == 50

    # Then it is the inventory's again once the log says so
    await scene.obeying.begin(scene.log)
    assert scene.ledger.units["api"] == 1000


@scenario
async def test_race_of_a_later_hello_that_has_read_less_than_was_heard_undoes_nothing(scene: Scene) -> None:
    # Given a pause that was heard and proven, and another reading of the log that is not there yet
    behind = scene.log
    scene.say(command())
    await scene.answers()

    # when that one takes over, and hears the pause in its turn
    await scene.obeying.begin(behind)
    assert scene.paused() == {"calls/0", "calls/0/directed"}
    scene.log = behind
    scene.say(command())

    # then it is paused throughout and answered once
    assert scene.paused() == {"calls/0", "calls/0/directed"}
    await asyncio.sleep(0.05)
    assert len(scene.courier.sent) == 1

    # and after a loss the log counts, though it may be another, shorter one
    scene.obeying.cut_off()
    await scene.obeying.begin(Known(2, "x", Desired()))
    assert scene.paused() == set()


@scenario
async def test_before_anything_is_consumed_the_limits_must_hold(scene: Scene) -> None:
    scene.ledger.fault = LedgerError("the disk is full")
    setting = command(Verb.QUOTA_SET, 1, target=Target(host="*"), quota="api", rates=("20/h",))

    with pytest.raises(LedgerError):
        await scene.obeying.begin(Known(9, "x", fold(Desired(), [setting, command()])))

    assert scene.paused() == {"calls/0", "calls/0/directed"}


@scenario
async def test_an_order_of_the_host_holds_until_the_log_says_it_and_then_what_the_log_says(scene: Scene) -> None:
    order = replace(command(), local=True)
    scene.obeying.obey_local(order.body())
    assert scene.paused()
    await until(lambda: scene.reports)
    (report,) = scene.reports
    assert report["event"] == "answer"
    assert (report["answer"]["id"], report["answer"]["refused"]) == (order.id, None)
    assert report["answer"]["rows"][0]["state"] == "paused"

    # What the log says of other things does not end it, nor does another connection
    scene.say(command(number=2, target=Target(host="web-1", consumer="mail")), reply_to="")
    assert len(scene.paused()) == 3
    await scene.obeying.begin(scene.log)
    assert len(scene.paused()) == 3

    # When the log says it, then a resume there ends it
    scene.say(order, reply_to="")
    assert len(scene.paused()) == 3
    scene.say(command(Verb.RESUME, 3), reply_to="")
    assert scene.paused() == {"mail/0"}
    # and the same order, of a supervisor that has not seen that, is answered and not obeyed again
    scene.obeying.obey_local(order.body())
    assert scene.paused() == {"mail/0"}
    assert scene.obeying._local == {}
    await until(lambda: len(scene.reports) == 2)


@scenario
async def test_a_pause_of_the_host_that_the_log_refuses_holds_until_a_resume_and_is_told(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    order = replace(command(), local=True)
    scene.obeying.obey_local(order.body())
    scene.say(order, refused="user ops is not an operator", reply_to="")
    assert len(scene.paused()) == 2
    assert (
        "pause web-1/calls given on this host stays until a resume, though: user ops is not an operator" in caplog.text
    )

    # It holds on another connection too, whatever else the log says, until that resumes it, in parts or at once
    scene.say(command(number=2, target=Target(host="web-1", consumer="mail")), reply_to="")
    await scene.obeying.begin(scene.log)
    assert len(scene.paused()) == 3
    scene.say(command(Verb.RESUME, 3, target=Target(queue="calls")), reply_to="")
    assert scene.paused() == {"calls/0/directed", "mail/0"}
    scene.say(command(Verb.RESUME, 4, target=Target(host="web-1")), reply_to="")
    assert scene.paused() == set()


@scenario
async def test_a_resume_of_the_host_that_the_log_refuses_ends_with_that_and_is_told(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.say(command(), reply_to="")
    order = replace(command(Verb.RESUME, 2), local=True)
    scene.obeying.obey_local(order.body())
    assert scene.paused() == set()
    scene.say(order, refused="user ops is not an operator", reply_to="")
    assert len(scene.paused()) == 2
    assert "resume web-1/calls given on this host does not hold any more: user ops is not an operator" in caplog.text


@scenario
async def test_a_timed_pause_of_the_host_that_the_log_refuses_ends_in_its_time(scene: Scene) -> None:
    order = replace(command(until_s=time.time() + 0.15), local=True)
    scene.obeying.obey_local(order.body())
    scene.say(order, refused="user ops is not an operator", reply_to="")
    assert scene.paused()

    await until(lambda: not scene.paused())
    assert scene.obeying._kept == ()


@scenario
async def test_an_order_that_makes_no_sense_is_answered_and_changes_nothing(scene: Scene) -> None:
    quota = replace(command(Verb.QUOTA_CLEAR, 5, target=Target(host="web-1")), quota="api")
    for body in (b"", b"[]", b"{}", b'{"v":1,"id":7}', quota.body()):
        scene.obeying.obey_local(body)
    await until(lambda: len(scene.reports) == 5)

    assert all(one["answer"]["refused"].startswith("not understood: ") for one in scene.reports)
    assert scene.reports[4]["answer"]["id"] == quota.id
    assert scene.paused() == set()


@scenario
async def test_an_answer_that_cannot_be_sent_is_dropped_and_only_so_many_wait(scene: Scene) -> None:
    scene.courier.why_not = "the broker is blocked"
    scene.say(command(number=1))
    await until(lambda: not scene.obeying._answers)
    assert scene.paused()

    scene.courier.why_not = ""
    scene.live["calls"]._keepers["calls"].subscribed = True
    for number in range(2, obey.MAX_ANSWERS + 10):
        scene.say(command(number=number))
    assert len(scene.obeying._answers) == obey.MAX_ANSWERS
    scene.live["calls"]._keepers["calls"].subscribed = False
    assert len(await scene.answers(obey.MAX_ANSWERS)) == obey.MAX_ANSWERS


def test_an_instant_is_written_as_everywhere() -> None:
    assert obey._instant(0.5) == utc(0.5) == "1970-01-01T00:00:00.500Z"
    assert obey._instant(None) is None


@scenario
async def test_limits_that_the_ledger_has_lost_are_set_again_while_it_is_known_what_holds(scene: Scene) -> None:
    scene.ledger.units["api"] = 7
    assert scene.ledger.readings() == {}  # as of a ledger that does not have them

    scene.obeying.cut_off()
    await until(lambda: scene.obeying._limiting is None)
    for _ in range(2 * LOOKS):
        scene.obeying.look_after_limits()
    assert scene.obeying._limiting is None

    await scene.obeying.begin(scene.log)
    await until(lambda: scene.obeying._limiting is None)
    scene.ledger.units["api"] = 7
    for _ in range(LOOKS):
        scene.obeying.look_after_limits()
    await until(lambda: scene.ledger.units["api"] == 1000)

    # When one of a newer inventory sees to them
    scene.obeying.leave_limits()
    scene.ledger.units["api"] = 7
    for _ in range(9 * LOOKS):
        scene.obeying.look_after_limits()
    scene.say(command(Verb.QUOTA_SET, 1, target=Target(host="web-*"), quota="api", rates=("20/h",)))
    await scene.answers()
    assert scene.ledger.units["api"] == 7
