"""F06: RabbitMQ is stopped and started again under the workers."""

from __future__ import annotations

import time

from tests.faults.rows import row
from tests.faults.scene import CONCURRENCY, Scene, ended_at_last

PROCESSES = 2
AWAY_S = 3.0


@row("F06", "rabbitmqctl stop_app, 3 s, start_app, with two busy processes", selected=True)
def test_workers_are_back_soon_after_the_broker_is(scene: Scene) -> None:
    # Given two processes, busy with tasks that call and tasks that do not
    scene.stage()
    scene.start(processes=PROCESSES)
    scene.enqueue("plain", 2500 if scene.thorough else 1500, s=0.1)
    scene.enqueue("calls", 100, s=0.3)
    scene.await_count("done", 200)
    before = scene.rate_over(2.0, prefix="plain")
    scene.steady()

    # When the broker goes away and comes back
    broker = scene.vhost.broker
    broker.stop_app()
    with ended_at_last(broker.start_app):
        time.sleep(AWAY_S)
    since_ns = time.monotonic_ns()

    # Then they are back at work, and repeat at most what they had in hand
    back_s = scene.await_recovery_s(since_ns=since_ns, rate_before=before, prefix="plain")
    scene.may_duplicate = PROCESSES * 2 * CONCURRENCY
    scene.record.figure("tasks a second before", before)
    scene.record.figure("back, s", back_s, at_most=10)
