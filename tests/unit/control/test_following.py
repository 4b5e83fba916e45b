"""Reading the control log up to one's own hello and following it: what is told, when it is given up, what is proven."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.message import utc
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost
from qctl.control import desired as desireds
from qctl.control import following as followings
from qctl.control import log as control_log
from qctl.control.desired import Folding
from qctl.control.event import Command, Hello, Verb
from qctl.control.following import NOTHING, Known
from qctl.control.log import Heard, Live
from qctl.control.stream import Place
from qctl.control.target import Subject, Target
from qctl.errors import ControlLogError
from tests.wire import until

OWN = "own"
TIMELINE = Subject("web-1", "timeline", "timeline", "qctl/web-1/timeline/0")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_log, "LOOK_S", 0.01)
    monkeypatch.setattr(control_log, "STALL_S", 0.05)
    monkeypatch.setattr(control_log, "SAY_S", 0.1)


class Log:
    """A log that delivers what it is told to, and a process that follows it."""

    def __init__(self, operators: frozenset[str] | None = None, known: Known = NOTHING) -> None:
        self.closed: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self.is_open = True
        self.cancelled: list[Any] = []
        self.raw = SimpleNamespace(add_on_cancel_callback=self.cancelled.append, basic_ack=lambda *_, **__: None)
        self.live = Live(cast("Any", None), cast("Any", self), OWN, known, Folding(known.desired, operators))
        self.heard: list[Heard] = []
        self.offset = known.offset
        self._tag = 0

    async def close(self) -> None:
        pass

    def deliver(self, exchange: str, identity: str, body: bytes, *, user: str = "oncall", skip: int = 0) -> None:
        self.offset += 1 + skip
        self._tag += 1
        method = SimpleNamespace(delivery_tag=self._tag, exchange=exchange)
        headers = {"x-stream-offset": self.offset}
        properties = SimpleNamespace(headers=headers, message_id=identity, user_id=user, reply_to="answers")
        self.live.following.stream._deliver(None, method, cast("Any", properties), body)

    def greet(self, nonce: str, **more: Any) -> None:
        self.deliver("qctl.hello", nonce, Hello(nonce, "web-1", 0, "ledger", "box", 1).body(), **more)

    def command(self, verb: Verb, *, until_s: float | None = None, host: str = "web-1", **more: Any) -> str:
        given = Command(f"{self.offset + 1:032x}", utc(0), verb, Target(host=host), until_s=until_s)
        self.deliver("qctl.control", given.id, given.body(), **more)
        return given.id

    async def follow(self) -> None:
        self.greet(OWN)
        assert self.live.met.done()
        self.live.go_on(self.heard.append)
        await asyncio.sleep(0)

    def paused(self) -> list[str]:
        return [each.id for each in self.live.known.desired.pauses_of(TIMELINE, time.time())]


async def meet(log: Log, said: list[str], fate: Published = Published.CONFIRMED) -> None:
    taken: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
    taken.set_result(fate)
    connection = SimpleNamespace(blocked=False)
    publisher = SimpleNamespace(why_lost=None, channel=SimpleNamespace(connection=connection))
    await asyncio.wait_for(control_log._meet(log.live, taken, cast("Publisher", publisher), said.append), 5)


# Up to the hello


def test_given_a_log_that_takes_long_then_it_is_read_to_its_end_and_that_is_said() -> None:
    async def main() -> list[str]:
        log, said = Log(), list[str]()
        meeting = asyncio.ensure_future(meet(log, said))
        for number in range(30):
            log.greet(f"other-{number}")
            await asyncio.sleep(0.02)
        log.greet(OWN)
        await meeting
        return said

    said = asyncio.run(main())

    assert len(said) > 1
    assert said[0].startswith("reading the control log, ")


def test_given_silence_then_it_is_given_up() -> None:
    async def main() -> None:
        await meet(Log(), [])

    with pytest.raises(ControlLogError, match="nothing came for"):
        asyncio.run(main())


def test_given_a_hello_that_reached_no_queue_then_it_says_which_binding_is_missing() -> None:
    async def main() -> None:
        await meet(Log(), [], Published.UNROUTABLE)

    with pytest.raises(ControlLogError, match=r"qctl\.hello is not bound to qctl\.control\.log"):
        asyncio.run(main())


def test_given_commands_before_the_hello_then_they_hold_when_it_comes() -> None:
    async def main() -> None:
        log = Log()
        paused = log.command(Verb.PAUSE)
        log.command(Verb.PAUSE, until_s=time.time() - 1)
        log.greet(OWN)
        await meet(log, [])

        assert log.paused() == [paused]
        assert len(log.live.known.desired.pauses) == 1  # what has ended is forgotten

    asyncio.run(main())


def test_given_more_pauses_than_can_be_when_the_end_is_reached_then_it_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desireds, "MAX_PAUSES", 2)

    async def main() -> None:
        # Given so many on the way, but not at the end, then it is no error
        log = Log()
        for _ in range(3):
            log.command(Verb.PAUSE)
        log.command(Verb.RESUME)
        log.greet(OWN)
        await meet(log, [])

        log = Log()
        for _ in range(3):
            log.command(Verb.PAUSE)
        log.greet(OWN)
        await meet(log, [])

    with pytest.raises(ControlLogError, match="more than 2 pauses in force") as failed:
        asyncio.run(main())
    assert "qctl resume" in failed.value.hint


@pytest.mark.parametrize(("bound", "words"), [("MAX_WHILE_READING", "commands in force"), ("MAX_HOSTS", "hosts")])
def test_given_a_log_that_would_fill_the_memory_then_it_is_given_up_on_the_way(
    bound: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followings, bound, 0)

    async def main() -> None:
        log = Log()
        log.command(Verb.PAUSE)
        log.greet(OWN)
        await meet(log, [])

    with pytest.raises(ControlLogError, match=words):
        asyncio.run(main())


def test_given_a_log_that_lifts_ever_more_parts_then_it_is_given_up_on_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(followings, "MAX_LIFTED_WHILE_READING", 3)

    async def main() -> None:
        log = Log()
        log.command(Verb.PAUSE, host="*")
        for host in ("a", "b", "c", "c", "c"):
            log.command(Verb.RESUME, host=host)
        assert not log.live.met.done()
        # what is lifted as a whole takes its parts along
        log.command(Verb.RESUME, host="*")
        log.command(Verb.PAUSE, host="*")
        for host in ("a", "b", "c"):
            log.command(Verb.RESUME, host=host)
        assert not log.live.met.done()
        log.command(Verb.RESUME, host="d")
        await meet(log, [])

    with pytest.raises(ControlLogError, match="more than 3 parts"):
        asyncio.run(main())


# Behind the hello


def test_given_what_comes_right_behind_the_hello_then_it_is_told_once_somebody_listens_and_in_order() -> None:
    async def main() -> None:
        log = Log()
        log.greet(OWN)
        first = log.command(Verb.PAUSE)
        second = log.command(Verb.PAUSE)
        assert log.live.known.desired.pauses == ()

        log.live.go_on(log.heard.append)
        assert log.heard == []  # not before the caller had its turn
        await asyncio.sleep(0)

        assert [each.record.id for each in log.heard] == [first, second]
        assert [len(each.desired.pauses) for each in log.heard] == [1, 2]
        assert log.live.known == Known(2, second, log.heard[-1].desired)

    asyncio.run(main())


def test_given_entries_behind_the_hello_then_each_is_told_with_what_it_meant() -> None:
    async def main() -> None:
        log = Log(operators=frozenset({"oncall"}))
        await log.follow()
        log.command(Verb.PAUSE)
        log.command(Verb.RESUME, user="mallory")
        log.deliver("qctl.control", "x", b"{}")
        log.greet("another")

        pause, refused, nonsense, hello = log.heard
        assert (pause.command is not None, pause.refused) == (True, "")
        assert refused.command is not None
        assert refused.refused == "user mallory is not an operator"
        assert (nonsense.command, nonsense.refused) == (None, "not understood: version None is not known")
        assert nonsense.record.reply_to == "answers"
        assert (hello.command, hello.refused) == (None, "")
        assert len(log.paused()) == 1

    asyncio.run(main())


def test_given_an_entry_without_an_id_at_the_end_then_what_is_known_stands_at_the_one_before() -> None:
    async def main() -> None:
        log = Log()
        await log.follow()
        log.deliver("qctl.control", "", b"{}")

        assert (log.live.known.offset, log.live.known.id) == (0, OWN)
        log.deliver("qctl.control", "x", b"{}")
        assert (log.live.known.offset, log.live.known.id) == (2, "x")

    asyncio.run(main())


def test_given_a_pause_that_ends_then_it_is_forgotten_when_that_is_asked_for() -> None:
    async def main() -> None:
        log = Log()
        await log.follow()
        log.command(Verb.PAUSE, until_s=time.time() + 0.05)
        assert log.paused()
        await until("it has ended", lambda: not log.paused())

        assert log.live.drop_ended().pauses == ()
        assert log.live.known.desired.pauses == ()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (lambda log: log.closed.set_result(ChannelLost(320, "gone")), "320 gone"),
        (lambda log: log.cancelled[0](None), "the broker ended the reading"),
        (lambda log: log.command(Verb.PAUSE, skip=-2), "entry -1 came after entry 0"),
    ],
)
def test_given_a_log_that_cannot_be_followed_any_more_then_that_is_known(happens: Any, words: str) -> None:
    async def main() -> None:
        log = Log()
        await log.follow()
        assert not log.live.lost.done()

        happens(log)
        await until("it is lost", log.live.lost.done)

        assert words in str(log.live.lost.result())
        log.command(Verb.PAUSE, skip=10)
        assert log.heard == []

    asyncio.run(main())


def test_given_one_pause_too_many_then_the_log_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desireds, "MAX_PAUSES", 1)

    async def main() -> None:
        log = Log()
        await log.follow()
        log.command(Verb.PAUSE)
        log.command(Verb.PAUSE)

        assert len(log.heard) == 1
        assert "more than 1 pauses in force" in str(log.live.lost.result())

    asyncio.run(main())


def test_given_that_it_is_closed_then_nothing_is_told_and_it_is_not_lost() -> None:
    async def main() -> None:
        log = Log()
        await log.follow()
        await log.live.close()
        log.command(Verb.PAUSE)
        log.closed.set_result(ChannelLost(0, "closed"))
        await asyncio.sleep(0)

        assert log.heard == []
        assert not log.live.lost.done()

    asyncio.run(main())


# A gap


@pytest.mark.parametrize("still_there", [True, False])
def test_given_a_gap_while_following_then_it_goes_on_only_if_nothing_was_cut_off(
    still_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer: list[Any] = []

    async def still_has(_connection: Any, place: Place) -> bool:
        asked = asyncio.get_running_loop().create_future()
        answer.append((asked, place.offset))
        return bool(await asked)

    monkeypatch.setattr(control_log, "still_has", still_has)

    async def main() -> None:
        # Given entries behind a gap
        log = Log()
        await log.follow()
        log.command(Verb.PAUSE)
        log.command(Verb.RESUME, skip=3)
        log.command(Verb.PAUSE)
        await until("it is asked", lambda: answer)

        # Then they wait until it is known that the entry before is still there
        assert answer[0][1] == 1
        assert len(log.heard) == 1
        answer[0][0].set_result(still_there)
        await asyncio.sleep(0.01)

        if still_there:
            assert [each.record.offset for each in log.heard] == [1, 5, 6]
            assert not log.live.lost.done()
        else:
            assert len(log.heard) == 1
            assert "was cut off behind entry 1" in str(log.live.lost.result())

    asyncio.run(main())


# What is refused


def test_given_a_flood_of_what_is_refused_then_each_kind_of_each_user_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, logger="qctl.control")
    monkeypatch.setattr(followings, "MAX_KINDS", 4)

    async def main() -> None:
        log = Log(operators=frozenset())
        await log.follow()
        for _ in range(50):
            log.command(Verb.PAUSE, user="mallory")
            log.command(Verb.PAUSE, user="")
            log.deliver("qctl.control", "x", b"\xff", user="mallory\x1b[2J")
        for number in range(50):
            log.deliver("qctl.control", "x", json.dumps({"v": number + 2}).encode(), user=f"user-{number}")

        assert log.paused() == []
        assert log.live.following.refused == 200

    asyncio.run(main())
    assert [line.partition("ignored: ")[2] for line in caplog.messages] == [
        "offset=1 user=mallory: user mallory is not an operator",
        "offset=2 user=-: not understood: nobody's: it has no user_id",
        "offset=3 user=mallory [2J: not understood: not UTF-8 at byte 1",
        "offset=151 user=user-0: not understood: version 2 is not known",
    ]


def test_given_what_was_known_then_it_goes_on_from_there() -> None:
    async def main() -> None:
        before = Log()
        paused = before.command(Verb.PAUSE)
        await before.follow()
        known = before.live.known

        log = Log(known=known)
        log.offset -= 1
        log.greet(OWN)  # the entry to go on from
        log.greet("another")
        assert log.live.known is known
        assert log.paused() == [paused]

    asyncio.run(main())
