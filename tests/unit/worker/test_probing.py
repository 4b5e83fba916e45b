"""The task that finds out whether the upstream serves again."""

from __future__ import annotations

from typing import Any, cast

import pytest

from qctl.broker.message import Properties
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.outcome import ACK, GIVE_BACK, Ending, Outcome
from qctl.worker.probing import Probing
from qctl.worker.upstream import Seen, Sight


def delivery() -> Delivery:
    return Delivery(cast(Any, None), 1, False, Properties(message_id="a"), b"", 0.0)


@pytest.fixture
def released() -> list[str]:
    return []


@pytest.fixture
def probing(released: list[str]) -> Probing:
    """Held, since a task was refused."""
    found = Probing(ladder_s=(1.0, 60.0), hold=lambda cause, words: None, release=released.append)
    found.weigh(Settled(delivery(), ACK, run_s=0.1, seen=Seen(Sight.REFUSED, "refused")))
    return found


def test_a_probe_that_is_acknowledged_releases_whatever_it_met_on_the_way(
    probing: Probing, released: list[str]
) -> None:
    probe = delivery()
    probing.take(probe)
    probing.weigh(Settled(probe, ACK, run_s=0.1))

    assert released == ["upstream refuses"]


@pytest.mark.parametrize(
    ("outcome", "run_s"), [(GIVE_BACK, None), (Outcome(Ending.LATER), 0.1), (Outcome(Ending.DEAD), 0.1), (ACK, None)]
)
def test_a_probe_that_did_not_succeed_and_saw_nothing_does_not_release(
    probing: Probing, released: list[str], outcome: Outcome, run_s: float | None
) -> None:
    probe = delivery()
    probing.take(probe)
    probing.weigh(Settled(probe, outcome, run_s=run_s))

    assert released == []
    assert probing.probe is None


def test_another_task_that_saw_nothing_does_not_release(probing: Probing, released: list[str]) -> None:
    probing.take(delivery())
    probing.weigh(Settled(delivery(), ACK, run_s=0.1))

    assert released == []
