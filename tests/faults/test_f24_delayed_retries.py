"""F24: retries come back after their delays, as often as they are allowed; a lost target delays nobody else's."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qctl.units import format_duration
from tests.faults.history import Event
from tests.faults.rows import Record, row
from tests.faults.scene import Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import Letter, wire

UNROUTABLE = "qctl.unroutable"
LATE_S = 2.0

HANDLERS = """
    def failing(task):
        name = task.payload["task"]
        mark("started", name)
        rest(task)
        mark(f"attempt {task.attempt}", name)
        mark("failed", name)
        raise ValueError("as ever")

    def failing_once(task):
        name = task.payload["task"]
        mark("started", name)
        if task.attempt == 1:
            mark("failed", name)
            raise ValueError("once")
        mark("done", name)
"""


def _consumer(handler: str, attempts: int, delays_s: Sequence[float]) -> dict[str, Any]:
    delays = [format_duration(delay_s) for delay_s in delays_s]
    return {
        "handler": {"python": f"handlers:{handler}"},
        "quota": {},
        "concurrency": 4,
        "retry": {"attempts": attempts, "delays": delays},
    }


@row("F24", "tasks that fail each time: 1,000, attempts 6, delays 1, 5, 30 s", selected=True)
def test_each_runs_as_often_as_it_may_and_after_its_delays(scene: Scene) -> None:
    # Given tasks that always fail
    count, attempts, delays_s = (1000, 6, (1.0, 5.0, 30.0)) if scene.thorough else (20, 3, (1.0,))
    scene.runs["failing"] = attempts
    scene.stage(handlers=HANDLERS, consumers={"failing": _consumer("failing", attempts, delays_s)})
    scene.start(consumers=("failing",))
    scene.steady()

    # When they run
    began_s = time.time()
    names = scene.enqueue("failing", count)
    scene.await_count("failed", count * attempts, timeout_s=attempts * max(delays_s) + 60)
    wait_until("all given up on", lambda: _depth(scene, "failing.dead") >= count)

    # Then each has run its attempts, numbered one by one, and no oftener
    events = scene.history.events()
    runs = Counter(one.task for one in events if one.event == "started")
    scene.record.figure("runs of a task, fewest", min(runs[name] for name in names), equals=attempts)
    scene.record.figure("runs of a task, most", max(runs[name] for name in names), equals=attempts)
    numbers = Counter(one.event for one in events if one.event.startswith("attempt "))
    assert numbers == {f"attempt {number}": count for number in range(1, attempts + 1)}
    # each after its delay
    _judge_delays(scene.record, _late_s(events, names, delays_s))
    # and its dead letter tells the same: how often, why, and since when
    letters = _look_at(scene, "failing.dead", count)
    assert {letter.headers["qctl-attempt"] for letter in letters} == {attempts}
    assert {letter.headers["qctl-reason"] for letter in letters} == {"attempts"}
    assert {letter.headers["qctl-error"] for letter in letters} == {"ValueError: as ever"}
    assert all(began_s - 1 <= letter.properties.timestamp <= time.time() for letter in letters)
    assert len({letter.properties.message_id for letter in letters}) == count


@row("F24", "of three queues whose tasks wait for their retry, one is deleted and one unbound")
def test_a_lost_target_keeps_its_messages_and_delays_nobody(scene: Scene) -> None:
    # Given tasks of three queues in one waiting room
    strays, others, delay_s = (500, 1000, 30.0) if scene.thorough else (20, 20, 5.0)
    scene.runs |= {"deleted": 1, "unbound": 1, "stays": 2}
    once = _consumer("failing_once", 2, [delay_s])
    scene.stage(
        "web-1",
        "web-2",
        handlers=HANDLERS,
        consumers={"deleted": once, "unbound": once, "stays": once},
        hosts={"web-1": {"consumers": {"deleted": None}}, "web-2": {"consumers": {"unbound": None, "stays": None}}},
    )
    gone = scene.start("web-1", consumers=("deleted",))
    scene.start("web-2", consumers=("unbound", "stays"))
    deleted = scene.enqueue("deleted", strays)
    unbound = scene.enqueue("unbound", strays)
    scene.await_count("failed", 2 * strays)
    wait_until("all in the waiting room", lambda: _waiting(scene, delay_s) >= 2 * strays)

    # When the queue of one is deleted, with nobody left who would make it again, and that of another is unbound
    scene.record.figure("exit code of the one that leaves", gone.stop(), equals=0)
    with wire(scene.vhost) as own:
        scene.steady()
        in_time = own.channel.queue_delete("deleted").method.message_count == 0
        own.channel.queue_unbind("unbound", "qctl.back", "unbound")
    assert in_time, "a retry was due before its queue was deleted"
    assert scene.count("started") == 2 * strays, "a retry was due before its queue was unbound"
    stays = scene.enqueue("stays", others)
    scene.await_ended(stays, timeout_s=delay_s + 60)

    # Then the third's come back in time
    _judge_delays(scene.record, _late_s(scene.history.events(), stays, [delay_s]))
    # and all of the others' are kept, as they were
    scene.leaves = 2 * strays
    wait_until("the strays are kept", lambda: _depth(scene, UNROUTABLE) >= 2 * strays)
    kept = _look_at(scene, UNROUTABLE, 2 * strays)
    missing = Counter(deleted) + Counter(unbound) - Counter(letter_task(letter) for letter in kept)
    scene.record.figure("messages of lost targets that are not kept", missing.total(), equals=0)
    assert {letter.headers["qctl-attempt"] for letter in kept} == {2}
    assert {letter.headers["x-death"][0]["routing-keys"][0] for letter in kept} == {"deleted", "unbound"}
    assert _waiting(scene, delay_s) == 0


def letter_task(letter: Letter) -> str:
    """The name of the task that a message is."""
    return letter.body.decode().partition('"task": "')[2].partition('"')[0]


def _late_s(
    events: Iterable[Event], names: Iterable[str], delays_s: Sequence[float]
) -> Mapping[float, Sequence[float]]:
    """Delay -> by how much each retry came later than it, from the end of one run to the beginning of the next."""
    wanted, failed, runs = set(names), dict[str, int](), Counter[str]()
    found: defaultdict[float, list[float]] = defaultdict(list)
    for one in events:
        if one.task in wanted and one.event == "failed":
            failed[one.task] = one.at_ns
            runs[one.task] += 1
        elif one.task in failed and one.event == "started":
            delay_s = delays_s[min(runs[one.task], len(delays_s)) - 1]
            found[delay_s].append((one.at_ns - failed[one.task]) / 1e9 - delay_s)
    return found


def _judge_delays(record: Record, late_s: Mapping[float, Sequence[float]]) -> None:
    for delay_s, some in sorted(late_s.items()):
        ordered, words = sorted(some), format_duration(delay_s)
        record.figure(f"retries after {words}", len(ordered))
        record.figure(f"late after {words}, least, s", ordered[0], at_least=0)
        record.figure(f"late after {words}, p50, s", ordered[len(ordered) // 2])
        record.figure(f"late after {words}, p99, s", ordered[-1 - len(ordered) // 100], at_most=LATE_S)
        record.figure(f"late after {words}, most, s", ordered[-1])


def _depth(scene: Scene, queue: str) -> int:
    with wire(scene.vhost) as own:
        return own.depth(queue)


def _waiting(scene: Scene, delay_s: float) -> int:
    return _depth(scene, f"qctl.retry.{format_duration(delay_s)}")


def _look_at(scene: Scene, queue: str, count: int) -> Sequence[Letter]:
    """Read so many messages of a queue and leave them where they are."""
    found = []
    with wire(scene.vhost) as own:
        for _ in range(count):
            method, properties, body = own.channel.basic_get(queue)
            assert method is not None, f"{len(found)} of {count} messages in {queue}"
            found.append(Letter(body, properties, method.redelivered))
        own.channel.basic_nack(multiple=True)
    return found
