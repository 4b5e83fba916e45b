"""F09: the way to the broker breaks in every way that TCP knows, one host each, all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime

from tests.faults.proxy import Proxy, Way
from tests.faults.rows import row
from tests.faults.scene import CONCURRENCY, Scene
from tests.fleet import Worker, wait_until

#: The broker is believed dead after two missed heartbeats and a margin each.
NOTICED_WITHIN_S = 30.0
#: A confirm that has not come by then holds the consumer.
PUBLISH_FAILS_WITHIN_S = 15.0
#: A task runs so long before it has to be published again.
TASK_S = 1.0
BREAKS: dict[str, Callable[[Proxy], object]] = {
    "reset": lambda way: way.reset(),
    "ended-by-broker": lambda way: way.half_close(Way.DOWN),
    "ended-by-worker": lambda way: way.half_close(Way.UP),
    "deaf": lambda way: way.hold(Way.DOWN),
    "mute": lambda way: way.hold(Way.UP),
    "dead": lambda way: way.hold(),
}
BLACK_HOLES = ("deaf", "mute", "dead")


@row("F09", "reset, half-close each way, black hole each way and both; the connections of a host each, all at once")
def test_a_broken_way_is_noticed_and_nothing_is_lost_on_it(scene: Scene) -> None:
    # Given a host for each kind of break, with its own way to the broker, all of them busy
    scene.stage(*BREAKS, again=True)
    ways = {host: scene.keep(Proxy.to(scene.vhost.broker.amqp_port)) for host in BREAKS}
    consumers = ("calls", "plain", "again")
    workers = {host: scene.start(host, consumers=consumers, amqp=scene.through(way)) for host, way in ways.items()}
    scene.enqueue("plain", 400, s=0.05)
    scene.await_ended()
    scene.steady()
    # Enough that every host has some of them in hand when its way breaks, and has to publish right after.
    scene.enqueue("again", len(BREAKS) * CONCURRENCY, s=TASK_S)
    scene.await_count("started", 400 + len(BREAKS) * CONCURRENCY)
    unseen = {host: len(worker.log()) for host, worker in workers.items()}

    # When all of them break
    since_s, began_s = time.monotonic(), time.time()
    for host, broken in BREAKS.items():
        broken(ways[host])

    # Then each is noticed in time, and a publish into a black hole is given up on
    noticed_s = _seen_after(workers, unseen, "connection lost, trying again", since_s)
    for host, seconds in noticed_s.items():
        scene.record.figure(f"noticed after, s: {host}", seconds, at_most=NOTICED_WITHIN_S)
    for host in BLACK_HOLES:
        failed_s = _stamp_s(workers[host], unseen[host], "no confirm") - began_s - TASK_S
        scene.record.figure(f"publish failed after, s: {host}", failed_s, at_most=PUBLISH_FAILS_WITHIN_S + 1)

    # and when the ways are whole again all hosts are at work, and repeat only what they had in hand
    since_s = time.monotonic()
    for way in ways.values():
        way.release()
    expected = sorted(f"qctl/{host}/{consumer}/0" for host in BREAKS for consumer in consumers)
    wait_until("every consumer there", lambda: sorted(scene.fleet.consumer_tags()) == expected, timeout_s=60)
    scene.record.figure("all back, s", time.monotonic() - since_s, at_most=20)
    # A retry whose confirm was lost on the way is there twice, beside the task that it came from.
    scene.may_duplicate = len(BREAKS) * CONCURRENCY * 3


def _seen_after(
    workers: Mapping[str, Worker], unseen: Mapping[str, int], words: str, since_s: float
) -> dict[str, float]:
    """Host -> seconds until its log said `words` in what had not been seen before."""
    found: dict[str, float] = {}

    def look() -> bool:
        for host, worker in workers.items():
            if host not in found and words in worker.log()[unseen[host] :]:
                found[host] = time.monotonic() - since_s
        return len(found) == len(workers)

    wait_until(f"{words!r} in every log", look, timeout_s=60)
    return found


def _stamp_s(worker: Worker, unseen: int, words: str) -> float:
    """When the log said `words`, by the stamp of that line; seconds since the epoch."""
    line = next(line for line in worker.log()[unseen:].splitlines() if words in line)
    return datetime.fromisoformat(line.split()[0]).timestamp()
