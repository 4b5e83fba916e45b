"""What one consumer does with its deliveries when channels are lost, without a broker: each is settled or dropped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker import topology
from qctl.broker.message import Properties
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.outcome import ACK
from qctl.worker.pace import PREFETCH_EVERY_S, Allowance
from tests.unit.worker.stand_ins import Place, Slots, hearing


class Scene:
    """A consumer of one queue, of somebody else's when `foreign`."""

    def __init__(self, *, foreign: bool = False) -> None:
        foreigners = (topology.Existing("work"),) if foreign else ()
        self.live = hearing("calls", {"work": "tag"}, declarations=foreigners, served=False)
        self.slots = Slots()
        self.live.executor = cast(Any, self.slots)

    def subscribed(self) -> Place:
        place = Place()
        self.live._opened.add(cast(Any, place))
        return place

    def deliver(self, place: Place, *, redelivered: bool = False, count: int = 0) -> None:
        headers = {"x-delivery-count": count} if count else None
        self.live.deliver(cast(Any, place), 1, redelivered, Properties(message_id="a", headers=headers), b"{}")

    def begin(self) -> Delivery:
        """A slot takes the first that waits, and may start it."""
        delivery = self.slots.deliveries.pop(0)
        assert self.live.may_start(delivery)
        return delivery

    def end(self, delivery: Delivery) -> None:
        self.live.on_settled(Settled(delivery, ACK, run_s=1.0))
        self.live.flush()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_what_began_in_the_ward_and_is_given_back_runs_when_it_comes_again(scene: Scene) -> None:
    # Given one that was started in a ward which died, so that it waits again, and that a hold then gives back
    first = scene.subscribed()
    scene.deliver(first, redelivered=True, count=3)
    scene.slots.put(scene.begin())
    scene.live.hold("quota", "quota api")
    assert first.back == [1]

    # When its channel ends and it is delivered again
    first.is_open = False
    scene.live.release("quota")
    scene.deliver(scene.subscribed(), redelivered=True, count=4)

    # Then
    assert len(scene.slots.deliveries) == 1


def test_a_redelivery_that_waits_for_a_run_in_the_ward_goes_back_with_it(scene: Scene) -> None:
    # Given one that runs in the ward, whose channel is lost, and whose redelivery waits for its end
    first, second = scene.subscribed(), scene.subscribed()
    scene.deliver(first, redelivered=True, count=3)
    run = scene.begin()
    first.is_open = False
    scene.deliver(second, redelivered=True, count=4)
    assert scene.slots.deliveries == []

    # When the ward dies and a hold takes it back before it runs again
    scene.slots.put(run)
    scene.live.hold("quota", "quota api")

    # Then
    assert second.back == [1]


def test_what_waits_here_of_a_lost_channel_is_dropped_and_the_rest_stays(scene: Scene) -> None:
    lost, alive = scene.subscribed(), scene.subscribed()
    scene.deliver(lost)
    scene.deliver(alive)

    lost.is_open = False
    scene.live.note_lost()

    assert [cast(Any, one.subscription) for one in scene.slots.deliveries] == [alive]
    assert (lost.back, alive.back) == ([], [])


def test_what_is_lost_is_not_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given somebody else's queue, and what came back to it once before
    scene, renewed = Scene(foreign=True), []
    monkeypatch.setattr(scene.live._forwarder, "renew", renewed.append)
    lost, alive = scene.subscribed(), scene.subscribed()
    scene.deliver(lost, redelivered=True, count=1)
    scene.deliver(alive, redelivered=True, count=1)

    # When a hold comes after the loss of a channel
    lost.is_open = False
    scene.live.hold("quota", "quota api")

    # Then only what is still ours is renewed
    assert [one.subscription for one in renewed] == [alive]
    assert lost.back == []


def test_a_run_of_a_subscription_that_was_cancelled_before_is_not_run_beside_itself(scene: Scene) -> None:
    # Given a run whose subscription was cancelled, and whose channel is lost alone
    old, new = scene.subscribed(), scene.subscribed()
    scene.deliver(old)
    run = scene.begin()
    old.is_open = False

    # When it is delivered again, then it is not run
    scene.deliver(new, redelivered=True)
    assert scene.slots.deliveries == []
    # and it is settled when the run ends
    scene.end(run)
    assert new.acked == [1]


def test_a_run_that_ends_before_its_loss_was_noted_is_not_run_again(scene: Scene) -> None:
    old, new = scene.subscribed(), scene.subscribed()
    scene.deliver(old)
    run = scene.begin()
    old.is_open = False
    scene.end(run)

    scene.deliver(new, redelivered=True)
    scene.live.flush()

    assert scene.slots.deliveries == []
    assert new.acked == [1]


def test_a_subscription_with_too_much_in_mind_is_cancelled_and_a_new_one_takes_over(scene: Scene) -> None:
    place = scene.subscribed()
    subscription = SimpleNamespace(gave_back=False, prefetch=1, scattered=False)
    scene.deliver(place)
    keeper = scene.live._keepers["work"]
    assert not keeper.should_cancel(cast(Any, subscription))

    place.scattered = subscription.scattered = True
    scene.end(scene.begin())

    assert keeper._changed.is_set()
    assert keeper.should_cancel(cast(Any, subscription))


def test_a_consumer_holds_what_its_paced_quota_pays_for_also_before_and_after_a_hold() -> None:
    # Given a quota of five tasks a second, of which each may wait for two
    found = [Allowance(interval_s=0.2, patience_s=2.0)]
    live = hearing("calls", {"work": "tag"}, concurrency=16, allowance=lambda: found[0])
    live.executor = cast(Any, Slots())
    assert live.prefetch == 5

    # When tasks turn out to be short, it stays at that
    live.pace.add(1, 0.001, 2)
    live.tick()
    assert live.prefetch == 5
    live.hold("quota", "quota api")
    live.release("quota")
    assert live.prefetch == 5

    # and follows the quota when that is changed
    found[0] = Allowance(interval_s=0.02, patience_s=2.0)
    live._prefetch.changed_s = -PREFETCH_EVERY_S
    live.tick()
    assert live.prefetch == 50
