"""F05: a worker process is stopped for half a minute, and goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import time

from tests.faults.rows import row
from tests.faults.scene import CONCURRENCY, Scene, ended_at_last
from tests.fleet import wait_until

STOPPED_S = 30.0
TASK_S = 0.5


@row("F05", "SIGSTOP of one of two processes for 30 s, in the middle of tasks and with more in its hands")
def test_what_a_stopped_process_had_is_done_by_others_and_its_late_acks_are_dropped(scene: Scene) -> None:
    # Given two processes, busy
    scene.stage()
    worker = scene.start(processes=2)
    scene.enqueue("plain", 600, s=TASK_S)
    scene.await_count("done", 3 * CONCURRENCY)
    scene.steady()
    victim = worker.pids()[0]
    wait_until("tasks in its hands", lambda: _in_hand(scene, victim))

    # When one is stopped for longer than the broker believes in it
    os.kill(victim, signal.SIGSTOP)
    at_ns = time.monotonic_ns()
    with ended_at_last(lambda: os.kill(victim, signal.SIGCONT)):
        time.sleep(0.2)  # what it wrote before
        had = _in_hand(scene, victim)
        time.sleep(STOPPED_S - 0.2)
        again = {
            one.task
            for one in scene.history.events()
            if one.event == "started" and one.at_ns > at_ns and one.pid != victim
        }
    scene.hurry()
    scene.await_ended()

    # Then the others have done what it had, and what it says late is dropped without a word to the broker
    scene.may_duplicate = CONCURRENCY
    scene.record.figure("tasks it had in its hands", len(had), at_least=1)
    scene.record.figure("of them not redelivered while it was stopped", len(had - again), equals=0)
    scene.record.figure(
        "channels closed for an unknown delivery (406)", worker.log().count("406 PRECONDITION"), equals=0
    )
    wait_until("both processes consume again", lambda: len(scene.fleet.consumer_tags()) == 4)


def _in_hand(scene: Scene, pid: int) -> set[str]:
    found: set[str] = set()
    for one in scene.history.events():
        if one.pid == pid and one.event == "started":
            found.add(one.task)
        elif one.event == "done":
            found.discard(one.task)
    return found
