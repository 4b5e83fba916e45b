"""F01: kill -9 of a worker process in the middle of its tasks."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence

from tests.faults.history import Event
from tests.faults.rows import row
from tests.faults.scene import CONCURRENCY, LIMIT, WINDOW_S, Scene, age_s
from tests.fleet import Worker, wait_until
from tests.integration.worker_harness import spent

PROCESSES = 3
#: Most that a process leases at once: 2 % of the limit.
LEASE_UNITS = LIMIT // 50
#: A process that lived this long is started anew at once; one that did not, after a pause that grows.
STEADY_S = 5.5


@row("F01", "kill -9 a worker process mid-task, 20 times, two consumers busy, one of them paying")
def test_a_killed_process_repeats_and_leaks_at_most_what_it_had_in_hand(scene: Scene) -> None:
    # Given three processes, busy with tasks that call and tasks that do not
    kills = 20 if scene.thorough else 4
    scene.stage()
    worker = scene.start(processes=PROCESSES)
    scene.enqueue("plain", 1500, s=0.1)
    scene.enqueue("calls", 4 * PROCESSES * CONCURRENCY, s=0.1)  # so that every thread has called once
    scene.await_count("done", 200)
    before = scene.rate_over(2.0, prefix="plain")
    scene.steady()

    # When one of them is killed in the middle of tasks, again and again
    recoveries_s, killed_at_ns = [], []
    for _ in range(kills):
        scene.enqueue("plain", 400, s=0.1)
        scene.enqueue("calls", 2 * PROCESSES * CONCURRENCY, s=1.0)
        victim = _busy_and_steady(scene, worker)
        at_ns = time.monotonic_ns()
        os.kill(victim, signal.SIGKILL)
        killed_at_ns.append(at_ns)
        recoveries_s.append(scene.await_recovery_s(since_ns=at_ns, rate_before=before, prefix="plain"))

    # Then each kill repeats at most what ran, and the work is soon done as fast as before
    scene.may_duplicate = kills * 2 * CONCURRENCY
    scene.record.figure("kills", kills)
    scene.record.figure("tasks a second before", before)
    scene.record.figure("slowest recovery, s", max(recoveries_s), at_most=10)

    # and the ledger has at most a lease and what was in flight for nothing, for each kill that still counts
    scene.hurry()
    scene.await_ended()
    time.sleep(2.0)  # idle leases are given back after a second
    now_ns = time.monotonic_ns()
    counting = sum(now_ns - at_ns < 2 * WINDOW_S * 1e9 for at_ns in killed_at_ns)
    called = sum(now_ns - call.at_ns < WINDOW_S * 1e9 for call in scene.api.calls())
    leaked = spent(scene.fleet, "web-1")["api"] - called
    each = leaked / max(1, counting)
    scene.record.figure("quota leaked a kill", max(0.0, each), at_most=LEASE_UNITS + CONCURRENCY)


def _busy_and_steady(scene: Scene, worker: Worker) -> int:
    """The process that ran longest, once all have been there for a while and it has tasks in hand that will pay."""

    def oldest() -> int | None:
        pids = worker.pids()
        if len(pids) < PROCESSES:
            return None
        pid = max(pids, key=age_s)
        return pid if age_s(pid) > STEADY_S and _running(scene.history.events())[pid] else None

    return int(wait_until("a steady process with tasks in hand", oldest))


def _running(events: Sequence[Event]) -> Counter[int]:
    """Paying tasks in hand of each process, by the history."""
    found: Counter[int] = Counter()
    for one in events:
        if one.event == "started" and one.task.startswith("calls"):
            found[one.pid] += 1
        elif one.event == "done" and one.task.startswith("calls"):
            found[one.pid] -= 1
    return found
