"""A task whose delivery was lost while it ran is not run again beside itself: its redelivery gets its outcome."""

from __future__ import annotations

from typing import Any, cast

import pytest

from qctl.broker.message import ATTEMPT, Properties
from qctl.broker.subscription import Subscription
from qctl.worker import orphans
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.orphans import KEPT_S, MAX_KEPT, Orphans
from qctl.worker.outcome import ACK, GIVE_BACK


class Place:
    """What a delivery knows of its subscription."""

    def __init__(self, queue: str = "work") -> None:
        self.queue = queue
        self.is_open = True


def delivery(
    place: Place, identity: str | None = "a", body: bytes = b"{}", headers: dict[str, Any] | None = None, tag: int = 1
) -> Delivery:
    properties = Properties(message_id=identity, headers=headers)
    return Delivery(cast("Subscription", place), tag, False, properties, body, 0.0)


def lost(orphaned: Orphans, *running: Delivery) -> None:
    """Their channel ends."""
    for one in running:
        cast("Place", one.subscription).is_open = False
    orphaned.add(running)


def test_a_redelivery_waits_for_the_run_and_is_settled_with_its_outcome() -> None:
    # Given a run that has lost its delivery
    orphaned, first, again = Orphans(), delivery(Place()), delivery(Place(), tag=9)
    lost(orphaned, first)
    # When the message comes back, then it is not to be run
    assert orphaned.adopt(again) is True
    # and when the run ends, it is the redelivery that is settled
    settled = orphaned.ended(Settled(first, ACK, run_s=1.0))
    assert settled is not None
    assert settled.delivery is again
    assert settled.outcome is ACK


def test_a_redelivery_after_the_run_has_ended_is_settled_at_once_and_only_once() -> None:
    orphaned, first = Orphans(), delivery(Place())
    lost(orphaned, first)
    assert orphaned.ended(Settled(first, ACK, run_s=1.0)) is None

    found = orphaned.adopt(again := delivery(Place()))
    assert isinstance(found, Settled)
    assert found.delivery is again
    assert found.outcome is ACK
    assert orphaned.adopt(delivery(Place())) is False


def test_a_redelivery_that_is_lost_as_well_makes_room_for_the_next() -> None:
    orphaned, first, second, third = Orphans(), *(delivery(Place()) for _ in range(3))
    lost(orphaned, first)
    assert orphaned.adopt(second) is True
    cast("Place", second.subscription).is_open = False
    assert orphaned.adopt(third) is True
    settled = orphaned.ended(Settled(first, ACK, run_s=1.0))
    assert settled is not None
    assert settled.delivery is third


@pytest.mark.parametrize(
    "other",
    [
        delivery(Place(), identity="b"),
        delivery(Place(), identity=None),
        delivery(Place(), body=b"[]"),
        delivery(Place("elsewhere")),
        delivery(Place(), headers={ATTEMPT: 2}),
    ],
    ids=["another id", "no id", "another body", "another queue", "another attempt"],
)
def test_what_is_not_the_same_message_is_a_task_like_any_other(other: Delivery) -> None:
    orphaned = Orphans()
    lost(orphaned, delivery(Place()))
    assert orphaned.adopt(other) is False


def test_of_two_that_look_the_same_only_one_waits() -> None:
    orphaned = Orphans()
    lost(orphaned, delivery(Place()))
    assert orphaned.adopt(delivery(Place())) is True
    assert orphaned.adopt(delivery(Place())) is False


def test_a_run_that_still_has_its_delivery_is_no_orphan() -> None:
    orphaned, running = Orphans(), delivery(Place())
    orphaned.add([running])
    assert orphaned.adopt(delivery(Place())) is False


def test_what_was_given_back_unharmed_is_run_when_it_comes_again() -> None:
    orphaned, first = Orphans(), delivery(Place())
    lost(orphaned, first)
    assert orphaned.ended(Settled(first, GIVE_BACK)) is None
    assert orphaned.adopt(delivery(Place())) is False


def test_an_outcome_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    orphaned, first, now_s = Orphans(), delivery(Place()), [0.0]
    monkeypatch.setattr(orphans.time, "monotonic", lambda: now_s[0])
    lost(orphaned, first)
    orphaned.ended(Settled(first, ACK, run_s=1.0))
    now_s[0] = KEPT_S + 1
    assert orphaned.adopt(delivery(Place())) is False


def test_so_many_outcomes_are_kept_the_latest() -> None:
    orphaned = Orphans()
    runs = [delivery(Place(), identity=str(number)) for number in range(MAX_KEPT + 10)]
    lost(orphaned, *runs)
    for one in runs:
        orphaned.ended(Settled(one, ACK, run_s=1.0))
    assert orphaned.adopt(delivery(Place(), identity="9")) is False
    assert isinstance(orphaned.adopt(delivery(Place(), identity="10")), Settled)
