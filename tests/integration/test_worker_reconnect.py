"""A connection that goes comes back, and nothing is lost with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import (
    assert_no_traceback,
    await_consuming,
    await_history,
    start_consuming,
    wire,
)

HANDLERS = """
    import json, pathlib

    def calls(task):
        note("started", task.id)
        while not pathlib.Path(GATE).exists():
            time.sleep(0.01)
        note("done", task.id)
        if task.attempt == 1 and int(task.id) % 3 == 0:
            raise ValueError("every third fails once")

    def beside(task):
        note("beside", task.id)
"""
CONCURRENCY, TASKS = 4, 30


def document() -> dict[str, object]:
    calls = {
        "handler": {"python": "handlers:calls"},
        "quota": {},
        "concurrency": CONCURRENCY,
        "retry": {"attempts": 3, "delays": ["1s"]},
    }
    beside = {"handler": {"python": "handlers:beside"}, "quota": {}}
    return {"consumers": {"calls": calls, "beside": beside}, "hosts": {"web-1": None}}


def source(directory: Path) -> str:
    return f"    GATE = {str(directory / 'gate')!r}\n" + HANDLERS


def test_given_every_connection_closed_then_the_worker_is_back_and_every_task_is_done(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with Fleet(local_vhost, tmp_path, source(tmp_path), **document()) as fleet:
        worker = start_consuming(fleet, "web-1", "calls", "beside")
        pids = worker.pids()
        with wire(local_vhost) as connected:
            for number in range(TASKS):
                connected.task("calls", {}, message_id=str(number))
        await_history(fleet, "started", CONCURRENCY)

        # When an operator closes them all, three times, while tasks run that are then delivered anew
        for _ in range(3):
            before = len(worker.log())
            local_vhost.ctl("close_all_connections", "closed by a test")
            wait_until("the loss", lambda b=before: "consuming connection lost, trying again" in worker.log()[b:])
            await_again = worker.log().index("consuming connection lost", before)
            wait_until("consuming", lambda b=await_again: "web-1/calls consuming" in worker.log()[b:], timeout_s=10)
        assert len(fleet.history("started")) == CONCURRENCY  # the slots are taken as long as their threads run
        (tmp_path / "gate").touch()

        # Then every task is done, those that failed once more, in the same process
        names = {str(number) for number in range(TASKS)}
        wait_until("every task", lambda: set(fleet.history("done")) == names)
        with wire(local_vhost) as connected:
            wait_until("nothing on its way", lambda: connected.depth("qctl.retry.1s") == 0)
            connected.task("beside", {}, message_id="fence")
            await_history(fleet, "beside", 1)
            wait_until(
                "all retries", lambda: all(Counter(fleet.history("done"))[str(n)] >= 2 for n in range(0, TASKS, 3))
            )
            assert connected.depth("calls.dead") == 0
        assert worker.pids() == pids
        assert worker.stop() == 0
        assert_no_traceback(worker.log())
        # what was settled too late was dropped on our side: a stale acknowledgement would have closed the channel
        assert "PRECONDITION_FAILED" not in worker.log()


def test_given_the_host_name_held_by_the_dead_connection_then_the_supervisor_has_it_again(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with Fleet(local_vhost, tmp_path, source(tmp_path), **document()) as fleet:
        worker = start_consuming(fleet, "web-1", "calls")
        local_vhost.ctl("close_all_connections", "closed by a test")
        worker.await_log("supervisor connection open")

        wait_until("the name", lambda: "qctl.host.web-1" in local_vhost.ctl("list_queues", "name"), timeout_s=15)

        assert worker.stop() == 0


def test_given_a_queue_deleted_under_its_consumer_then_it_is_made_again_and_consumed(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with Fleet(local_vhost, tmp_path, source(tmp_path), **document()) as fleet, wire(local_vhost) as connected:
        worker = start_consuming(fleet, "web-1", "calls", "beside")
        before = len(worker.log())

        connected.channel.queue_delete("beside")

        await_consuming(worker, "beside", after=before)
        connected.task("beside", {}, message_id="again")
        assert await_history(fleet, "beside", 1) == ["again"]
        assert "web-1/calls" not in worker.log()[before:]  # its neighbour never noticed
        assert worker.stop() == 0
        assert_no_traceback(worker.log())
