"""F03: being told to end: in order, twice, and killed on the way."""

from __future__ import annotations

import signal
import time

from tests.faults.rows import row
from tests.faults.scene import CONCURRENCY, Scene
from tests.fleet import Worker, wait_until
from tests.integration.worker_harness import group_members, wire

#: Tasks that sit in the worker's hands and have not started.
BUFFERED = 40
HEARTBEAT_S = 10.0


def _busy(scene: Scene, *arguments: str, task_s: float) -> Worker:
    """A worker that runs k long tasks and has more of them in its hands, none of them left in the queue."""
    scene.stage()
    worker = scene.start("web-1", *arguments)

    def has_room() -> bool:
        # The broker says a prefetch of up to five seconds ago: twice as much as is needed then is enough now.
        scene.enqueue("plain", 1000)
        scene.await_ended()
        return _prefetch(scene) >= 2 * (CONCURRENCY + BUFFERED)

    # Tasks that take no time, until a good prefetch is in force: on a busy machine even they take long at first.
    wait_until("a good prefetch", has_room, timeout_s=60)
    started = scene.count("started")
    scene.enqueue("plain", CONCURRENCY + BUFFERED, s=task_s)
    scene.await_count("started", started + CONCURRENCY)
    wait_until("all in the worker's hands", lambda: _ready(scene) == 0)
    scene.steady()
    return worker


def _prefetch(scene: Scene) -> int:
    listed = scene.vhost.broker.api("GET", f"/consumers/{scene.vhost.name}") or []
    return max((int(one["prefetch_count"]) for one in listed if one["queue"]["name"] == "plain"), default=0)


def _ready(scene: Scene) -> int:
    with wire(scene.vhost) as own:
        return own.depth("plain")


def _await_back(scene: Scene, count: int, since_s: float, what: str) -> None:
    wait_until("unstarted work back in the queue", lambda: _ready(scene) >= count)
    scene.record.figure(f"unstarted work back after {what}, s", time.monotonic() - since_s, at_most=2)


@row("F03", "SIGTERM while k tasks of 3 heartbeats run and 40 wait in the worker's hands")
def test_warm_drain_finishes_what_runs_and_gives_back_the_rest(scene: Scene) -> None:
    # Given a worker in the middle of tasks that take three heartbeats
    scene.task_timeout_s = 60.0
    worker = _busy(scene, "--drain-timeout", "60s", task_s=3 * HEARTBEAT_S + 1)
    done = scene.count("done")
    connections = _connections(scene)

    # When it is told to end
    since_s = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    _await_back(scene, BUFFERED, since_s, "SIGTERM")
    time.sleep(2.5 * HEARTBEAT_S)

    # Then it keeps its connections until the tasks are done, and does none of them twice
    scene.record.figure("connections lost in the drain", len(connections - _connections(scene)), equals=0)
    scene.record.figure("exit code", worker.process.wait(60), equals=0)
    scene.record.figure("tasks that ran to their end", scene.count("done") - done, equals=CONCURRENCY)
    scene.start("web-1")


@row("F03", "SIGTERM, and again a second later, while k tasks run and 40 wait in the worker's hands")
def test_a_second_signal_ends_it_at_once_and_repeats_only_what_ran(scene: Scene) -> None:
    # Given a worker in the middle of long tasks
    worker = _busy(scene, task_s=20)

    # When it is told to end twice
    since_s = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    _await_back(scene, BUFFERED, since_s, "SIGTERM")
    since_s = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    scene.record.figure("exit code", worker.process.wait(20), equals=1)
    scene.record.figure("end after the second signal, s", time.monotonic() - since_s, at_most=2)

    # Then what ran is back as well, and nothing else runs twice
    _await_back(scene, CONCURRENCY + BUFFERED, since_s, "the second signal")
    scene.may_duplicate = CONCURRENCY
    scene.hurry()
    scene.start("web-1")


@row("F03", "kill -9 of the group during the drain")
def test_a_kill_during_the_drain_repeats_only_what_ran(scene: Scene) -> None:
    # Given a worker that drains
    worker = _busy(scene, task_s=20)
    worker.process.send_signal(signal.SIGTERM)
    worker.await_log("draining")

    # When all of it is killed
    since_s = time.monotonic()
    worker.kill()
    scene.record.figure("processes left", len(group_members(worker.process.pid)), equals=0)

    # Then everything is back at once, and only what ran is done again
    _await_back(scene, CONCURRENCY + BUFFERED, since_s, "the kill")
    scene.may_duplicate = CONCURRENCY
    scene.hurry()
    scene.start("web-1")


def _connections(scene: Scene) -> set[str]:
    """The worker processes' connections, as the broker knows them."""
    rows = scene.vhost.broker.ctl("list_connections", "name", "vhost", "client_properties").splitlines()
    return {line.split("\t")[0] for line in rows if scene.vhost.name in line and "qctl_index" in line}
