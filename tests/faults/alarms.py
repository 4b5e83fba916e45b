"""A resource alarm of the broker, and what must hold under any of them. F13 and F14 differ in the resource alone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from itertools import pairwise

from tests.brokers import Broker
from tests.faults.scene import CONCURRENCY, Enqueuing, Scene, ended_at_last
from tests.fleet import wait_until
from tests.integration.worker_harness import wire

#: `qctl enqueue` gives up after a minute without a confirm.
ENQUEUE_WITHIN_S = 65.0
TRY_AGAIN = 75
BACK_S = 5.0
RETRY_DELAY_S = 1.0
#: Tasks for longer than the alarm lasts, and more lines than a command can send while it is watched.
PLENTY, MANY, FEW = 4_000, 20_000, 50
WAITING = 60
#: How long deliveries are watched under the alarm.
WATCH_S = 30.0


def play(scene: Scene, raise_alarm: Callable[[Broker], object], clear_alarm: Callable[[Broker], object]) -> None:
    """Consume and publish through an alarm of a minute and a little."""
    broker, record = scene.vhost.broker, scene.record
    # Given a worker that is busy, also with tasks that fail and have to be published again
    scene.stage(again=True)
    worker = scene.start(consumers=("calls", "plain", "again"))
    scene.enqueue("plain", PLENTY, s=0.1)
    scene.enqueue("calls", FEW, s=0.2)
    scene.await_count("done", 100)
    before = scene.rate_over(4.0, prefix="plain")
    for _ in range(CONCURRENCY):  # at different times, so that most of them fail when publishing is known to be blocked
        scene.enqueue("again", 1, s=2)
    scene.enqueue("again", WAITING, s=2)
    scene.steady()
    # and a command that is in the middle of its lines
    midway = _stopped_midway(scene)

    # When the broker takes no publishes any more
    with ended_at_last(lambda: clear_alarm(broker)):
        raise_alarm(broker)
        raised_ns = time.monotonic_ns()
        worker.await_log("blocks publishes")
        midway.process.send_signal(signal.SIGCONT)
        blocked_s = time.monotonic()
        early = scene.enqueue_meanwhile("plain", FEW)
        worker.await_log("again held")
        failed_before = scene.count("failed")

        # Then deliveries and acknowledgements go on: more is done than the broker lets be out at once
        during = scene.rate_over(WATCH_S, prefix="plain")
        record.figure("tasks a second before", before)
        record.figure("deliveries go on: share of the former rate", during / before, at_least=0.75)
        unacked = sum(unacked for _, unacked in scene.fleet.queues().values())
        record.figure("deliveries out at the broker under the alarm", unacked, at_most=6 * CONCURRENCY)
        # what has to be published waits, and no more of it is made
        record.figure("tasks that failed while held", scene.count("failed") - failed_before, at_most=2 * CONCURRENCY)
        late = scene.enqueue_meanwhile("plain", FEW)

        # and whoever enqueues is told the truth after a minute, in the middle of it as at its beginning
        some = midway.finish()
        record.figure("enqueue under way: ended after, s", time.monotonic() - blocked_s, at_most=ENQUEUE_WITHIN_S)
        record.figure("enqueue under way: exit code", some.code, equals=TRY_AGAIN)
        record.figure("enqueue under way: confirmed", some.confirmed, at_least=1, at_most=MANY - 1)
        none = early.finish()
        record.figure("enqueue begun under it: ended after, s", none.seconds, at_most=ENQUEUE_WITHIN_S)
        record.figure("enqueue begun under it: exit code", none.code, equals=TRY_AGAIN)
        record.figure("enqueue begun under it: confirmed", none.confirmed, equals=0)
        record.figure("connections lost under the alarm", worker.log().count("connection lost, "), equals=0)
        known = scene.history.tasks("started")
        owed = {one.task for one in scene.history.events() if one.event == "failed" and one.at_ns > raised_ns}
        record.figure("retries that wait to be published", len(owed), at_least=1)
        scene.hurry()  # what is in front of a retry in its queue must not count as its wait
        record.figure("longest without a start under the alarm, s", _longest_pause_s(scene, raised_ns), at_most=2)
    cleared_s, cleared_ns = time.monotonic(), time.monotonic_ns()

    # Then all goes on once it is over: a command that waited, the tasks that were held, the retries that were owed
    waited = late.finish()
    record.figure("enqueue that waited: back, s", time.monotonic() - cleared_s, at_most=BACK_S)
    record.figure("enqueue that waited: exit code", waited.code, equals=0)
    record.figure("enqueue that waited: confirmed", waited.confirmed, equals=FEW)
    fresh_ns = wait_until("tasks that were held", lambda: _starts(scene, cleared_ns, lambda name: name not in known))
    record.figure("held consumer: back, s", (min(fresh_ns) - cleared_ns) / 1e9, at_most=BACK_S)
    wait_until("all retries", lambda: len(_starts(scene, cleared_ns, lambda name: name in owed)) >= len(owed))
    last_s = (max(_starts(scene, cleared_ns, lambda name: name in owed)) - cleared_ns) / 1e9 - RETRY_DELAY_S
    record.figure("last retry that was owed: published, s", max(0.0, last_s), at_most=BACK_S)


def _stopped_midway(scene: Scene) -> Enqueuing:
    """An enqueue of many lines that was stopped when the broker had some of them."""
    with wire(scene.vhost) as own:
        enough = own.depth("plain") + FEW
        running = scene.enqueue_meanwhile("plain", MANY)
        wait_until("some of its lines", lambda: own.depth("plain") > enough)
        running.process.send_signal(signal.SIGSTOP)
    return running


def _longest_pause_s(scene: Scene, since_ns: int) -> float:
    """Seconds in which no task of `plain` was started, since then and until now: the most."""
    stamps = [since_ns, *(ns for ns in scene.stamps("started", "plain") if ns > since_ns), time.monotonic_ns()]
    return max(later - earlier for earlier, later in pairwise(stamps)) / 1e9


def _starts(scene: Scene, after_ns: int, wanted: Callable[[str], bool]) -> list[int]:
    """When tasks of `again` of that name were started since."""
    return [
        one.at_ns
        for one in scene.history.events()
        if one.event == "started" and one.at_ns > after_ns and one.task.startswith("again") and wanted(one.task)
    ]
