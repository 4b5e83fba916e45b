"""F14: the broker runs out of disk while it is used."""

from __future__ import annotations

from tests.brokers import Broker
from tests.faults import alarms
from tests.faults.rows import row
from tests.faults.scene import Scene


def _raise(broker: Broker) -> None:
    broker.ctl("set_disk_free_limit", "1000000000000000")


def _clear(broker: Broker) -> None:
    broker.ctl("set_disk_free_limit", "50MB")


@row("F14", "rabbitmqctl set_disk_free_limit to a petabyte, and back after a minute")
def test_deliveries_go_on_and_publishers_are_told_to_try_again(scene: Scene) -> None:
    alarms.play(scene, _raise, _clear)
