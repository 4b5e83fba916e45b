"""F26: a queue is deleted, cancelled from the broker's side, or loses its leader, under its consumer."""

from __future__ import annotations

import time

from tests.faults.accounts import account
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import Worker, wait_until
from tests.integration.worker_harness import wire

BACK_S = 5.0


def _await_back_s(worker: Worker, before: int, since_s: float) -> float:
    """Seconds until `plain`, which was down, consumes again."""

    def back() -> bool:
        said = worker.log()[before:]
        down = said.find("web-1/plain down: ")
        return down >= 0 and "web-1/plain consuming" in said[down:]

    wait_until("plain down and consuming again", back)
    return time.monotonic() - since_s


@row("F26", "the queue is deleted under its consumer, five times; tasks run meanwhile", selected=True)
def test_a_deleted_queue_is_back_at_once_and_the_neighbour_never_notices(scene: Scene) -> None:
    scene.stage()
    worker = scene.start()
    slowest_s = 0.0
    with wire(scene.vhost) as own:
        for _ in range(5 if scene.thorough else 2):
            scene.await_ended(scene.enqueue("plain", 4, s=0.05))
            before, at_s = len(worker.log()), time.monotonic()

            own.channel.queue_delete("plain")

            slowest_s = max(slowest_s, _await_back_s(worker, before, at_s))
            assert "queue plain was deleted" in worker.log()[before:]
    scene.record.figure("slowest back, s", slowest_s, at_most=BACK_S)
    # Then what comes afterwards is done, and nobody else was disturbed
    scene.await_ended(scene.enqueue("plain", 4, s=0.05))
    assert "web-1/calls down" not in worker.log()
    assert "connection lost" not in worker.log()


@row("F26", "the queue is deleted under a user who may not make it again", selected=True)
def test_a_queue_that_may_not_be_made_again_is_a_clear_state(scene: Scene) -> None:
    user = scene.keep(account(scene.vhost, scene.directory))
    scene.stage()
    user.use(scene.fleet)
    worker = scene.start()
    scene.await_ended(scene.enqueue("plain", 2))
    user.allow(configure="^qctl\\.host\\.")
    # the broker remembers for a while what a channel was allowed, and not what a new one is
    with wire(scene.vhost) as own:
        own.channel.queue_delete("plain")
        at_s = time.monotonic()

        # Then the state says what is missing and why, once, for as long as it lasts
        said = "web-1/plain down: queue plain is missing and this user may not make it"
        wait_until("a clear state", lambda: said in worker.log())
        scene.record.figure("clear state, s", time.monotonic() - at_s, at_most=BACK_S)
        scene.await_ended(scene.enqueue("calls", 4))
        assert worker.log().count(said) == 1

    # And when the queue is there again, it is consumed
    before, at_s = len(worker.log()), time.monotonic()
    names = scene.enqueue("plain", 2)  # declares what is missing, as another user
    wait_until("it consumes", lambda: "web-1/plain consuming" in worker.log()[before:])
    scene.record.figure("consuming once it is there, s", time.monotonic() - at_s, at_most=10)
    scene.await_ended(names)
    assert "connection lost" not in worker.log()


@row("F26", "the queue's only member stops for 2 s and is elected anew, tasks running", selected=True)
def test_a_queue_whose_leader_goes_and_returns_is_consumed_without_a_word(scene: Scene) -> None:
    scene.record.note("one node: the queue's member is stopped and started, which is an election, not a move")
    scene.stage()
    worker = scene.start()
    names = scene.enqueue("plain", 600 if scene.thorough else 300, s=0.05)
    scene.await_count("done", 20)
    member = f'{{binary_to_atom(<<"{scene.vhost.name}_plain">>, utf8), node()}}'

    # When the leader is away for two seconds
    broker = scene.vhost.broker
    stop, start = f"ra:stop_server(quorum_queues, {member})", f"ra:restart_server(quorum_queues, {member})"
    assert broker.eval(f"ok = {stop}, timer:sleep(2000), {start}.") == "ok"
    at_ns = time.monotonic_ns()

    # Then tasks are done again soon after, each once
    wait_until("tasks are done", lambda: [ns for ns in scene.stamps("done") if ns > at_ns])
    first_ns = min(ns for ns in scene.stamps("started") if ns > at_ns)
    scene.record.figure("next start, s", (first_ns - at_ns) / 1e9, at_most=BACK_S)
    scene.await_ended(names)
    assert "connection lost" not in worker.log()
