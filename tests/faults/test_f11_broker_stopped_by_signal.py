"""F11: the broker is there and says nothing: SIGSTOP."""

from __future__ import annotations

import os
import signal
import time

from tests.faults.rows import row
from tests.faults.scene import CONCURRENCY, Scene, cpu_s, ended_at_last

PROCESSES = 2
#: Within this they are done with what they had in their hands.
BUSY_S = 2.0


@row("F11", "SIGSTOP of the broker for 20 s, two heartbeats, with two busy processes", timeout_s=240)
def test_workers_wait_quietly_for_a_broker_that_stands_still_for_a_while(own_scene: Scene) -> None:
    _stop_and_go_on(own_scene, stopped_s=20)


@row("F11", "SIGSTOP of the broker for 120 s, with two busy processes", timeout_s=360)
def test_workers_look_quietly_for_a_broker_that_stands_still_for_long(own_scene: Scene) -> None:
    _stop_and_go_on(own_scene, stopped_s=120)


def _stop_and_go_on(scene: Scene, *, stopped_s: float) -> None:
    # Given two processes, busy
    scene.stage()
    scene.start(processes=PROCESSES)
    scene.enqueue("plain", 2500, s=0.1)
    scene.enqueue("calls", 20, s=0.2)
    scene.await_count("done", 200)
    before = scene.rate_over(2.0, prefix="plain")
    scene.steady()

    # When the broker stops answering, without closing anything
    pid = scene.node.info().pid
    assert pid is not None
    group, pids = os.getpgid(pid), scene.pids()
    assert len(pids) == PROCESSES + 1
    os.killpg(group, signal.SIGSTOP)
    with ended_at_last(lambda: os.killpg(group, signal.SIGCONT)):
        time.sleep(BUSY_S)
        used_s = {one: cpu_s(one) for one in pids}
        since_s = time.monotonic()
        time.sleep(stopped_s - BUSY_S)
        shares = [(cpu_s(one) - used_s[one]) / (time.monotonic() - since_s) for one in pids]
    since_ns = time.monotonic_ns()

    # Then nobody has been busy with it, and they are at work soon after it is
    back_s = scene.await_recovery_s(since_ns=since_ns, rate_before=before, prefix="plain")
    scene.may_duplicate = PROCESSES * 2 * CONCURRENCY
    scene.record.figure("stopped, s", stopped_s)
    scene.record.figure("tasks a second before", before)
    scene.record.figure("processor share of the busiest process meanwhile", max(shares), at_most=0.05)
    scene.record.figure("processor share of all of them together", sum(shares), at_most=0.05)
    scene.record.figure("back, s", back_s, at_most=10)
