"""Whether the entries of the control log that come are the right ones, and what waits while nobody may hear of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.session import ChannelLost
from qctl.control import stream as streams
from qctl.control.desired import Desired
from qctl.control.event import MAX_EVENT_BYTES, Record
from qctl.control.following import Known
from qctl.control.stream import ACK_EVERY, Elsewhere, Step, Stream, Track
from qctl.errors import ControlLogError
from tests.wire import until


def record(offset: int, identity: str | None = None) -> Record:
    return Record(offset, "qctl.hello", f"id-{offset}" if identity is None else identity, "tasks", b"{}")


def known(offset: int) -> Known:
    return Known(offset, f"id-{offset}", Desired())


def test_given_the_beginning_then_every_entry_is_the_next_one() -> None:
    track = Track(None)

    assert [track.take(record(n)) for n in (0, 1, 2)] == [Step.NEXT] * 3


def test_given_places_that_were_passed_over_then_that_is_said() -> None:
    track = Track(None)

    assert [track.take(record(n)) for n in (0, 3, 4)] == [Step.NEXT, Step.BEHIND_A_GAP, Step.NEXT]


@pytest.mark.parametrize("offset", [1, 500])
def test_given_a_log_that_begins_later_then_it_is_an_error_unless_that_is_wanted(offset: int) -> None:
    with pytest.raises(ControlLogError, match=f"begins at entry {offset}"):
        Track(None).take(record(offset))
    assert Track(None, anywhere=True).take(record(offset)) is Step.NEXT


def test_given_an_entry_to_go_on_from_then_what_comes_up_to_it_is_known_already() -> None:
    track = Track(known(7))

    assert [track.take(record(n)) for n in (5, 6, 7, 8)] == [Step.BEFORE] * 3 + [Step.NEXT]


@pytest.mark.parametrize("found", [record(7, "another"), record(8), record(500)])
def test_given_another_entry_there_then_the_log_is_another_or_was_cut_off(found: Record) -> None:
    with pytest.raises(Elsewhere):
        Track(known(7)).take(found)


def test_given_ones_own_entry_before_that_then_the_log_is_another_shorter_one() -> None:
    with pytest.raises(Elsewhere):
        Track(known(7), own="mine").take(record(2, "mine"))


@pytest.mark.parametrize("offset", [0, 4, 5])
def test_given_an_entry_that_came_before_then_it_is_an_error(offset: int) -> None:
    track = Track(None)
    track.take(record(0))
    track.take(record(5))

    with pytest.raises(ControlLogError, match=f"entry {offset} came after entry 5"):
        track.take(record(offset))


class Wire:
    """A channel as a stream sees it: what was acknowledged, and entries given to it by hand."""

    def __init__(self) -> None:
        self.acked: list[int] = []
        self.records: list[Record] = []
        self.lost: list[object] = []
        self.closed: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self.is_open = True
        self.raw = SimpleNamespace(
            add_on_cancel_callback=lambda _: None, basic_ack=lambda tag, multiple: self.acked.append(tag)
        )
        self.stream = Stream(cast("Any", self), self.records.append, self.lost.append)
        self.tag = 0

    def deliver(self, body: bytes = b"{}", *, headers: dict[str, Any] | None = None) -> None:
        self.tag += 1
        method = SimpleNamespace(delivery_tag=self.tag, exchange="qctl.control")
        place = {"x-stream-offset": self.tag} if headers is None else headers
        properties = SimpleNamespace(headers=place, message_id="id", user_id="u", reply_to="answers")
        self.stream._deliver(None, method, cast("Any", properties), body)


async def _held_and_released() -> None:
    """Entries come in order, are acknowledged many at once, and wait unacknowledged while the stream is held."""
    wire = Wire()
    for _ in range(ACK_EVERY):
        wire.deliver()
    assert wire.acked == [ACK_EVERY]
    wire.stream.hold()
    for _ in range(2 * ACK_EVERY):
        wire.deliver()
    assert len(wire.records) == ACK_EVERY
    assert wire.acked == [ACK_EVERY]

    wire.stream.release()

    assert [each.offset for each in wire.records] == list(range(1, 3 * ACK_EVERY + 1))
    assert wire.acked == [ACK_EVERY, 3 * ACK_EVERY]


def test_given_a_stream_that_is_held_then_entries_wait_and_the_broker_sends_no_more_than_it_may() -> None:
    asyncio.run(_held_and_released())


def test_given_an_entry_of_16_mib_then_no_more_of_it_is_kept_than_shows_that_it_is_too_large() -> None:
    async def main() -> Wire:
        wire = Wire()
        wire.stream.hold()
        wire.deliver(b"x" * (16 << 20))
        wire.stream.release()
        return wire

    assert [len(each.body) for each in asyncio.run(main()).records] == [MAX_EVENT_BYTES + 1]


@pytest.mark.parametrize("headers", [{}, {"x-stream-offset": "7"}, {"x-stream-offset": None}])
def test_given_an_entry_without_its_place_then_the_log_cannot_be_followed(headers: dict[str, Any]) -> None:
    async def main() -> Wire:
        wire = Wire()
        wire.deliver(headers=headers)
        return wire

    wire = asyncio.run(main())

    assert wire.lost == ["an entry came without its place"]
    assert wire.records == []


def test_what_came_is_acknowledged_soon_though_little_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ACK_WITHIN_S", 0.01)

    async def scenario() -> None:
        # Given two entries, and later one that comes while nothing is handed on
        wire = Wire()
        wire.deliver()
        wire.deliver()
        await until("an acknowledgement", lambda: wire.acked == [2])
        wire.stream.hold()
        wire.deliver()
        await asyncio.sleep(0.05)

        # Then what is held is not acknowledged before it is handed on
        assert wire.acked == [2]
        wire.stream.release()
        await until("the other", lambda: wire.acked == [2, 3])

    asyncio.run(scenario())
