"""F13: the broker runs out of memory while it is used."""

from __future__ import annotations

from tests.brokers import Broker
from tests.faults import alarms
from tests.faults.rows import row
from tests.faults.scene import Scene


def _raise(broker: Broker) -> None:
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")


def _clear(broker: Broker) -> None:
    broker.ctl("set_vm_memory_high_watermark", "0.4")


@row("F13", "rabbitmqctl set_vm_memory_high_watermark absolute 1, and back after a minute")
def test_deliveries_go_on_and_publishers_are_told_to_try_again(scene: Scene) -> None:
    alarms.play(scene, _raise, _clear)
