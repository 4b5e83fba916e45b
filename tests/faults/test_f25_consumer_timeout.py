"""F25: a task that runs longer than the broker's consumer_timeout."""

from __future__ import annotations

import time

from tests.brokers import Broker
from tests.faults.rows import row
from tests.faults.scene import Scene, ended_at_last
from tests.fleet import wait_until

TIMEOUT_S, LONG_S = 5.0, 20.0
#: What this machine's brokers have when nobody configures anything.
DEFAULTS = {"consumer_timeout": 1_800_000, "channel_tick_interval": 60_000, "quorum_tick_interval": 5_000}


def configure(broker: Broker, **milliseconds: int) -> None:
    """Set what the broker goes by from now on; channels ask when they are opened."""
    broker.eval(
        ", ".join(f"application:set_env(rabbit, {name}, {value})" for name, value in milliseconds.items()) + "."
    )


@row("F25", "consumer_timeout 5 s, a task of 20 s, short ones and another consumer beside it")
def test_a_task_longer_than_consumer_timeout_runs_once_and_the_consumer_goes_on(scene: Scene) -> None:
    broker = scene.vhost.broker
    scene.keep(ended_at_last(lambda: configure(broker, **DEFAULTS)))
    configure(broker, consumer_timeout=round(TIMEOUT_S * 1000), channel_tick_interval=256, quorum_tick_interval=256)
    scene.stage()
    worker = scene.start()
    scene.steady()

    # Given a task that takes four times as long
    [long] = scene.enqueue("plain", 1, s=LONG_S)
    scene.await_count("started", 1)
    expires_s = time.monotonic() + TIMEOUT_S
    before = len(worker.log())

    # When the broker takes it back, then this is noticed and said, with what to do about it
    wait_until("the loss", lambda: " web-1/plain down: " in worker.log()[before:])
    lost_s = time.monotonic()
    scene.record.figure("noticed, s", max(0.0, lost_s - expires_s), at_most=2)
    said = worker.log()[before:].partition(" web-1/plain down: ")[2].partition("\n")[0]
    assert "raise consumer_timeout on the broker" in said, said
    # and it consumes again
    wait_until("it consumes", lambda: " web-1/plain consuming" in worker.log()[before:])
    scene.record.figure("consuming again, s", time.monotonic() - lost_s, at_most=5)

    # And for as long as the task runs, whatever comes is done soon, though its redelivery is taken back again and again
    slowest_s = 0.0
    for losses in (2, 3):
        wait_until("it is taken back again", lambda n=losses: worker.log()[before:].count("/plain down: ") >= n)
        names = scene.enqueue("plain", 2, s=0.1)
        at_s = time.monotonic()
        scene.await_ended(names)
        slowest_s = max(slowest_s, time.monotonic() - at_s)
    scene.record.figure("slowest task beside it, s", slowest_s, at_most=5)

    # Then it has run once, with one end, and its neighbour never noticed
    scene.await_ended([long])
    starts = [one for one in scene.history.events() if one.event == "started" and one.task == long]
    scene.record.figure("runs of the long task", len(starts), equals=1)
    assert "web-1/calls down" not in worker.log()
    assert "PRECONDITION_FAILED - unknown delivery tag" not in worker.log()
