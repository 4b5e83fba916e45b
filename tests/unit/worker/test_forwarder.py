"""What becomes of a task whose answer, retry or renewal cannot be published, without a broker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.message import Outgoing, Properties
from qctl.broker.publisher import Published
from qctl.worker import forward
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.forward import BROKEN, Forwarder
from qctl.worker.handlers import Answer
from qctl.worker.outcome import ACK, Ending, Outcome


class Place:
    """In place of a subscription: notes what is settled on it."""

    queue = "work"

    def __init__(self) -> None:
        self.is_open = True
        self.acked: list[int] = []
        self.back: list[int] = []
        self.channel = SimpleNamespace(closed=asyncio.get_running_loop().create_future())

    def give_back(self, tags: list[int]) -> None:
        self.back += tags

    def ack(self, tags: list[int]) -> None:
        self.acked += tags


class Publishes:
    """In place of a publisher: each publish raises `error`, or is confirmed."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.sent: list[Outgoing] = []
        self.channel = SimpleNamespace(connection=SimpleNamespace(blocked=False))

    async def publish(self, outgoing: Outgoing) -> Published:
        if self.error:
            raise self.error
        self.sent.append(outgoing)
        return Published.CONFIRMED


class Scene:
    """A forwarder, and what it held and released."""

    def __init__(self, error: Exception | None = None) -> None:
        self.publisher = Publishes(error)
        self.holds: list[str] = []
        self.releases: list[str] = []
        self.forwarder = Forwarder(
            host="web-1",
            work_queue="work",
            persistent=True,
            declarations=(),
            publisher=lambda: cast(Any, self.publisher),
            hold=lambda cause, words: self.holds.append(words),
            release=self.releases.append,
        )

    async def forward(self, place: Place, outcome: Outcome, answer: Answer | None = None) -> None:
        self.forwarder.start(Settled(task(place), outcome, answer, run_s=0.1))
        await self.done()

    async def done(self) -> None:
        await asyncio.gather(*self.forwarder._under_way)


def task(place: Place) -> Delivery:
    return Delivery(cast(Any, place), 1, False, Properties(message_id="a", reply_to="asker"), b"{}", 0.0)


def test_an_answer_that_amqp_cannot_carry_is_no_reason_to_call_again() -> None:
    async def scenario() -> None:
        scene, place = Scene(ValueError("not a message that AMQP can carry")), Place()

        await scene.forward(place, ACK, Answer(b"", "text/plain; x=" + "y" * 300, 200))

        assert (place.acked, place.back) == ([1], [])

    asyncio.run(scenario())


def test_after_an_error_that_nobody_foresaw_the_pause_grows_and_is_for_all_that_failed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forward, "REST_FIRST_S", 0.02)
    monkeypatch.setattr(forward, "REST_LAST_S", 0.06)

    async def scenario() -> None:
        scene = Scene(ZeroDivisionError("a bug"))
        for pause_s in (0.02, 0.04, 0.06, 0.06):
            places = Place(), Place()
            # When two fail at once
            await asyncio.gather(*(scene.forward(place, Outcome(Ending.LATER)) for place in places))

            # Then both go back, and the consumer is held once
            assert [place.back for place in places] == [[1], [1]]
            assert len(scene.holds) == 1
            assert scene.holds.pop().endswith(f"goes on in {pause_s:g} s")
            assert BROKEN not in scene.releases
            # and released when the pause is over
            await asyncio.sleep(pause_s + 0.01)
            assert BROKEN in scene.releases
            scene.releases.clear()

    asyncio.run(scenario())


def test_what_was_lost_before_its_turn_is_not_published_again() -> None:
    async def scenario() -> None:
        scene, place = Scene(), Place()

        scene.forwarder.renew(task(place))
        place.is_open = False
        await scene.done()

        assert scene.publisher.sent == []
        assert place.acked == []

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [ValueError("x"), TimeoutError(), ZeroDivisionError("a bug")])
def test_what_cannot_be_renewed_goes_back_as_it_is(error: Exception) -> None:
    async def scenario() -> None:
        scene, place = Scene(error), Place()

        scene.forwarder.renew(task(place))
        await scene.done()

        assert (place.acked, place.back) == ([], [1])

    asyncio.run(scenario())
